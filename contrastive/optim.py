"""Optimizers as functions of a module and of how long it will be trained."""
