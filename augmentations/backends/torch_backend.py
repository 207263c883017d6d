"""Programs rendered by batched torch functions, on any device: the reference for the other backends."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from contrastive.augmentations import functional
from contrastive.augmentations.images import RaggedImages
from contrastive.augmentations.program import Code, Program, Slot

if TYPE_CHECKING:
    from contrastive.augmentations.normalize import Normalize


def render(images: RaggedImages, program: Program, normalize: "Normalize | None", out: Tensor) -> None:
    """Write each image's view.

    Args:
        images: On any device.
        program: For these images.
        normalize: Applied last; None leaves the views in [0, 1].
        out: [B, C, *program.size], of any float dtype and memory format, on the images' device.
    """
    view = _resampled(images, program)
    for slot in program.slots:
        for code in slot.may_be:
            _apply(view, slot, code)
    out.copy_(view if normalize is None else normalize(view))


def _resampled(images: RaggedImages, program: Program) -> Tensor:
    """The windows of the resized boxes, float32 [B, C, *size]; images of one size together."""
    view = torch.empty(len(images), images.channels, *program.size, device=images.device)
    sides = np.stack([images.heights, images.widths], axis=1)
    for height, width in np.unique(sides, axis=0):
        rows = np.flatnonzero((sides == (height, width)).all(axis=1))
        pixels = images.stacked() if len(rows) == len(images) else torch.stack([images[row] for row in rows.tolist()])

        def here(values: npt.NDArray[Any], rows: npt.NDArray[np.int64] = rows) -> Tensor:
            return _to(values[rows], images.device)

        resampled = functional.resample(
            functional.to_float(pixels) if pixels.dtype == torch.uint8 else pixels,
            top=here(program.top),
            left=here(program.left),
            height=here(program.height),
            width=here(program.width),
            grid=(here(program.grid_height), here(program.grid_width)),
            window=(here(program.window_top), here(program.window_left)),
            size=program.size,
            flip=here(program.flip),
            bicubic=program.bicubic,
        )
        view.index_copy_(0, _to(rows, images.device), resampled)
    return view


def _apply(view: Tensor, slot: Slot, code: Code) -> None:
    """One operation on the images that have it in this slot; the others pay nothing."""
    operations: dict[Code, Callable[..., Tensor]] = {
        Code.BRIGHTNESS: functional.adjust_brightness,
        Code.CONTRAST: functional.adjust_contrast,
        Code.SATURATION: functional.adjust_saturation,
        Code.HUE: functional.adjust_hue,
        Code.GRAYSCALE: lambda images, _: functional.rgb_to_grayscale(images),
        Code.BLUR: partial(functional.gaussian_blur, kernel_size=2 * slot.radius + 1),
        Code.SOLARIZE: functional.solarize,
    }
    rows = np.flatnonzero(slot.codes == code)
    if len(rows):
        places = _to(rows, view.device)
        view.index_copy_(0, places, operations[code](view.index_select(0, places), _to(slot.values[rows], view.device)))


def _to(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)
