"""Losses as pure functions of projections, each tested against its paper's formula in plain loops."""

from contrastive.losses.softmax import info_nce as info_nce
from contrastive.losses.softmax import nt_xent as nt_xent
