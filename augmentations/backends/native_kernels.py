"""The native backend's inner loops, compiled by Numba for the machine's own CPU when first used.

A view is worked on as float32 planes [C, P], P = height x width, that stay in the core's cache from the first read of
the image to the last write of the view. Loops over pixels are short, with unit stride and without branches: such loops
become vector instructions. A view that lost its colour is one plane from there on.

Numba keeps the machine code on disk and makes it anew when this file changes. It does not notice when the columns and
codes change that are imported here: then touch this file.
"""

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt

from contrastive.augmentations.program import (
    FLIP,
    GRID_HEIGHT,
    GRID_WIDTH,
    HEIGHT,
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    LEFT,
    OFFSET,
    SLOTS,
    TOP,
    WIDTH,
    WINDOW_LEFT,
    WINDOW_TOP,
    Code,
)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Pixels = npt.NDArray[Any]  # uint8 or float32
Indices = npt.NDArray[np.uint32]  # unsigned, since Numba tests others for being negative
Floats = npt.NDArray[np.float32]

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
"""What views are written as; the halves as their bits, for Numba has no such numbers on CPUs."""

ZERO, ONE, TWO, THREE, FOUR, SIX = (np.float32(number) for number in (0, 1, 2, 3, 4, 6))
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
HALF, HALF_BITS = np.float32(0.5), np.uint32(0x3F000000)
SMALLEST = np.finfo(np.float32).tiny
NEGLIGIBLE = 1e-9  # a weight that float32 sums do not show


def compiled(
    *, inline: bool = False, literally: bool = False, keep: bool = False
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Have Numba compile a function.

    Args:
        inline: Into each caller: for what is called for each row or pixel.
        literally: Every rounding happens as written. Else sums may be fused and reordered, the same way at every call.
        keep: The machine code, with that of all it calls, on disk, in the package's folder or else in the user's.
    """
    freedoms = set() if literally else {"contract", "reassoc", "nsz"}

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        plain = inspect.unwrap(function)  # without the type checks that tests wrap functions in
        kernel = numba.njit(nogil=True, error_model="numpy", fastmath=freedoms, forceinline=inline)(plain)
        if keep:
            try:
                kernel.enable_caching()
            except RuntimeError:
                warnings.warn(
                    "The augmentations are compiled anew in every process, for neither the folder of the package nor "
                    "the user's cache can be written to. Set NUMBA_CACHE_DIR to a folder that can.",
                    stacklevel=2,
                )
        return kernel

    return decorate


@compiled(keep=True)
def render_images(
    pixels: Pixels,
    largest: np.float32,
    table: npt.NDArray[np.int32],
    radii: npt.NDArray[np.int64],
    size: tuple[int, int],
    bicubic: bool,
    mean: Floats,
    inverse_std: Floats,
    out: npt.NDArray[Any],
    written_as: int,
    channels_last: bool,
) -> None:
    """Render one view of each image.

    Args:
        pixels: All images, uint8 or float32, one axis.
        largest: The value in ``pixels`` that is 1 in a view.
        table: The program as ``program.pack`` gives it, int32 [B, 13 + 2 S].
        radii: Of the slots' blurs, [S].
        size: Height and width of the views.
        bicubic: Else bilinear.
        mean: Subtracted from each channel, [C].
        inverse_std: Each channel is multiplied by this afterwards, [C].
        out: The views one after the other, one axis; float32, or uint16 for the bits of halves.
        written_as: FLOAT32, BFLOAT16 or FLOAT16.
        channels_last: Whether each view is written as [H, W, C], else [C, H, W].
    """
    height, width = size
    num_slots = len(radii)
    planes = np.empty((len(mean), height * width), np.float32)
    scratch = np.empty(height * width, np.float32)
    values = table.view(np.float32)
    for image in range(len(table)):
        row = table[image]
        resample(pixels, largest, row, height, width, bicubic, planes)
        codes = row[SLOTS : SLOTS + num_slots]
        num_planes = apply_slots(codes, values[image, SLOTS + num_slots :], radii, planes, width, scratch)
        view = out[image * planes.size : (image + 1) * planes.size]
        write(planes[:num_planes], mean, inverse_std, view, written_as, channels_last)


@compiled()
def resample(
    pixels: Pixels,
    largest: np.float32,
    row: npt.NDArray[np.int32],
    height: int,
    width: int,
    bicubic: bool,
    planes: Floats,
) -> None:
    """Resize the box and keep the window: for each row of the view mix rows of the image, then columns."""
    stride = int(row[IMAGE_WIDTH])
    rows, row_weights = find_taps(row[HEIGHT], row[GRID_HEIGHT], row[WINDOW_TOP], height, False, bicubic)
    columns, column_weights = find_taps(row[WIDTH], row[GRID_WIDTH], row[WINDOW_LEFT], width, row[FLIP] == 1, bicubic)
    begin = min(columns[0], columns[-1])  # mirrored, the view's last column comes from the image's first
    mixed = np.empty(max(columns[0], columns[-1]) + len(column_weights) - begin, np.float32)
    for column in range(width):
        columns[column] -= begin
    offset = (np.int64(row[OFFSET + 1]) << 32) + np.uint32(row[OFFSET])
    views = planes.reshape((len(planes), height, width))
    for channel in range(len(planes)):
        corner = offset + (channel * np.int64(row[IMAGE_HEIGHT]) + row[TOP]) * stride + row[LEFT] + begin
        for output in range(height):
            upper = pixels[corner + rows[output] * stride :]
            # Two are mixed whenever images are enlarged: the case to be fast in.
            if len(row_weights) == 2:
                mix_two_rows(upper, upper[stride:], row_weights[0, output], row_weights[1, output], largest, mixed)
            else:
                mix_rows(upper, stride, row_weights[:, output], largest, mixed)
            if len(column_weights) == 2:
                mix_two_columns(mixed, columns, column_weights[0], column_weights[1], views[channel, output])
            else:
                mix_columns(mixed, columns, column_weights, views[channel, output])


@compiled()
def find_taps(length: int, grid: int, window: int, size: int, mirror: bool, bicubic: bool) -> tuple[Indices, Floats]:
    """Which pixels of a box each pixel of the view mixes along one axis, and with what weights.

    The filter is a triangle or Keys' cubic round the centre of the view's pixel, stretched when the box shrinks.

    Returns:
        The first pixel, [size], and the weights of it and of those after it, [T, size].
    """
    scale = length / grid
    stretch = max(scale, 1.0)
    support = 2 * stretch if bicubic else stretch
    num_taps = min(math.ceil(2 * support), length)
    first = np.empty(size, np.uint32)
    weights = np.empty((num_taps, size), np.float32)
    exact = np.empty(num_taps, np.float64)
    for output in range(size):
        center = (window + (size - 1 - output if mirror else output) + 0.5) * scale
        start = min(int(max(center - support + 0.5, 0.0)), length - num_taps)
        first[output] = start
        total = 0.0
        for tap in range(num_taps):
            distance = abs(start + tap + 0.5 - center) / stretch
            exact[tap] = cubic(distance) if bicubic else max(1.0 - distance, 0.0)
            total += exact[tap]
        for tap in range(num_taps):
            weights[tap, output] = exact[tap] / total
    return first, weights


@compiled(inline=True)
def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.5: Pillow's, and torch's when it antialiases."""
    if distance < 1:
        return (1.5 * distance - 2.5) * distance * distance + 1.0
    if distance < 2:
        return ((2.5 - 0.5 * distance) * distance - 4.0) * distance + 2.0
    return 0.0


@compiled(inline=True)
def mix_two_rows(
    upper: Pixels, lower: Pixels, weight: np.float32, lower_weight: np.float32, largest: np.float32, mixed: Floats
) -> None:
    for column in range(len(mixed)):
        total = weight * np.float32(upper[column]) + lower_weight * np.float32(lower[column])
        mixed[column] = total / largest


@compiled()
def mix_rows(upper: Pixels, stride: int, weights: Floats, largest: np.float32, mixed: Floats) -> None:
    """Weighted sum of as many rows as there are weights, scaled to [0, 1]."""
    for column in range(len(mixed)):
        mixed[column] = weights[0] * np.float32(upper[column])
    for tap in range(1, len(weights)):
        lower, weight = upper[tap * stride :], weights[tap]
        for column in range(len(mixed)):
            mixed[column] += weight * np.float32(lower[column])
    for column in range(len(mixed)):
        mixed[column] /= largest  # not in the weights: a pixel that is mixed with nothing stays exact


@compiled(inline=True)
def mix_two_columns(mixed: Floats, first: Indices, weight: Floats, after_weight: Floats, view: Floats) -> None:
    after = mixed[1:]
    for column in range(len(view)):
        place = first[column]
        view[column] = clamp(weight[column] * mixed[place] + after_weight[column] * after[place])


@compiled()
def mix_columns(mixed: Floats, first: Indices, weights: Floats, view: Floats) -> None:
    """Weighted sums of as many neighbours in a row as there are weights, kept in [0, 1]."""
    for column in range(len(view)):
        view[column] = ZERO
    for tap in range(len(weights)):
        after, weight = mixed[tap:], weights[tap]
        for column in range(len(view)):
            view[column] += weight[column] * after[first[column]]
    for column in range(len(view)):
        view[column] = clamp(view[column])


@compiled()
def apply_slots(
    codes: npt.NDArray[np.int32],
    values: Floats,
    radii: npt.NDArray[np.int64],
    planes: Floats,
    width: int,
    scratch: Floats,
) -> int:
    """Run the pixel operations of one view in their order, in place.

    Returns:
        How many planes hold the view: fewer than it has channels when all channels equal the first.
    """
    num_planes = len(planes)
    luma_of_one = ONE  # the luma of a pixel whose channels are all 1
    for slot in range(len(codes)):
        code, value = codes[slot], values[slot]
        live = planes[:num_planes]
        if code == Code.BRIGHTNESS:
            scale_brightness(live, value)
        elif code == Code.CONTRAST:
            adjust_contrast(live, value, luma_of_one, width)
        elif code == Code.SATURATION and num_planes > 1:
            adjust_saturation(live, value)
        elif code == Code.SATURATION:
            scale_brightness(live, value + (ONE - value) * luma_of_one)
        elif code == Code.HUE and num_planes > 1:
            adjust_hue(live, value)
        elif code == Code.GRAYSCALE and num_planes > 1:
            replace_first_by_luma(live)
            num_planes = 1
            luma_of_one = RED + GREEN + BLUE
        elif code == Code.GRAYSCALE:
            scale_brightness(live, luma_of_one)
        elif code == Code.BLUR:
            gaussian_blur(live, value, radii[slot], width, scratch)
        elif code == Code.SOLARIZE:
            solarize(live, value)
    return num_planes


@compiled(inline=True)
def clamp(value: np.float32) -> np.float32:
    return min(max(value, ZERO), ONE)


@compiled(inline=True)
def luma(red: np.float32, green: np.float32, blue: np.float32) -> np.float32:
    return RED * red + GREEN * green + BLUE * blue


@compiled()
def scale_brightness(planes: Floats, factor: np.float32) -> None:
    for channel in range(len(planes)):
        plane = planes[channel]
        for pixel in range(len(plane)):
            plane[pixel] = clamp(plane[pixel] * factor)


@compiled()
def adjust_contrast(planes: Floats, factor: np.float32, luma_of_one: np.float32, width: int) -> None:
    num_pixels = planes.shape[1]
    total = np.float64(0)
    for start in range(0, num_pixels, width):
        stop = start + width  # float32 in a row, float64 over rows
        if len(planes) == 1:
            total += luma_of_one * sum_of(planes[0, start:stop])
        else:
            total += sum_of_luma(planes[0, start:stop], planes[1, start:stop], planes[2, start:stop])
    shift = np.float32((1.0 - factor) * total / num_pixels)
    for channel in range(len(planes)):
        plane = planes[channel]
        for pixel in range(num_pixels):
            plane[pixel] = clamp(plane[pixel] * factor + shift)


@compiled(inline=True)
def sum_of(values: Floats) -> np.float32:
    total = ZERO
    for pixel in range(len(values)):
        total += values[pixel]
    return total


@compiled(inline=True)
def sum_of_luma(reds: Floats, greens: Floats, blues: Floats) -> np.float32:
    total = ZERO
    for pixel in range(len(reds)):
        total += luma(reds[pixel], greens[pixel], blues[pixel])
    return total


@compiled()
def adjust_saturation(planes: Floats, factor: np.float32) -> None:
    reds, greens, blues = planes[0], planes[1], planes[2]
    for pixel in range(len(reds)):
        red, green, blue = reds[pixel], greens[pixel], blues[pixel]
        grey = (ONE - factor) * luma(red, green, blue)
        reds[pixel] = clamp(red * factor + grey)
        greens[pixel] = clamp(green * factor + grey)
        blues[pixel] = clamp(blue * factor + grey)


@compiled()
def adjust_hue(planes: Floats, shift: np.float32) -> None:
    """Turn the hue, in sixths of the circle, by at most half of it."""
    reds, greens, blues = planes[0], planes[1], planes[2]
    for pixel in range(len(reds)):
        red, green, blue = reds[pixel], greens[pixel], blues[pixel]
        most, least = max(max(red, green), blue), min(min(red, green), blue)
        chroma = most - least
        inverse = ONE / max(chroma, SMALLEST)  # a grey pixel has no hue: any will do, but not NaN
        from_green = TWO + (blue - red) * inverse
        from_blue = FOUR + (red - green) * inverse
        hue = (green - blue) * inverse if most == red else (from_green if most == green else from_blue)
        hue += SIX * shift
        hue = hue + SIX if hue < ZERO else hue
        hue = hue - SIX if hue >= SIX else hue
        # How much of the chroma a hue gives to each channel, a trapezium round the circle.
        reds[pixel] = least + chroma * clamp(abs(hue - THREE) - ONE)
        greens[pixel] = least + chroma * clamp(TWO - abs(hue - TWO))
        blues[pixel] = least + chroma * clamp(TWO - abs(hue - FOUR))


@compiled()
def replace_first_by_luma(planes: Floats) -> None:
    reds, greens, blues = planes[0], planes[1], planes[2]
    for pixel in range(len(reds)):
        reds[pixel] = luma(reds[pixel], greens[pixel], blues[pixel])


@compiled()
def solarize(planes: Floats, threshold: np.float32) -> None:
    for channel in range(len(planes)):
        plane = planes[channel]
        for pixel in range(len(plane)):
            plane[pixel] = ONE - plane[pixel] if plane[pixel] >= threshold else plane[pixel]


@compiled()
def gaussian_blur(planes: Floats, sigma: np.float32, radius: int, width: int, scratch: Floats) -> None:
    """Blur rows into the scratch plane and its columns back; the borders are reflected."""
    weights = half_gaussian(sigma, radius)
    reach = len(weights) - 1
    padded = np.empty(width + 2 * reach, np.float32)
    last = len(scratch) // width - 1
    for channel in range(len(planes)):
        plane = planes[channel]
        for start in range(0, len(plane), width):
            reflect(plane[start : start + width], reach, padded)
            target = scratch[start : start + width]
            put(target, weights[0], padded[reach:])
            for distance in range(1, reach + 1):
                add_both(target, weights[distance], padded[reach - distance :], padded[reach + distance :])
        for row in range(last + 1):
            target = plane[row * width : (row + 1) * width]
            put(target, weights[0], scratch[row * width :])
            for distance in range(1, reach + 1):
                above, below = abs(row - distance), last - abs(last - row - distance)
                add_both(target, weights[distance], scratch[above * width :], scratch[below * width :])


@compiled()
def half_gaussian(sigma: np.float32, radius: int) -> Floats:
    """Weights of the centre and of one side, cut off at the radius, or where the rest is negligible."""
    exact = np.empty(radius + 1, np.float64)
    for distance in range(radius + 1):
        exact[distance] = math.exp(-0.5 * (distance / np.float64(sigma)) ** 2)
    exact /= 2 * exact.sum() - 1  # the centre is 1 before this
    reach = radius
    while exact[reach] < NEGLIGIBLE:
        reach -= 1
    return exact[: reach + 1].astype(np.float32)


@compiled(inline=True)
def reflect(row: Floats, reach: int, padded: Floats) -> None:
    width = len(row)
    for distance in range(1, reach + 1):
        padded[reach - distance] = row[distance]
        padded[reach + width - 1 + distance] = row[width - 1 - distance]
    inside = padded[reach:]
    for column in range(width):
        inside[column] = row[column]


@compiled(inline=True)
def put(target: Floats, weight: np.float32, source: Floats) -> None:
    for pixel in range(len(target)):
        target[pixel] = weight * source[pixel]


@compiled(inline=True)
def add_both(target: Floats, weight: np.float32, before: Floats, after: Floats) -> None:
    for pixel in range(len(target)):
        target[pixel] += weight * (before[pixel] + after[pixel])


@compiled()
def write(
    planes: Floats, mean: Floats, inverse_std: Floats, view: npt.NDArray[Any], written_as: int, channels_last: bool
) -> None:
    """Normalise and store; a single plane stands for all channels."""
    num_pixels, channels = planes.shape[1], len(mean)
    step = np.uint64(channels if channels_last else 1)
    for channel in range(channels):
        plane = planes[min(channel, len(planes) - 1)]
        shift, factor = mean[channel], inverse_std[channel]
        target = view[channel if channels_last else channel * num_pixels :]
        if written_as == FLOAT32:
            for pixel in range(num_pixels):
                target[np.uint64(pixel) * step] = (plane[pixel] - shift) * factor
        elif written_as == BFLOAT16:
            for pixel in range(num_pixels):
                target[np.uint64(pixel) * step] = bfloat16_bits((plane[pixel] - shift) * factor)
        else:
            for pixel in range(num_pixels):
                target[np.uint64(pixel) * step] = float16_bits((plane[pixel] - shift) * factor)


@compiled(inline=True, literally=True)
def bfloat16_bits(value: np.float32) -> np.uint16:
    """Round to the nearest, ties to even, by carrying into the bits that stay."""
    bits = np.float32(value).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@compiled(inline=True, literally=True)
def float16_bits(value: np.float32) -> np.uint16:
    """Round to the nearest, ties to even; from 65520 on infinite."""
    bits = np.float32(value).view(np.uint32)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    size = bits & np.uint32(0x7FFFFFFF)
    odd = (size >> np.uint32(13)) & np.uint32(1)
    rebiased = size - np.uint32(112 << 23)  # float32's exponents begin 112 lower
    normal = min((rebiased + np.uint32(0xFFF) + odd) >> np.uint32(13), np.uint32(0x7C00))
    # Float32 numbers from a half on are as far apart as float16's smallest: adding a half rounds to those.
    tiny = np.float32(abs(value) + HALF).view(np.uint32) - HALF_BITS
    return np.uint16(sign | (normal if size >= np.uint32(113 << 23) else tiny))
