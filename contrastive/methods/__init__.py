"""The methods, one LightningModule a file."""

from contrastive.methods.moco import MoCo as MoCo
from contrastive.methods.simclr import SimCLR as SimCLR
