"""Images of any sizes in one buffer, and what images must be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class RaggedImages:
    """Images of different sizes, one after the other in one flat buffer, without padding.

    Image i is ``pixels[offsets[i]:]``, its first ``channels * heights[i] * widths[i]`` values read as [C, H, W]. Make
    one with ``RaggedImages.pack(images)``; ``to`` and ``pin_memory`` let loaders and Lightning move it like a tensor.

    Attributes:
        pixels: uint8, or float32 in [0, 1]; one axis; on any device.
        offsets: Where each image begins in ``pixels``, int64 [B]; numpy, since crops are drawn on the host (host
            tensors are taken and become it).
        heights: In pixels, int64 [B], each at least 1.
        widths: Likewise.
        channels: The same for all.

    Raises:
        TypeError: Sizes or offsets are on a device.
        ValueError: Sizes and offsets do not describe images inside the buffer.
    """

    pixels: Tensor
    offsets: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("offsets", "heights", "widths"):
            object.__setattr__(self, name, _on_host(name, getattr(self, name)))
        numbers = [len(table) for table in (self.offsets, self.heights, self.widths)]
        if self.pixels.ndim != 1 or self.channels < 1 or len(set(numbers)) != 1:
            raise ValueError(
                "Ragged images have one flat buffer and as many offsets as heights and widths, but got pixels of shape "
                f"{list(self.pixels.shape)} and {numbers} of these. RaggedImages.pack(images) makes them."
            )
        if len(self) and min(self.heights.min(), self.widths.min()) < 1:
            raise ValueError("An image without pixels has no views. Leave it out when the images are packed.")
        end = (self.offsets + self.channels * self.heights * self.widths).max(initial=0)
        if self.offsets.min(initial=0) < 0 or end > len(self.pixels):
            raise ValueError(
                f"An image lies outside its buffer of {len(self.pixels)} values: images of {self.channels} channels "
                f"begin at {self.offsets.min()} and end at {end}. RaggedImages.pack(images) lays them out."
            )

    @classmethod
    def pack(cls, images: Sequence[Tensor]) -> "RaggedImages":
        """Copy images [C, H, W] of one dtype and number of channels, at least one, into one buffer.

        Raises:
            ValueError: There is none, or they differ in dtype or channels, or one is not [C, H, W].
        """
        kinds = {(image.dtype, image.ndim, image.shape[0] if image.ndim else 0) for image in images}
        if len(kinds) != 1 or images[0].ndim != 3:
            raise ValueError(
                f"Images that are packed together are [C, H, W] of one dtype and number of channels C, but got "
                f"{sorted({f'{image.dtype} {list(image.shape)}' for image in images}) or 'none at all'}."
            )
        heights = np.array([image.shape[1] for image in images])
        widths = np.array([image.shape[2] for image in images])
        channels = images[0].shape[0]
        sizes = channels * heights * widths
        pixels = torch.cat([image.reshape(-1) for image in images])
        return cls(pixels, sizes.cumsum(0) - sizes, heights, widths, channels)

    @classmethod
    def of_one_size(cls, images: Tensor) -> "RaggedImages":
        """The same images [B, C, H, W] as this class sees them; copied only if they are not contiguous."""
        batch, channels, height, width = images.shape
        offsets = np.arange(batch) * (channels * height * width)
        return cls(images.contiguous().view(-1), offsets, np.full(batch, height), np.full(batch, width), channels)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, row: int) -> Tensor:
        """One image [C, H, W], a view into the buffer."""
        shape = self.channels, int(self.heights[row]), int(self.widths[row])
        start = int(self.offsets[row])
        return self.pixels[start : start + shape[0] * shape[1] * shape[2]].view(shape)

    def stacked(self) -> Tensor:
        """Images of one size as [B, C, H, W]; not copied where they already lie one after the other.

        Raises:
            RuntimeError: Their sizes differ.
        """
        size = self.channels * int(self.heights[0]) * int(self.widths[0])
        if np.array_equal(self.offsets, np.arange(len(self)) * size):
            return self.pixels[: len(self) * size].view(len(self), *self[0].shape)
        return torch.stack([self[row] for row in range(len(self))])

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.pixels.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the pixels."""
        return self.pixels.dtype

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "RaggedImages":
        """The pixels moved to a device; sizes and offsets stay on the host."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "RaggedImages":
        """The pixels in page-locked memory, from where they reach a GPU without waiting."""
        return replace(self, pixels=self.pixels.pin_memory())


Images = Tensor | RaggedImages
"""uint8, or float32 in [0, 1]: [B, C, H, W], or ragged."""


def as_ragged(images: Any) -> RaggedImages:
    """Check images and bring them into the one form that backends read.

    Raises:
        TypeError: Neither a tensor nor ragged, or neither uint8 nor float32.
        ValueError: Not [B, C, H, W] with at least one pixel, or floats above 1 or below 0 (on a GPU, which is not
            waited for, that failure shows as a device-side assertion).
    """
    if not isinstance(images, Tensor | RaggedImages) or images.dtype not in (torch.uint8, torch.float32):
        kind = type(images).__name__
        got = f"a {images.dtype} {kind}" if isinstance(images, Tensor | RaggedImages) else f"a {kind}"
        raise TypeError(
            f"Views are made of uint8 images as decoded, or of float32 images in [0, 1], but got {got}. Other floats "
            "become float32 by images.float(), other integers by dividing by their largest value."
        )
    if isinstance(images, Tensor) and (images.ndim != 4 or 0 in images.shape[1:]):
        raise ValueError(
            f"Views are made of images [B, C, H, W], but these have shape {list(images.shape)}. {_advice(images)}"
        )
    if isinstance(images, Tensor) and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        raise ValueError(
            f"These images have shape {list(images.shape)}. The channels come second: images.permute(0, 3, 1, 2)."
        )
    if images.dtype == torch.float32:
        _check_range(images if isinstance(images, Tensor) else images.pixels)
    return images if isinstance(images, RaggedImages) else RaggedImages.of_one_size(images)


def _on_host(name: str, table: Any) -> npt.NDArray[np.int64]:
    if isinstance(table, Tensor) and table.device.type != "cpu":
        raise TypeError(
            f"The {name} of ragged images are on {table.device}, but crops are drawn on the host: only the pixels go "
            "to a device. RaggedImages.to moves them alone."
        )
    return np.asarray(table, dtype=np.int64)


def _check_range(pixels: Tensor) -> None:
    rule = "Float images are in [0, 1]. Divide images of 0..255 by 255, or leave them uint8; undo a normalisation."
    if pixels.numel() == 0:
        return
    inside = (pixels >= 0).logical_and_(pixels <= 1).all()
    if pixels.device.type == "cpu":
        if not inside:
            raise ValueError(f"{rule} These reach from {pixels.min().item():g} to {pixels.max().item():g}.")
    else:
        torch._assert_async(inside, rule)  # reading the answer here would wait for the device


def _advice(images: Tensor) -> str:
    if images.ndim == 3:
        return "For a single image add the batch axis: images[None]; images of several sizes go by RaggedImages.pack."
    return "Stack images of one size along a new first axis; images of several sizes go by RaggedImages.pack."
