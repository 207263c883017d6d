"""Probes and monitors for any LightningModule that keeps the contract of ``contrastive.module``."""

from contrastive.callbacks.knn_probe import KNNProbe as KNNProbe
from contrastive.callbacks.linear_probe import LinearProbe as LinearProbe
from contrastive.callbacks.representation_monitor import CollapseWarning as CollapseWarning
from contrastive.callbacks.representation_monitor import RepresentationMonitor as RepresentationMonitor
