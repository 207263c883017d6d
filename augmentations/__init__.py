"""Batched positive-pair pipelines on the images' own device."""

from contrastive.augmentations.key import SampleKey as SampleKey
from contrastive.augmentations.views import MakeViews as MakeViews
