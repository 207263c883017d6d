"""The operations that views are made of, named and parametrised as in torchvision, and how each draws its numbers.

Nothing here touches a pixel. A geometric operation moves the frame through which a view looks at its image, and a pixel
operation fills slots of the program; ``backends`` then do all of it in one pass. To add an operation that needs no
kernel of its own, subclass ``TensorOperation``.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from contrastive.augmentations.frame import Frame
from contrastive.augmentations.program import Booleans, Code, Integers, Slot
from contrastive.augmentations.randomness import Random, Uniform

_ORDERS = np.array(list(itertools.permutations((Code.BRIGHTNESS, Code.CONTRAST, Code.SATURATION, Code.HUE))))  # [24, 4]
_ATTEMPTS = 10  # of torchvision's RandomResizedCrop at a box that fits


class Operation:
    """What a view is a list of: geometric, pixel and tensor operations, and ``Normalize``."""

    num_words: ClassVar[int] = 0
    """How many random numbers an image needs."""

    def check_channels(self, channels: int) -> None:
        """Raise a ValueError if images of so many channels are not for this operation; most take any."""


class GeometricOperation(Operation, ABC):
    """Chooses which part of an image a view shows, and how large."""

    @abstractmethod
    def place(self, frame: Frame, random: Random) -> None:
        """Move the frame."""


class PixelOperation(Operation, ABC):
    """Changes the pixels where they are, with numbers of each image's own."""

    @abstractmethod
    def slots(self, random: Random) -> Sequence[Slot]:
        """What is done to each image, in order."""


class TensorOperation(Operation, ABC):
    """Any other operation on a batch, in plain torch. What stands before it and after it is still done in one pass."""

    @abstractmethod
    def apply(self, images: Tensor, random: Random) -> Tensor:
        """Change a batch.

        Args:
            images: float32 [B, C, H, W] in [0, 1], on any device. May be written to.
            random: The images' numbers, ``num_words`` of each; all that the result may depend on besides the images.

        Returns:
            float32 [B, C, h, w] in [0, 1].
        """


@dataclass(frozen=True)
class RandomResizedCrop(GeometricOperation):
    """A box of random area and shape, resized: the rule of torchvision's, ten attempts and a centred fallback.

    Attributes:
        size: Side of the result, in pixels.
        scale: Range of the box's share of the image's area, 0 < low <= high <= 1.
        ratio: Range of the box's width / height, drawn uniformly in its logarithm.
        interpolation: "bilinear" or "bicubic", both with antialiasing.

    Raises:
        ValueError: A value out of its range.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    num_words: ClassVar[int] = 6  # two attempts at area and ratio, top, left

    def __post_init__(self) -> None:
        _check_size("size", self.size)
        _check_pair("scale", self.scale, 1, "It is the crop's share of the image's area.")
        _check_pair("ratio", self.ratio, math.inf, "It is the crop's width / height.")
        _check_interpolation(self.interpolation)

    def place(self, frame: Frame, random: Random) -> None:
        """Crop and resize."""
        height, width = frame.height, frame.width  # [B]
        box_height, box_width, found = self._attempt(random.uniform[0:4], height, width)
        for block in range(1, _ATTEMPTS // 2):
            rows = np.flatnonzero(~found)
            if len(rows) == 0:
                break
            words = random.more(block, rows)
            box_height[rows], box_width[rows], found[rows] = self._attempt(words, height[rows], width[rows])
        rest = ~found
        box_height[rest], box_width[rest] = self._fallback(height[rest], width[rest])
        free_height, free_width = height - box_height, width - box_width
        frame.crop(
            top=np.where(found, _below(random.uniform[4], free_height + 1), free_height // 2),
            left=np.where(found, _below(random.uniform[5], free_width + 1), free_width // 2),
            height=box_height,
            width=box_width,
        )
        frame.resize(np.full_like(height, self.size), np.full_like(width, self.size), self.interpolation, self)

    def _attempt(self, words: Uniform, height: Integers, width: Integers) -> tuple[Integers, Integers, Booleans]:
        """Two attempts: the sides of the first box that fits, and whether one does."""
        area = (height * width) * _between(words[0::2], *self.scale)  # [2, B]
        ratio = np.exp(_between(words[1::2], math.log(self.ratio[0]), math.log(self.ratio[1])))
        widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        box_height = np.where(fits[0], heights[0], heights[1]).astype(np.int64)
        box_width = np.where(fits[0], widths[0], widths[1]).astype(np.int64)
        return box_height, box_width, fits[0] | fits[1]

    def _fallback(self, height: Integers, width: Integers) -> tuple[Integers, Integers]:
        """The largest box of an allowed ratio."""
        low, high = self.ratio
        shape = width / height
        box_height = np.where(shape < low, np.rint(width / low), height)
        box_width = np.where(shape > high, np.rint(height * high), width)
        return box_height.astype(np.int64), box_width.astype(np.int64)


@dataclass(frozen=True)
class Resize(GeometricOperation):
    """The shorter side to ``size`` pixels at the same shape, as torchvision rounds it.

    Attributes:
        size: In pixels.
        interpolation: "bilinear" or "bicubic", both with antialiasing.

    Raises:
        ValueError: A value out of its range.
    """

    size: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        _check_size("size", self.size)
        _check_interpolation(self.interpolation)

    def place(self, frame: Frame, random: Random) -> None:
        """Resize."""
        short, long = np.minimum(frame.height, frame.width), np.maximum(frame.height, frame.width)
        longer = (self.size * long / short).astype(np.int64)  # cut off, not rounded
        height = np.where(frame.height <= frame.width, self.size, longer)
        width = np.where(frame.height <= frame.width, longer, self.size)
        frame.resize(height, width, self.interpolation, self)


@dataclass(frozen=True)
class CenterCrop(GeometricOperation):
    """The middle of the image, where torchvision finds it; images must not be smaller.

    Attributes:
        size: Side of the result, in pixels.

    Raises:
        ValueError: ``size`` is not positive.
    """

    size: int

    def __post_init__(self) -> None:
        _check_size("size", self.size)

    def place(self, frame: Frame, random: Random) -> None:
        """Crop.

        Raises:
            ValueError: An image side is shorter than ``size``.
        """
        small = np.flatnonzero(np.minimum(frame.height, frame.width) < self.size)
        if len(small):
            height, width = frame.height[small[0]], frame.width[small[0]]
            raise ValueError(
                f"Images of {height} x {width} pixels are smaller than the view's {self.size} x {self.size}. "
                "Make the views smaller, or put Resize before CenterCrop."
            )
        size = np.full_like(frame.height, self.size)
        top, left = (np.rint((side - self.size) / 2).astype(np.int64) for side in (frame.height, frame.width))
        frame.crop(top, left, size, size)


@dataclass(frozen=True)
class RandomHorizontalFlip(GeometricOperation):
    """Left and right mirrored. It costs nothing, wherever in the list it stands.

    Attributes:
        p: Probability.

    Raises:
        ValueError: ``p`` is no probability.
    """

    p: float = 0.5

    num_words: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def place(self, frame: Frame, random: Random) -> None:
        """Flip."""
        frame.mirror(random.uniform[0] < self.p)


@dataclass(frozen=True)
class ColorJitter(PixelOperation):
    """Brightness, contrast, saturation and hue, in an order drawn for each image.

    Attributes:
        brightness: Factors are uniform in [max(0, 1 - brightness), 1 + brightness]; 0 leaves brightness out.
        contrast: Likewise.
        saturation: Likewise.
        hue: Shifts are uniform in [-hue, hue], in full circles; at most 0.5; 0 leaves hue out.
        p: Probability that an image is jittered at all.

    Raises:
        ValueError: A value out of its range.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 1.0

    num_words: ClassVar[int] = 6  # whether, order, and four numbers

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            meaning = "It is how far a factor strays from 1; 0 leaves the image as it is."
            _check_range(name, getattr(self, name), 0, math.inf, meaning)
        _check_range("hue", self.hue, 0, 0.5, "It is in full circles, and half a circle either way reaches every hue.")
        _check_probability(self.p)

    def check_channels(self, channels: int) -> None:
        """RGB; or grey, where neither saturation nor hue is jittered."""
        if channels == 1 and self.saturation == self.hue == 0:
            return
        what = "saturation and hue" if channels == 1 else "colours"
        _check_rgb(self, channels, f"{what} of images", "crops, flips and GaussianBlur")

    def slots(self, random: Random) -> Sequence[Slot]:
        """One for each of the four that is not left out."""
        whether, order = random.uniform[0:2]
        strengths = {
            Code.BRIGHTNESS: self.brightness,
            Code.CONTRAST: self.contrast,
            Code.SATURATION: self.saturation,
            Code.HUE: self.hue,
        }
        used = tuple(code for code, strength in strengths.items() if strength > 0)
        left_in = np.isin(np.arange(len(Code)), used)
        values = np.zeros((len(Code), len(order)), dtype=np.float32)
        for number, (code, strength) in enumerate(strengths.items(), start=2):
            low, high = (-strength, strength) if code is Code.HUE else (max(0.0, 1 - strength), 1 + strength)
            values[code] = _between(random.uniform[number], low, high)
        codes = _ORDERS[_below(order, len(_ORDERS))]  # [B, 4]
        codes = codes[left_in[codes]].reshape(len(order), len(used)).T  # [S, B]
        images = np.arange(len(order))
        jittered = whether < self.p
        return [Slot(np.where(jittered, now, Code.NOTHING), values[now, images], used) for now in codes]


@dataclass(frozen=True)
class RandomGrayscale(PixelOperation):
    """Every channel the luma 0.2989 R + 0.587 G + 0.114 B.

    Attributes:
        p: Probability.

    Raises:
        ValueError: ``p`` is no probability.
    """

    p: float = 0.1

    num_words: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def check_channels(self, channels: int) -> None:
        """RGB."""
        _check_rgb(self, channels, "the colours of images", "the other operations")

    def slots(self, random: Random) -> Sequence[Slot]:
        """One."""
        return [_slot(random.uniform[0] < self.p, Code.GRAYSCALE, np.zeros_like(random.uniform[0]))]


@dataclass(frozen=True)
class GaussianBlur(PixelOperation):
    """A Gaussian of each image's own width, cut off at ``kernel_size``; the border is reflected.

    Attributes:
        kernel_size: Odd, in pixels, less than twice the view's side.
        sigma: Range of the standard deviation, in pixels.
        p: Probability.

    Raises:
        ValueError: A value out of its range.
    """

    kernel_size: int
    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 1.0

    num_words: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"A blur kernel of {self.kernel_size} pixels has no middle. Choose an odd kernel_size.")
        _check_pair("sigma", self.sigma, math.inf, "For no blur leave GaussianBlur out, or set p=0.")
        _check_probability(self.p)

    def slots(self, random: Random) -> Sequence[Slot]:
        """One."""
        sigma = _between(random.uniform[1], *self.sigma)
        return [_slot(random.uniform[0] < self.p, Code.BLUR, sigma, self.kernel_size // 2)]


@dataclass(frozen=True)
class RandomSolarize(PixelOperation):
    """The pixels at or above a threshold inverted.

    Attributes:
        threshold: In [0, 1].
        p: Probability.

    Raises:
        ValueError: A value out of its range.
    """

    threshold: float = 0.5
    p: float = 0.5

    num_words: ClassVar[int] = 1

    def __post_init__(self) -> None:
        meaning = "Pixels are in [0, 1] here; divide a threshold for uint8 by 255."
        _check_range("threshold", self.threshold, 0, 1, meaning)
        _check_probability(self.p)

    def check_channels(self, channels: int) -> None:
        """RGB or grey."""
        if channels != 1:
            _check_rgb(self, channels, "the tones of images", "crops, flips and GaussianBlur")

    def slots(self, random: Random) -> Sequence[Slot]:
        """One."""
        threshold = np.full_like(random.uniform[0], self.threshold)
        return [_slot(random.uniform[0] < self.p, Code.SOLARIZE, threshold)]


def _slot(drawn: Booleans, code: Code, values: Uniform, radius: int = 0) -> Slot:
    return Slot(np.where(drawn, code, Code.NOTHING), values.astype(np.float32), (code,), radius)


def _between(uniform: Uniform, low: float, high: float) -> Uniform:
    return low + (high - low) * uniform


def _below(uniform: Uniform, count: Integers | int) -> Integers:
    """An integer in 0 <= n < count. 32 random bits and a count < 2**21 make the product exact, so it stays below."""
    return np.floor(uniform * count).astype(np.int64)


def _check_rgb(operation: Operation, channels: int, what: str, instead: str) -> None:
    if channels != 3:
        raise ValueError(
            f"{operation} changes {what} with 3 channels, but these have {channels}. Leave it out of the view; images "
            f"of {channels} channel{'s' * (channels > 1)} take {instead}."
        )


def _check_size(name: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"{name} is the side of a view in pixels, so at least 1, but it is {size}.")


def _check_interpolation(name: str) -> None:
    if name not in ("bilinear", "bicubic"):
        raise ValueError(f'interpolation="{name}" is not known. Choose "bilinear" or "bicubic".')


def _check_probability(p: float) -> None:
    _check_range("p", p, 0, 1, "It is a probability: 0 never, 1 always.")


def _check_range(name: str, value: float, least: float, most: float, meaning: str) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name}={value} is not in [{least:g}, {most:g}]. {meaning}")


def _check_pair(name: str, pair: tuple[float, float], most: float, meaning: str) -> None:
    low, high = pair
    if not 0 < low <= high <= most:
        raise ValueError(f"{name}=({low}, {high}) is no range 0 < low <= high <= {most:g}. {meaning}")
