"""Contrastive learning on PyTorch Lightning."""

from contrastive.methods import MoCo as MoCo
from contrastive.methods import SimCLR as SimCLR
