"""Data modules: where images come from, in which order, each exactly once."""

from contrastive.data.adapter import from_dataset as from_dataset
from contrastive.data.image_folders import ImageFolders as ImageFolders
from contrastive.data.shapes import Shapes as Shapes
from contrastive.data.tensor_images import TensorImages as TensorImages
from contrastive.data.workers import LoadingError as LoadingError
