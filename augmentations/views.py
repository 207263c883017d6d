"""The contract of everything that makes positive pairs."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from contrastive.augmentations.key import SampleKey


@runtime_checkable
class MakeViews(Protocol):
    """Turns a batch of images into views of them, on the images' own device."""

    def __call__(self, images: UInt8[Tensor, "B 3 H W"], key: SampleKey) -> list[Tensor]:
        """Random views, each float [B, 3, size, size], normalised; sizes may differ between views."""
        ...

    def evaluation_view(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """The images as an encoder trained on these views wants them: centre-cropped, normalised, not random."""
        ...


def check_images(images: Any) -> None:
    """Say what images must be, where a wrong layout would otherwise make plausible nonsense.

    Raises:
        TypeError: Not a uint8 tensor.
        ValueError: Not [B, 3, H, W] with at least one pixel.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        got = f"a {images.dtype} tensor" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise TypeError(
            f"Views are made of uint8 images [B, 3, H, W] as decoded, but got {got}. Leave scaling and normalising to "
            "the views; an image already scaled to [0, 1] goes back by (images * 255).round().to(torch.uint8)."
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(
            f"Views are made of uint8 images [B, 3, H, W], but these have shape {list(images.shape)}. {_advice(images)}"
        )


def check_key(key: Any, images: Tensor) -> npt.NDArray[np.int64]:
    """Check that a key names random numbers for these images.

    Returns:
        The key's index on the host, int64 [B].

    Raises:
        TypeError: No SampleKey.
        ValueError: An index for another number of images or of another dtype, or a number out of its range.
    """
    if not isinstance(key, SampleKey):
        raise TypeError(
            f"The second argument of make_views is a SampleKey(seed, epoch, index), but got a {type(key).__name__}. "
            "The index is the images' numbers in their data set, int64 [B]."
        )
    if key.index.dtype != torch.int64 or key.index.shape != (len(images),):
        raise ValueError(
            f"The key's index has shape {list(key.index.shape)} and {key.index.dtype}, for {len(images)} images. "
            "It holds each image's number in its data set, int64 [B], in the batch's order."
        )
    if not 0 <= key.seed < 2**64 or not 0 <= key.epoch < 2**32:
        raise ValueError(
            f"seed={key.seed}, epoch={key.epoch} is out of range: 0 <= seed < 2**64 and 0 <= epoch < 2**32. "
            "Choose a seed that is not negative."
        )
    index: npt.NDArray[np.int64] = key.index.cpu().numpy()
    if (index < 0).any():
        raise ValueError(
            f"An image's index is {index.min()}, but indices count from 0. Give each image its number in its data set."
        )
    return index


def _advice(images: Tensor) -> str:
    shape = images.shape
    if images.ndim == 3:
        return "For a single image add the batch axis: images[None]."
    if images.ndim == 4 and shape[1] == 1:
        return "Repeat a grey channel: images.expand(-1, 3, -1, -1)."
    if images.ndim == 4 and shape[3] == 3:
        return "The channels come second: images.permute(0, 3, 1, 2)."
    return "Stack RGB images of one size along a new first axis."
