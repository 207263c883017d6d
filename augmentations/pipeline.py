"""Random views of a batch, on the images' own device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from contrastive.augmentations import functional
from contrastive.augmentations.key import SampleKey
from contrastive.augmentations.normalize import IMAGENET, Normalize
from contrastive.augmentations.parameters import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Booleans,
    Parameters,
    Uniform,
    draw_parameters,
)
from contrastive.augmentations.view_spec import ViewSpec
from contrastive.augmentations.views import check_images, check_key


@dataclass(frozen=True)
class ViewPipeline:
    """Makes one view for each spec: crop, flip, colour jitter, grayscale, blur, solarize, normalise, in this order.

    A view is a function of (seed, epoch, the image's index, the view's number): on one device it is the same bit for
    bit whatever else is in the batch. Global random state is neither read nor moved, and autocast changes nothing.

    Attributes:
        specs: One for each view; the first one's image_size is also that of the evaluation view.
        normalize: Applied last; None leaves the views in [0, 1].

    Raises:
        ValueError: No spec.
    """

    specs: tuple[ViewSpec, ...]
    normalize: Normalize | None = IMAGENET

    def __post_init__(self) -> None:
        if len(self.specs) == 0:
            raise ValueError("A pipeline of 0 views makes nothing. Give one ViewSpec for each view; methods need two.")

    def __call__(self, images: Tensor, key: SampleKey) -> list[Tensor]:
        """Make the views.

        Args:
            images: uint8 [B, 3, H, W].
            key: Names the random numbers.

        Returns:
            A float32 [B, 3, image_size, image_size] for each spec.

        Raises:
            TypeError: The images are not a uint8 tensor, or the key is no SampleKey.
            ValueError: The images are not [B, 3, H, W], or the key does not fit them.
        """
        check_images(images)
        index = check_key(key, images)
        scaled = functional.to_float(images)
        height, width = images.shape[-2:]
        views = []
        for number, spec in enumerate(self.specs):
            parameters = draw_parameters(
                spec, seed=key.seed, epoch=key.epoch, index=index, view=number, height=height, width=width
            )
            views.append(self._normalized(apply_parameters(scaled, spec, parameters)))
        return views

    def evaluation_view(self, images: Tensor) -> Tensor:
        """The middle of the images, cut out where they are larger than the first view, scaled and normalised.

        Args:
            images: uint8 [B, 3, H, W], no side shorter than the first view's image_size.

        Returns:
            float32 [B, 3, image_size, image_size].

        Raises:
            TypeError: The images are not a uint8 tensor.
            ValueError: The images are not [B, 3, H, W], or too small.
        """
        check_images(images)
        return self._normalized(functional.to_float(functional.center_crop(images, self.specs[0].image_size)))

    def _normalized(self, images: Tensor) -> Tensor:
        return images if self.normalize is None else self.normalize(images)


def apply_parameters(
    images: Float[Tensor, "B 3 H W"], spec: ViewSpec, parameters: Parameters
) -> Float[Tensor, "B 3 {spec.image_size} {spec.image_size}"]:
    """Do to each image what was drawn for it; only the images that drew an operation pay for it."""

    def here(values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(images.device, non_blocking=True)

    def change(drawn: Booleans, operation: Callable[..., Tensor], *values: Uniform) -> None:
        rows = np.flatnonzero(drawn)
        if len(rows) == 0:
            return
        places = here(rows)
        numbers = [here(value[rows]).to(view.dtype) for value in values]
        view.index_copy_(0, places, operation(view.index_select(0, places), *numbers))

    view = functional.resized_crop(
        images,
        top=here(parameters.top),
        left=here(parameters.left),
        height=here(parameters.height),
        width=here(parameters.width),
        size=(spec.image_size, spec.image_size),
        flip=here(parameters.flip),
    )
    for step in range(4):
        now = np.where(parameters.jitter, parameters.order[:, step], -1)
        change(now == BRIGHTNESS, functional.adjust_brightness, parameters.brightness)
        change(now == CONTRAST, functional.adjust_contrast, parameters.contrast)
        change(now == SATURATION, functional.adjust_saturation, parameters.saturation)
        change(now == HUE, functional.adjust_hue, parameters.hue)
    change(parameters.grayscale, functional.rgb_to_grayscale)
    change(parameters.blur, partial(functional.gaussian_blur, kernel_size=spec.kernel_size), parameters.sigma)
    change(parameters.solarize, partial(functional.solarize, threshold=spec.solarize_threshold))
    return view
