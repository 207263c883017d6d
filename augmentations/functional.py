"""Batched image operations without randomness: every number an operation needs is an argument, one for each image.

Images are float [B, C, H, W] in [0, 1], float32 or float64, on any device, and are never written to; what changes
colours wants C = 3, brightness, contrast and solarize C = 3 or 1, everything else takes any C. Each operation
equals ``torchvision.transforms.v2.functional`` on float images, image by image. None of them lets an image's result
depend on its neighbours in the batch, not even in the last bit, and none is rounded by autocast: there is no matrix
product and no convolution in here, and no library reduction whose order of additions changes with the batch size.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

Images = Float[Tensor, "B C H W"]
PerImage = Float[Tensor, " B"]


def to_float(images: UInt8[Tensor, "B C H W"]) -> Images:
    """Scale uint8 0..255 to float32 0..1; both ends are exact."""
    return images.to(torch.float32).div_(255)


def resized_crop(
    images: Images,
    top: Int64[Tensor, " B"],
    left: Int64[Tensor, " B"],
    height: Int64[Tensor, " B"],
    width: Int64[Tensor, " B"],
    size: tuple[int, int],
    flip: Bool[Tensor, " B"] | None = None,
    *,
    bicubic: bool = False,
) -> Float[Tensor, "B C h w"]:
    """Crop each image to its own box and resize it, with antialiasing.

    Equal to ``resized_crop(..., antialias=True)`` and then ``horizontal_flip`` where ``flip`` is set. Flipping costs
    nothing here: it mirrors where the output pixels look.

    Args:
        images: float [B, C, H, W].
        top: The boxes' first rows, int64 [B], in pixels; the box lies inside the image.
        left: The boxes' first columns, int64 [B].
        height: The boxes' heights, int64 [B], at least 1.
        width: The boxes' widths, int64 [B], at least 1.
        size: Height and width of the result, in pixels.
        flip: bool [B], or None for no flips.
        bicubic: Instead of bilinear. Values beyond [0, 1] are then clamped, as for images of integers.
    """
    grid = torch.full_like(height, size[0]), torch.full_like(width, size[1])
    window = torch.zeros_like(top), torch.zeros_like(left)
    return resample(images, top, left, height, width, grid=grid, window=window, size=size, flip=flip, bicubic=bicubic)


def resample(
    images: Images,
    top: Int64[Tensor, " B"],
    left: Int64[Tensor, " B"],
    height: Int64[Tensor, " B"],
    width: Int64[Tensor, " B"],
    *,
    grid: tuple[Int64[Tensor, " B"], Int64[Tensor, " B"]],
    window: tuple[Int64[Tensor, " B"], Int64[Tensor, " B"]],
    size: tuple[int, int],
    flip: Bool[Tensor, " B"] | None = None,
    bicubic: bool = False,
) -> Float[Tensor, "B C h w"]:
    """A window of each image's resized box: ``resized_crop`` to the grid, then ``crop``, then ``horizontal_flip``.

    Args:
        images: float [B, C, H, W].
        top: The boxes' first rows, int64 [B], in pixels; the box lies inside the image.
        left: The boxes' first columns, int64 [B].
        height: The boxes' heights, int64 [B], at least 1.
        width: The boxes' widths, int64 [B], at least 1.
        grid: Height and width that each box is resized to, int64 [B] each.
        window: First row and column of the result in the grid, int64 [B] each; it lies inside.
        size: Height and width of the result, in pixels.
        flip: bool [B], or None for no flips.
        bicubic: Instead of bilinear. Values beyond [0, 1] are then clamped, as for images of integers.
    """
    sides = images.shape[2:]
    rows, row_weights = _taps(top, height, grid[0], window[0], sides[0], size[0], images.dtype, bicubic)  # [B, h, T]
    columns, column_weights = _taps(left, width, grid[1], window[1], sides[1], size[1], images.dtype, bicubic, flip)
    # Mixing whole rows is much faster than mixing single pixels, so the columns are laid out as rows in their turn.
    low = _mix(images.transpose(1, 2), rows, row_weights)  # [B, h, C, W]
    low_and_narrow = _mix(low.transpose(1, 3), columns, column_weights)  # [B, w, C, h]
    result = low_and_narrow.permute(0, 2, 3, 1).contiguous()
    return result.clamp_(0, 1) if bicubic else result


def horizontal_flip(images: Images) -> Images:
    """Mirror left and right."""
    return images.flip(-1)


def adjust_brightness(images: Images, factor: PerImage) -> Images:
    """Scale by ``factor`` >= 0 and clamp: 0 is black, 1 the image."""
    return (images * _spread(factor)).clamp_(0, 1)


def adjust_contrast(images: Images, factor: PerImage) -> Images:
    """Move away from the image's mean luma by ``factor`` >= 0 and clamp: 0 is flat grey, 1 the image."""
    mean = _mean_of_each(_luma(images))  # [B]
    return (images * _spread(factor)).add_(_spread((1 - factor) * mean)).clamp_(0, 1)


def adjust_saturation(images: Images, factor: PerImage) -> Images:
    """Move away from each pixel's luma by ``factor`` >= 0 and clamp: 0 is greyscale, 1 the image."""
    grey = _luma(images).mul_(_spread(1 - factor))  # [B, 1, H, W]
    return (images * _spread(factor)).add_(grey).clamp_(0, 1)


def adjust_hue(images: Images, shift: PerImage) -> Images:
    """Turn the hue by ``shift`` full circles, -0.5 <= shift <= 0.5, at the same HSV saturation and value.

    Raises:
        ValueError: A shift is out of range (looked at on CPU only, where looking does not wait).
    """
    _refuse(shift, ~(shift.abs() <= 0.5), "A hue shift must lie in [-0.5, 0.5] full circles: divide degrees by 360")
    red, green, blue = images.unbind(1)  # [B, H, W]
    least = torch.minimum(torch.minimum(red, green), blue)
    most = torch.maximum(torch.maximum(red, green), blue)
    chroma = most - least
    safe = chroma.clamp(min=torch.finfo(images.dtype).tiny)  # a grey pixel has no hue: any will do, but not NaN
    hue = torch.where(
        most == red,
        (green - blue).div_(safe),
        torch.where(most == green, (blue - red).div_(safe).add_(2), (red - green).div_(safe).add_(4)),
    )  # in sixths of the circle
    hue.add_(6 * shift[:, None, None])
    hue.sub_((hue / 6).floor_().mul_(6))
    shifted = torch.empty_like(images)
    # How much of the chroma a hue gives to each channel, a trapezium round the circle.
    torch.sub((hue - 3).abs_(), 1, out=shifted[:, 0])
    torch.sub(2, (hue - 2).abs_(), out=shifted[:, 1])
    torch.sub(2, hue.sub_(4).abs_(), out=shifted[:, 2])
    return shifted.clamp_(0, 1).mul_(chroma[:, None]).add_(least[:, None])


def rgb_to_grayscale(images: Images) -> Images:
    """Every channel the luma 0.2989 R + 0.587 G + 0.114 B, torchvision's weights."""
    return _luma(images).expand(-1, 3, -1, -1)


def gaussian_blur(images: Images, sigma: PerImage, kernel_size: int) -> Images:
    """Blur each image with its own Gaussian, cut off at ``kernel_size``; the border is reflected.

    Args:
        images: float [B, 3, H, W].
        sigma: Standard deviations > 0 in pixels, [B].
        kernel_size: Odd, in pixels; half of it must be shorter than the image's sides.

    Raises:
        ValueError: The kernel is even or too large for the image, or a sigma is not positive (looked at on CPU only).
    """
    radius = kernel_size // 2
    if kernel_size % 2 == 0 or radius >= min(images.shape[-2:]):
        raise ValueError(
            f"A blur kernel of {kernel_size} pixels does not fit: it must be odd, and its half shorter than both sides "
            f"of the image ({images.shape[-2]} x {images.shape[-1]}). Choose a smaller odd kernel_size."
        )
    _refuse(sigma, ~(sigma > 0), "A blur's sigma must be positive: leave an image that stays sharp out of the batch")
    distance = torch.arange(radius + 1, dtype=torch.float64, device=images.device)
    weights = (-0.5 * (distance / sigma.double()[:, None]).square()).exp()  # [B, R + 1]; index 0 is the centre
    weights = (weights / (2 * weights.sum(1, keepdim=True) - 1)).to(images.dtype)  # weights[:, 0] is 1 before this
    blurred = _blur_last_axis(F.pad(images, (radius, radius, 0, 0), mode="reflect"), weights)
    blurred = F.pad(blurred, (0, 0, radius, radius), mode="reflect").transpose(2, 3)
    return _blur_last_axis(blurred, weights).transpose(2, 3).contiguous()


def solarize(images: Images, threshold: PerImage | float) -> Images:
    """Invert the pixels at or above ``threshold``, one for each image or one for all."""
    bright = images >= (threshold if isinstance(threshold, float) else _spread(threshold))
    return torch.where(bright, 1 - images, images)


def _spread(values: PerImage) -> Float[Tensor, "B 1 1 1"]:
    return values[:, None, None, None]


def _luma(images: Images) -> Float[Tensor, "B 1 H W"]:
    if images.shape[1] == 1:
        return images
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114)


def _mean_of_each(images: Float[Tensor, "B 1 H W"]) -> PerImage:
    """The mean of each image by halving, since ``mean`` picks its order of additions by the batch size."""
    total = images.flatten(1)  # [B, HW]
    count = total.shape[1]
    while total.shape[1] > 1:
        half, odd = divmod(total.shape[1], 2)
        folded = total[:, :half] + total[:, half : 2 * half]
        if odd:
            folded[:, 0] += total[:, -1]
        total = folded
    return total[:, 0] / count


def _taps(
    start: Int64[Tensor, " B"],
    length: Int64[Tensor, " B"],
    grid: Int64[Tensor, " B"],
    window: Int64[Tensor, " B"],
    available: int,
    size: int,
    dtype: torch.dtype,
    bicubic: bool,
    mirror: Bool[Tensor, " B"] | None = None,
) -> tuple[Int64[Tensor, "B {size} T"], Float[Tensor, "B {size} T"]]:
    """Which input pixels each output pixel mixes along one axis, and with what weights.

    The weight is a triangle round the output pixel's centre, one input pixel wide on each side when enlarging and one
    output pixel wide when shrinking: Pillow's and torchvision's antialiased bilinear filter. Bicubic is twice as wide.
    """
    extent = length.double()[:, None, None]  # [B, 1, 1]
    scale = extent / grid[:, None, None]
    unit = scale.clamp(min=1)
    reach = 2 if bicubic else 1
    place = torch.arange(size, dtype=torch.float64, device=start.device)[:, None]  # [size, 1]
    if mirror is not None:
        place = torch.where(mirror[:, None, None], size - 1 - place, place)
    center = (place + window[:, None, None] + 0.5) * scale  # [B, size, 1]
    # An open interval of 2 * reach units holds at most this many pixel centres. From the shape and not from the boxes:
    # asking a device for its longest box would wait for it. No grid is smaller than its window.
    num_taps = math.ceil(2 * reach * max(available / size, 1))
    first = (center - reach * unit + 0.5).floor().clamp_(min=0)
    position = first + torch.arange(num_taps, dtype=torch.float64, device=start.device)  # [B, size, T]
    distance = (position + 0.5 - center).abs() / unit
    weights = (_cubic(distance) if bicubic else (1 - distance).clamp_(min=0)) * (position < extent)
    total = weights[..., 0]
    for tap in range(1, num_taps):
        total = total + weights[..., tap]
    pixels = torch.minimum(position, extent - 1).long() + start[:, None, None]
    return pixels, (weights / total[..., None]).to(dtype)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2, as Pillow and antialiasing torch have it; 0 from 2 on.

    R. G. Keys, "Cubic convolution interpolation for digital image processing", 1981, equation 15.
    """
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))


def _mix(
    images: Float[Tensor, "B N C D"], rows: Int64[Tensor, "B S T"], weights: Float[Tensor, "B S T"]
) -> Float[Tensor, "B S C D"]:
    """Weighted sums of each image's rows."""
    batch, num_rows, channels, width = images.shape
    table = images.reshape(batch * num_rows, channels * width)
    places = rows + num_rows * torch.arange(batch, device=rows.device)[:, None, None]
    mixed: Tensor = F.embedding_bag(places.flatten(0, 1), table, per_sample_weights=weights.flatten(0, 1), mode="sum")
    return mixed.view(batch, rows.shape[1], channels, width)


def _blur_last_axis(padded: Float[Tensor, "B C H P"], weights: Float[Tensor, "B T"]) -> Float[Tensor, "B C H W"]:
    """Correlate with a symmetric kernel given by its centre and one side."""
    radius = weights.shape[1] - 1
    width = padded.shape[-1] - 2 * radius
    blurred = padded[..., radius : radius + width] * _spread(weights[:, 0])
    for distance in range(1, radius + 1):
        before = padded[..., radius - distance : radius - distance + width]
        after = padded[..., radius + distance : radius + distance + width]
        blurred.add_((before + after).mul_(_spread(weights[:, distance])))
    return blurred


def _refuse(values: PerImage, wrong: Bool[Tensor, " B"], rule: str) -> None:
    # On another device asking would wait for it, and the pipelines draw nothing wrong.
    if values.device.type == "cpu" and wrong.any():
        raise ValueError(f"{rule}. One here is {values[wrong][0].item():g}.")
