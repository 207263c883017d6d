"""Draws what happens to each image: a pure function of (seed, epoch, index, view), for a whole batch at once.

The generator is Philox with the seed as its key, so no state is kept, read or moved. Each parameter owns one word of
the stream, whatever the others are set to: turning the blur off leaves every crop as it was.

Drawing is on the host. The numbers of a batch are few, and knowing here who gets which operation lets the others skip
it without the device being asked.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contrastive.augmentations.philox import philox4x32
from contrastive.augmentations.view_spec import ViewSpec

Uniform = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_ORDERS = np.array(list(itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE))))  # [24, 4]
_ATTEMPTS = 10  # of torchvision's RandomResizedCrop at a box that fits
_BLOCKS = 9  # of four words: 5 for the attempts, then one a line in draw_parameters


@dataclass(frozen=True)
class Parameters:
    """What happens to each of B images in one view; numpy arrays [B], ``order`` [B, 4]."""

    top: Integers
    left: Integers
    height: Integers
    width: Integers
    flip: Booleans
    jitter: Booleans
    order: Integers  # which of BRIGHTNESS, CONTRAST, SATURATION, HUE comes first, second, ...
    brightness: Uniform
    contrast: Uniform
    saturation: Uniform
    hue: Uniform
    grayscale: Booleans
    blur: Booleans
    sigma: Uniform
    solarize: Booleans


def draw_parameters(
    spec: ViewSpec, *, seed: int, epoch: int, index: Integers, view: int, height: int, width: int
) -> Parameters:
    """Draw one view of every image.

    Args:
        spec: The distribution.
        seed: 0 <= seed < 2**64.
        epoch: 0 <= epoch < 2**32.
        index: The images' numbers in their data set, int64 [B], not negative.
        view: The view's number, 0 <= view < 2**16.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
    """
    words = _uniform_words(seed, epoch, index, view)  # [36, B]
    attempts, rest = words[: 2 * _ATTEMPTS], words[2 * _ATTEMPTS :]
    box_height, box_width, fits = _crop_sizes(spec, attempts[0::2], attempts[1::2], height, width)
    at_top, at_left, flip, jitter = rest[0:4]
    brightness, contrast, saturation, hue = rest[4:8]
    order, grayscale, blur, sigma = rest[8:12]
    solarize = rest[12]
    return Parameters(
        # A box that no attempt found is centred.
        top=np.where(fits, _below(at_top, height - box_height + 1), (height - box_height) // 2),
        left=np.where(fits, _below(at_left, width - box_width + 1), (width - box_width) // 2),
        height=box_height,
        width=box_width,
        flip=flip < spec.p_flip,
        jitter=jitter < spec.p_jitter,
        order=_ORDERS[_below(order, len(_ORDERS))],
        brightness=_between(brightness, max(0.0, 1 - spec.brightness), 1 + spec.brightness),
        contrast=_between(contrast, max(0.0, 1 - spec.contrast), 1 + spec.contrast),
        saturation=_between(saturation, max(0.0, 1 - spec.saturation), 1 + spec.saturation),
        hue=_between(hue, -spec.hue, spec.hue),
        grayscale=grayscale < spec.p_grayscale,
        blur=blur < spec.p_blur,
        sigma=_between(sigma, *spec.blur_sigma),
        solarize=solarize < spec.p_solarize,
    )


def _uniform_words(seed: int, epoch: int, index: Integers, view: int) -> Uniform:
    """Uniform numbers in [0, 1) with 32 random bits each, [4 blocks, B]."""
    number = index.astype(np.uint64)
    block = (np.uint64(view << 16) | np.arange(_BLOCKS, dtype=np.uint64))[:, None]
    low, high = number & np.uint64(0xFFFFFFFF), number >> np.uint64(32)
    words = philox4x32(seed, (low, high, np.full(1, epoch, dtype=np.uint64), block))
    return np.stack(words, axis=1).reshape(4 * _BLOCKS, -1).astype(np.float64) * 2.0**-32


def _crop_sizes(
    spec: ViewSpec, area: Uniform, ratio: Uniform, height: int, width: int
) -> tuple[Integers, Integers, Booleans]:
    """Torchvision's rule: the first of ten attempts that fits, else the largest box of an allowed ratio.

    Args:
        spec: For scale and ratio.
        area: Uniform numbers for the attempts, [10, B].
        ratio: Likewise.
        height: Of the images.
        width: Of the images.

    Returns:
        Heights [B], widths [B], and whether an attempt did fit [B].
    """
    area = height * width * _between(area, *spec.scale)
    ratio = np.exp(_between(ratio, math.log(spec.ratio[0]), math.log(spec.ratio[1])))
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))  # [10, B]
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.argmax(0)[None]
    found: Booleans = np.logical_or.reduce(fits, axis=0)
    low, high = spec.ratio
    whole_height = round(width / low) if width / height < low else height
    whole_width = round(height * high) if width / height > high else width
    box_height = np.where(found, np.take_along_axis(heights, first, 0)[0], whole_height)
    box_width = np.where(found, np.take_along_axis(widths, first, 0)[0], whole_width)
    return box_height.astype(np.int64), box_width.astype(np.int64), found


def _between(uniform: Uniform, low: float, high: float) -> Uniform:
    return low + (high - low) * uniform


def _below(uniform: Uniform, count: Integers | int) -> Integers:
    """An integer in 0 <= n < count. 32 random bits and a count < 2**21 make the product exact, so it stays below."""
    return np.floor(uniform * count).astype(np.int64)
