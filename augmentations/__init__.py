"""Batched positive-pair pipelines on the images' own device."""

from contrastive.augmentations.adapter import views_from as views_from
from contrastive.augmentations.key import SampleKey as SampleKey
from contrastive.augmentations.normalize import CIFAR10 as CIFAR10
from contrastive.augmentations.normalize import IMAGENET as IMAGENET
from contrastive.augmentations.normalize import Normalize as Normalize
from contrastive.augmentations.pipeline import ViewPipeline as ViewPipeline
from contrastive.augmentations.published import byol_views as byol_views
from contrastive.augmentations.published import moco_v2_views as moco_v2_views
from contrastive.augmentations.published import multi_crop_views as multi_crop_views
from contrastive.augmentations.published import simclr_views as simclr_views
from contrastive.augmentations.view_spec import ViewSpec as ViewSpec
from contrastive.augmentations.views import MakeViews as MakeViews
