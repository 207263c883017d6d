"""A view's operations as Kornia's, to compare with."""

from collections.abc import Sequence
from typing import Literal

import kornia.augmentation as kornia

from contrastive.augmentations import (
    ColorJitter,
    GaussianBlur,
    Normalize,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)
from contrastive.augmentations.operations import Operation


def kornia_transform(
    view: Sequence[Operation], *, cropping_mode: Literal["slice", "resample"] = "slice"
) -> kornia.AugmentationSequential:
    """The same operations with the same parameters, as far as Kornia has them.

    It differs in what cannot be set: no antialiasing when a crop shrinks, one order of the jitter's four operations for
    a whole batch, other grey weights. ``align_corners`` is False, unlike its default, which is another kind of resize.

    Args:
        view: Of float images in [0, 1].
        cropping_mode: "slice" crops image by image, "resample" warps the batch.

    Raises:
        ValueError: An operation without a counterpart here.
    """
    modules = []
    for operation in view:
        match operation:
            case RandomResizedCrop(size, scale, ratio, "bilinear"):
                sides = size, size
                modules.append(
                    kornia.RandomResizedCrop(
                        sides, scale=scale, ratio=ratio, align_corners=False, cropping_mode=cropping_mode
                    )
                )
            case RandomHorizontalFlip(p):
                modules.append(kornia.RandomHorizontalFlip(p=p))
            case ColorJitter(brightness, contrast, saturation, hue, p):
                modules.append(kornia.ColorJitter(brightness, contrast, saturation, hue, p=p))
            case RandomGrayscale(p):
                modules.append(kornia.RandomGrayscale(p=p))
            case GaussianBlur(kernel_size, sigma, p):
                modules.append(kornia.RandomGaussianBlur((kernel_size, kernel_size), sigma, p=p))
            case Normalize(mean, std):
                modules.append(kornia.Normalize(mean, std))
            case _:
                raise ValueError(f"{operation} has no counterpart in Kornia here.")
    return kornia.AugmentationSequential(*modules)
