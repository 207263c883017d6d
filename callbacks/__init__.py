"""Probes and monitors for any LightningModule that keeps the contract of ``contrastive.module``."""
