"""Batched positive-pair pipelines on the images' own device."""

from contrastive.augmentations.adapter import views_from as views_from
from contrastive.augmentations.images import RaggedImages as RaggedImages
from contrastive.augmentations.key import SampleKey as SampleKey
from contrastive.augmentations.normalize import CIFAR10 as CIFAR10
from contrastive.augmentations.normalize import IMAGENET as IMAGENET
from contrastive.augmentations.normalize import Normalize as Normalize
from contrastive.augmentations.operations import CenterCrop as CenterCrop
from contrastive.augmentations.operations import ColorJitter as ColorJitter
from contrastive.augmentations.operations import GaussianBlur as GaussianBlur
from contrastive.augmentations.operations import RandomGrayscale as RandomGrayscale
from contrastive.augmentations.operations import RandomHorizontalFlip as RandomHorizontalFlip
from contrastive.augmentations.operations import RandomResizedCrop as RandomResizedCrop
from contrastive.augmentations.operations import RandomSolarize as RandomSolarize
from contrastive.augmentations.operations import Resize as Resize
from contrastive.augmentations.operations import TensorOperation as TensorOperation
from contrastive.augmentations.pipeline import Views as Views
from contrastive.augmentations.published import byol_views as byol_views
from contrastive.augmentations.published import dino_views as dino_views
from contrastive.augmentations.published import evaluation_views as evaluation_views
from contrastive.augmentations.published import mae_views as mae_views
from contrastive.augmentations.published import moco_v2_views as moco_v2_views
from contrastive.augmentations.published import moco_v3_views as moco_v3_views
from contrastive.augmentations.published import simclr_views as simclr_views
from contrastive.augmentations.published import simsiam_views as simsiam_views
from contrastive.augmentations.published import swav_views as swav_views
from contrastive.augmentations.views import MakeViews as MakeViews
