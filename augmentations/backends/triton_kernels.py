"""The GPU programs of the Triton backend: one view, or one tile of a view, straight from the original pixels.

Nothing here depends on how many images a batch has or where they stand in it, and no sum is made in an order that the
scheduler chooses. What is multiplied and added with one rounding is written as ``tl.fma``. What is in capitals is known
when a kernel is compiled, and an ``if`` that asks only for such things is decided then.
"""
# ruff: noqa: N803, N806, SIM102, SIM108

from typing import no_type_check

import triton
import triton.language as tl

from contrastive.augmentations import program as columns
from contrastive.augmentations.program import Code

# Kernels read global numbers only if they are declared constant.
_OFFSET = tl.constexpr(columns.OFFSET)
_IMAGE_HEIGHT = tl.constexpr(columns.IMAGE_HEIGHT)
_IMAGE_WIDTH = tl.constexpr(columns.IMAGE_WIDTH)
_TOP = tl.constexpr(columns.TOP)
_LEFT = tl.constexpr(columns.LEFT)
_HEIGHT = tl.constexpr(columns.HEIGHT)
_WIDTH = tl.constexpr(columns.WIDTH)
_GRID_HEIGHT = tl.constexpr(columns.GRID_HEIGHT)
_GRID_WIDTH = tl.constexpr(columns.GRID_WIDTH)
_WINDOW_TOP = tl.constexpr(columns.WINDOW_TOP)
_WINDOW_LEFT = tl.constexpr(columns.WINDOW_LEFT)
_FLIP = tl.constexpr(columns.FLIP)
_SLOTS = tl.constexpr(columns.SLOTS)
_NOTHING = tl.constexpr(int(Code.NOTHING))
_BRIGHTNESS = tl.constexpr(int(Code.BRIGHTNESS))
_CONTRAST = tl.constexpr(int(Code.CONTRAST))
_SATURATION = tl.constexpr(int(Code.SATURATION))
_HUE = tl.constexpr(int(Code.HUE))
_GRAYSCALE = tl.constexpr(int(Code.GRAYSCALE))
_BLUR = tl.constexpr(int(Code.BLUR))
_SOLARIZE = tl.constexpr(int(Code.SOLARIZE))
_SUMS_AT_ONCE = tl.constexpr(32)
TILE = tl.constexpr(32)  # side of the tiles of a large view; 96 and 224 are multiples

# Triton compiles another kernel where an address is divisible by 16 or a stride is 1, and that one may add in another
# order. A view must not depend on where in memory its batch lies, so there is one kernel for all.
NEVER_SPECIALIZED = (
    *("pixels", "table", "contrasts", "blurred", "luma_sums", "scratch_rows", "scratch", "half_blurred", "out"),
    *("stride_b", "stride_c", "stride_y", "stride_x"),
)


@triton.jit
@no_type_check
def _filter(distance, BICUBIC: tl.constexpr):
    """The resampling kernel at a distance in output pixels (in input pixels when enlarging)."""
    x = tl.abs(distance)
    if BICUBIC:  # Keys' cubic with a = -1/2
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0
        weight = tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    else:
        weight = tl.maximum(1.0 - x, 0.0)
    return weight


@triton.jit
@no_type_check
def _taps(place, extent, grid, BICUBIC: tl.constexpr):
    """Which pixels of a box of ``extent`` the grid's pixels ``place`` mix, along one axis.

    Their centres (2 place + 1) extent / (2 grid) are split into whole pixels and a fraction in integers, so that floats
    hold small numbers only: boxes of thousands of pixels are as accurate as small ones.

    Returns:
        For each place its first tap: the pixel, and its distance from the centre. For all the number of taps and the
        filter's inverse stretch. For each the inverse of its weights' sum.
    """
    numerator = (2 * place + 1) * extent
    whole = numerator // (2 * grid)
    fraction = tl.div_rn((numerator - whole * (2 * grid)).to(tl.float32), (2 * grid).to(tl.float32))
    stretch = tl.maximum(tl.div_rn(extent.to(tl.float32), grid.to(tl.float32)), 1.0)
    if BICUBIC:
        reach = 2.0 * stretch
    else:
        reach = stretch
    step = tl.floor(fraction - reach + 0.5)
    first = whole + step.to(tl.int32)
    distance = step + (0.5 - fraction)
    count = tl.ceil(2.0 * reach).to(tl.int32)
    squeeze = tl.div_rn(1.0, stretch)
    total = distance * 0.0
    for tap in range(0, count):
        total += _tap(tap, first, distance, extent, squeeze, BICUBIC)[1]
    return first, distance, count, squeeze, tl.div_rn(1.0, total)


@triton.jit
@no_type_check
def _tap(tap, first, distance, extent, squeeze, BICUBIC: tl.constexpr):
    """Pixel and weight of tap number ``tap``; beyond the box it weighs nothing."""
    pixel = first + tap
    weight = _filter((distance + tap) * squeeze, BICUBIC)
    weight = tl.where((pixel >= 0) & (pixel < extent), weight, 0.0)
    return tl.minimum(tl.maximum(pixel, 0), extent - 1), weight


@triton.jit
@no_type_check
def _resample(pixels, row, y, x, VIEW_WIDTH: tl.constexpr, BICUBIC: tl.constexpr):
    """Red, green and blue of the view's pixels (y, x), two int32 vectors, before any pixel operation."""
    offset = tl.load(row + _OFFSET).to(tl.uint32, bitcast=True).to(tl.int64)
    offset += tl.load(row + _OFFSET + 1).to(tl.int64) << 32
    image_width = tl.load(row + _IMAGE_WIDTH)
    plane = tl.load(row + _IMAGE_HEIGHT).to(tl.int64) * image_width
    box = pixels + offset + tl.load(row + _TOP).to(tl.int64) * image_width + tl.load(row + _LEFT)
    height, width = tl.load(row + _HEIGHT), tl.load(row + _WIDTH)
    x = tl.where(tl.load(row + _FLIP) != 0, VIEW_WIDTH - 1 - x, x)
    y_first, y_distance, y_count, y_squeeze, y_share = _taps(
        y + tl.load(row + _WINDOW_TOP), height, tl.load(row + _GRID_HEIGHT), BICUBIC
    )
    x_first, x_distance, x_count, x_squeeze, x_share = _taps(
        x + tl.load(row + _WINDOW_LEFT), width, tl.load(row + _GRID_WIDTH), BICUBIC
    )
    red = tl.zeros([y.shape[0], x.shape[0]], tl.float32)
    green = tl.zeros_like(red)
    blue = tl.zeros_like(red)
    for y_tap in range(0, y_count):
        pixel_y, weight_y = _tap(y_tap, y_first, y_distance, height, y_squeeze, BICUBIC)
        for x_tap in range(0, x_count):
            pixel_x, weight_x = _tap(x_tap, x_first, x_distance, width, x_squeeze, BICUBIC)
            weight = (weight_y * y_share)[:, None] * (weight_x * x_share)[None, :]
            place = box + (pixel_y[:, None] * image_width + pixel_x[None, :])
            red = tl.fma(tl.load(place).to(tl.float32), weight, red)
            green = tl.fma(tl.load(place + plane).to(tl.float32), weight, green)
            blue = tl.fma(tl.load(place + 2 * plane).to(tl.float32), weight, blue)
    if pixels.dtype.element_ty == tl.uint8:  # a true division: what is copied must be what other backends copy
        red, green, blue = tl.div_rn(red, 255.0), tl.div_rn(green, 255.0), tl.div_rn(blue, 255.0)
    if BICUBIC:
        red, green, blue = _clamp(red), _clamp(green), _clamp(blue)
    return red, green, blue


@triton.jit
@no_type_check
def _clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
@no_type_check
def _luma(red, green, blue):
    return red * 0.2989 + green * 0.587 + blue * 0.114


@triton.jit
@no_type_check
def _turn_hue(red, green, blue, shift):
    least = tl.minimum(tl.minimum(red, green), blue)
    most = tl.maximum(tl.maximum(red, green), blue)
    chroma = most - least
    is_red, is_green = most == red, most == green
    difference = tl.where(is_red, green - blue, tl.where(is_green, blue - red, red - green))
    sector = tl.where(is_red, 0.0, tl.where(is_green, 2.0, 4.0))
    hue = difference / tl.maximum(chroma, 1.17549435e-38) + sector + 6.0 * shift  # in sixths of the circle
    hue -= tl.floor(hue * (1.0 / 6.0)) * 6.0
    red = tl.fma(_clamp(tl.abs(hue - 3.0) - 1.0), chroma, least)
    green = tl.fma(_clamp(2.0 - tl.abs(hue - 2.0)), chroma, least)
    blue = tl.fma(_clamp(2.0 - tl.abs(hue - 4.0)), chroma, least)
    return red, green, blue


@triton.jit
@no_type_check
def _adjust_contrast(red, green, blue, factor, mean):
    base = (1.0 - factor) * mean
    return _clamp(red * factor + base), _clamp(green * factor + base), _clamp(blue * factor + base)


@triton.constexpr_function
@no_type_check
def may_be(codes, code):
    """Whether a code is in a set of codes; there, bit n stands for code n."""
    return codes >> code & 1 == 1


@triton.jit
@no_type_check
def _pixel_operation(code, value, red, green, blue, MAY_BE: tl.constexpr):
    """What needs no other pixel; only the operations in ``MAY_BE`` are compiled."""
    if may_be(MAY_BE, _BRIGHTNESS):
        if code == _BRIGHTNESS:
            red, green, blue = _clamp(red * value), _clamp(green * value), _clamp(blue * value)
    if may_be(MAY_BE, _SATURATION):
        if code == _SATURATION:
            grey = _luma(red, green, blue) * (1.0 - value)
            red, green, blue = _clamp(red * value + grey), _clamp(green * value + grey), _clamp(blue * value + grey)
    if may_be(MAY_BE, _HUE):
        if code == _HUE:
            red, green, blue = _turn_hue(red, green, blue, value)
    if may_be(MAY_BE, _GRAYSCALE):
        if code == _GRAYSCALE:
            grey = _luma(red, green, blue)
            red, green, blue = grey, grey, grey
    if may_be(MAY_BE, _SOLARIZE):
        if code == _SOLARIZE:
            red = tl.where(red >= value, 1.0 - red, red)
            green = tl.where(green >= value, 1.0 - green, green)
            blue = tl.where(blue >= value, 1.0 - blue, blue)
    return red, green, blue


@triton.jit
@no_type_check
def _slot(row, slot, NUM_SLOTS: tl.constexpr):
    """The code and the value that an image has in a slot."""
    value = tl.load(row + _SLOTS + NUM_SLOTS + slot).to(tl.float32, bitcast=True)
    return tl.load(row + _SLOTS + slot), value


@triton.jit
@no_type_check
def _reflect(place, SIZE: tl.constexpr):
    place = tl.abs(place)
    return tl.minimum(place, 2 * (SIZE - 1) - place)


@triton.jit
@no_type_check
def _blur(scratch, y, x, sigma, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, RADIUS: tl.constexpr, DOWN: tl.constexpr):
    """The pixels (y, x) of ``scratch``, float32 [3, HEIGHT, WIDTH], blurred along one axis.

    Taps beyond six sigma are left out: all of them together weigh less than float32 can tell from nothing.
    """
    reach = tl.ceil(tl.minimum(6.0 * sigma, RADIUS)).to(tl.int32)
    red = tl.zeros([y.shape[0], x.shape[0]], tl.float32)
    green = tl.zeros_like(red)
    blue = tl.zeros_like(red)
    total = 0.0
    for tap in range(-reach, reach + 1):
        deviation = tap / sigma
        weight = tl.exp(-0.5 * deviation * deviation)
        if DOWN:
            place = scratch + (_reflect(y + tap, HEIGHT)[:, None] * WIDTH + x[None, :])
        else:
            place = scratch + (y[:, None] * WIDTH + _reflect(x + tap, WIDTH)[None, :])
        red = tl.fma(tl.load(place), weight, red)
        green = tl.fma(tl.load(place + HEIGHT * WIDTH), weight, green)
        blue = tl.fma(tl.load(place + 2 * HEIGHT * WIDTH), weight, blue)
        total += weight
    inverse = tl.div_rn(1.0, total)
    return red * inverse, green * inverse, blue * inverse


@triton.jit
@no_type_check
def _store(view, y, x, red, green, blue, HEIGHT, WIDTH, stride_c, stride_y, stride_x):
    inside = (y < HEIGHT)[:, None] & (x < WIDTH)[None, :]
    place = view + (y[:, None] * stride_y + x[None, :] * stride_x)
    element = view.dtype.element_ty
    tl.store(place, red.to(element), mask=inside)
    tl.store(place + stride_c, green.to(element), mask=inside)
    tl.store(place + 2 * stride_c, blue.to(element), mask=inside)


@triton.jit
@no_type_check
def _store_scratch(scratch, y, x, red, green, blue, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    _store(scratch, y, x, red, green, blue, HEIGHT, WIDTH, HEIGHT * WIDTH, WIDTH, 1)


@triton.jit
@no_type_check
def _store_normalized(
    view, y, x, red, green, blue, mean, scale, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, stride_c, stride_y, stride_x
):
    red = (red - mean[0]) * scale[0]
    green = (green - mean[1]) * scale[1]
    blue = (blue - mean[2]) * scale[2]
    _store(view, y, x, red, green, blue, HEIGHT, WIDTH, stride_c, stride_y, stride_x)


@triton.jit(do_not_specialize=NEVER_SPECIALIZED)
@no_type_check
def render_small(
    pixels, table, scratch_rows, scratch, out, stride_b, stride_c, stride_y, stride_x, mean, scale,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK_HEIGHT: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    BICUBIC: tl.constexpr, MAY_BE: tl.constexpr, RADIUS: tl.constexpr,
):  # fmt: skip
    """A whole view from the first load to the store: program i makes view i.

    Its pixels stay in registers. Only a blur hands them from thread to thread, through memory that is still in cache.
    """
    NUM_SLOTS: tl.constexpr = len(MAY_BE)
    number = tl.program_id(0).to(tl.int64)
    row = table + number * (_SLOTS + 2 * NUM_SLOTS)
    y, x = tl.arange(0, BLOCK_HEIGHT), tl.arange(0, BLOCK_WIDTH)
    inside = (y < HEIGHT)[:, None] & (x < WIDTH)[None, :]
    near_y, near_x = tl.minimum(y, HEIGHT - 1), tl.minimum(x, WIDTH - 1)
    red, green, blue = _resample(pixels, row, near_y, near_x, WIDTH, BICUBIC)
    for slot in tl.static_range(NUM_SLOTS):
        code, value = _slot(row, slot, NUM_SLOTS)
        red, green, blue = _pixel_operation(code, value, red, green, blue, MAY_BE[slot])
        if may_be(MAY_BE[slot], _CONTRAST):
            if code == _CONTRAST:
                average = tl.sum(tl.where(inside, _luma(red, green, blue), 0.0)) / (HEIGHT * WIDTH)
                red, green, blue = _adjust_contrast(red, green, blue, value, average)
        if may_be(MAY_BE[slot], _BLUR):
            if code == _BLUR:
                own = scratch + tl.load(scratch_rows + number).to(tl.int64) * (3 * HEIGHT * WIDTH)
                _store_scratch(own, y, x, red, green, blue, HEIGHT, WIDTH)
                tl.debug_barrier()
                red, green, blue = _blur(own, near_y, near_x, value, HEIGHT, WIDTH, RADIUS[slot], False)
                tl.debug_barrier()
                _store_scratch(own, y, x, red, green, blue, HEIGHT, WIDTH)
                tl.debug_barrier()
                red, green, blue = _blur(own, near_y, near_x, value, HEIGHT, WIDTH, RADIUS[slot], True)
                tl.debug_barrier()
    view = out + number * stride_b
    _store_normalized(view, y, x, red, green, blue, mean, scale, HEIGHT, WIDTH, stride_c, stride_y, stride_x)


@triton.constexpr_function
@no_type_check
def num_tiles(height, width):
    """Into how many tiles a large view is cut."""
    return -(-height // TILE.value) * -(-width // TILE.value)


@triton.jit
@no_type_check
def _tile(HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Which view of its list this program works at, its tile's number, and the tile's rows and columns."""
    NUM_TILES: tl.constexpr = num_tiles(HEIGHT, WIDTH)
    ACROSS: tl.constexpr = num_tiles(1, WIDTH)
    tile = tl.program_id(0) % NUM_TILES
    y = tile // ACROSS * TILE + tl.arange(0, TILE)
    x = tile % ACROSS * TILE + tl.arange(0, TILE)
    return tl.program_id(0) // NUM_TILES, tile, y, x


@triton.jit
@no_type_check
def _slots_before_blur(row, luma_sums, stop, red, green, blue, NUM_PIXELS: tl.constexpr, NUM_TILES: tl.constexpr,
                       MAY_BE: tl.constexpr, BLUR_SLOT: tl.constexpr):  # fmt: skip
    """The slots below ``stop`` and the blur's; ``luma_sums`` are the image's, for each slot and tile."""
    for slot in tl.static_range(BLUR_SLOT):
        code, value = _slot(row, slot, len(MAY_BE))
        code = tl.where(slot < stop, code, _NOTHING)
        red, green, blue = _pixel_operation(code, value, red, green, blue, MAY_BE[slot])
        if may_be(MAY_BE[slot], _CONTRAST):
            if code == _CONTRAST:
                partial = tl.zeros([_SUMS_AT_ONCE], tl.float32)
                for start in range(0, NUM_TILES, _SUMS_AT_ONCE):
                    tile = start + tl.arange(0, _SUMS_AT_ONCE)
                    partial += tl.load(luma_sums + slot * NUM_TILES + tile, mask=tile < NUM_TILES, other=0.0)
                red, green, blue = _adjust_contrast(red, green, blue, value, tl.sum(partial) / NUM_PIXELS)
    return red, green, blue


@triton.jit
@no_type_check
def _slots_from_blur(row, red, green, blue, MAY_BE: tl.constexpr, BLUR_SLOT: tl.constexpr):
    """The blur's own slot too: an image that is not blurred may have another operation there."""
    for slot in tl.static_range(BLUR_SLOT, len(MAY_BE)):
        code, value = _slot(row, slot, len(MAY_BE))
        red, green, blue = _pixel_operation(code, value, red, green, blue, MAY_BE[slot])
    return red, green, blue


@triton.jit(do_not_specialize=NEVER_SPECIALIZED)
@no_type_check
def sum_luma(
    pixels, table, contrasts, luma_sums, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    BICUBIC: tl.constexpr, MAY_BE: tl.constexpr, BLUR_SLOT: tl.constexpr,
):  # fmt: skip
    """One tile's sum of luma as a contrast will meet it; ``contrasts`` are pairs of an image and a slot."""
    NUM_TILES: tl.constexpr = num_tiles(HEIGHT, WIDTH)
    entry, tile, y, x = _tile(HEIGHT, WIDTH)
    image, stop = tl.load(contrasts + 2 * entry).to(tl.int64), tl.load(contrasts + 2 * entry + 1)
    row = table + image * (_SLOTS + 2 * len(MAY_BE))
    sums = luma_sums + image * (len(MAY_BE) * NUM_TILES)
    near_y, near_x = tl.minimum(y, HEIGHT - 1), tl.minimum(x, WIDTH - 1)
    red, green, blue = _resample(pixels, row, near_y, near_x, WIDTH, BICUBIC)
    red, green, blue = _slots_before_blur(
        row, sums, stop, red, green, blue, HEIGHT * WIDTH, NUM_TILES, MAY_BE, BLUR_SLOT
    )  # fmt: skip
    inside = (y < HEIGHT)[:, None] & (x < WIDTH)[None, :]
    tl.store(sums + stop * NUM_TILES + tile, tl.sum(tl.where(inside, _luma(red, green, blue), 0.0)))


@triton.jit(do_not_specialize=NEVER_SPECIALIZED)
@no_type_check
def render_tile(
    pixels, table, luma_sums, scratch_rows, scratch, out, stride_b, stride_c, stride_y, stride_x, mean, scale,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    BICUBIC: tl.constexpr, MAY_BE: tl.constexpr, BLUR_SLOT: tl.constexpr,
):  # fmt: skip
    """One tile up to the view, or of an image that is blurred up to there, into its place in ``scratch``."""
    NUM_TILES: tl.constexpr = num_tiles(HEIGHT, WIDTH)
    image, _, y, x = _tile(HEIGHT, WIDTH)
    image = image.to(tl.int64)
    row = table + image * (_SLOTS + 2 * len(MAY_BE))
    sums = luma_sums + image * (len(MAY_BE) * NUM_TILES)
    near_y, near_x = tl.minimum(y, HEIGHT - 1), tl.minimum(x, WIDTH - 1)
    red, green, blue = _resample(pixels, row, near_y, near_x, WIDTH, BICUBIC)
    red, green, blue = _slots_before_blur(
        row, sums, len(MAY_BE), red, green, blue, HEIGHT * WIDTH, NUM_TILES, MAY_BE, BLUR_SLOT
    )
    scratch_row = -1
    if len(MAY_BE) > BLUR_SLOT:
        scratch_row = tl.load(scratch_rows + image)
    if scratch_row >= 0:
        own = scratch + scratch_row.to(tl.int64) * (3 * HEIGHT * WIDTH)
        _store_scratch(own, y, x, red, green, blue, HEIGHT, WIDTH)
    else:
        red, green, blue = _slots_from_blur(row, red, green, blue, MAY_BE, BLUR_SLOT)
        view = out + image * stride_b
        _store_normalized(view, y, x, red, green, blue, mean, scale, HEIGHT, WIDTH, stride_c, stride_y, stride_x)


@triton.jit(do_not_specialize=NEVER_SPECIALIZED)
@no_type_check
def blur_rows(
    table, blurred, scratch, half_blurred, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    MAY_BE: tl.constexpr, BLUR_SLOT: tl.constexpr, RADIUS: tl.constexpr,
):  # fmt: skip
    """One tile of ``scratch`` blurred along its rows; ``blurred`` lists the images in the order they have there."""
    entry, _, y, x = _tile(HEIGHT, WIDTH)
    row = table + tl.load(blurred + entry).to(tl.int64) * (_SLOTS + 2 * len(MAY_BE))
    _, sigma = _slot(row, BLUR_SLOT, len(MAY_BE))
    begin = entry.to(tl.int64) * (3 * HEIGHT * WIDTH)
    near_y, near_x = tl.minimum(y, HEIGHT - 1), tl.minimum(x, WIDTH - 1)
    red, green, blue = _blur(scratch + begin, near_y, near_x, sigma, HEIGHT, WIDTH, RADIUS, False)
    _store_scratch(half_blurred + begin, y, x, red, green, blue, HEIGHT, WIDTH)


@triton.jit(do_not_specialize=NEVER_SPECIALIZED)
@no_type_check
def blur_columns(
    table, blurred, half_blurred, out, stride_b, stride_c, stride_y, stride_x, mean, scale,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    MAY_BE: tl.constexpr, BLUR_SLOT: tl.constexpr, RADIUS: tl.constexpr,
):  # fmt: skip
    """One tile blurred along its columns too, and the rest of the way to the view."""
    entry, _, y, x = _tile(HEIGHT, WIDTH)
    image = tl.load(blurred + entry).to(tl.int64)
    row = table + image * (_SLOTS + 2 * len(MAY_BE))
    _, sigma = _slot(row, BLUR_SLOT, len(MAY_BE))
    begin = entry.to(tl.int64) * (3 * HEIGHT * WIDTH)
    near_y, near_x = tl.minimum(y, HEIGHT - 1), tl.minimum(x, WIDTH - 1)
    red, green, blue = _blur(half_blurred + begin, near_y, near_x, sigma, HEIGHT, WIDTH, RADIUS, True)
    red, green, blue = _slots_from_blur(row, red, green, blue, MAY_BE, BLUR_SLOT)
    view = out + image * stride_b
    _store_normalized(view, y, x, red, green, blue, mean, scale, HEIGHT, WIDTH, stride_c, stride_y, stride_x)
