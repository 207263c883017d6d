"""Data modules: where images come from, in which order, each exactly once."""

from contrastive.data.tensor_images import TensorImages as TensorImages
