"""From the bytes of an image file to uint8 RGB, whatever the file's format and mode."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # no others: some of Pillow's readers start programs
WHITE = (255, 255, 255)

_BROKEN = (  # what Pillow's readers are known to raise on broken files
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_ORIENTATION = 0x0112  # EXIF tag (Exif 2.32, section 4.6.4); value 1 is upright
_UPRIGHT: dict[int, Callable[[Tensor], Tensor]] = {  # how [3, H, W] becomes upright
    2: lambda image: image.flip(2),
    3: lambda image: image.flip(1, 2),
    4: lambda image: image.flip(1),
    5: lambda image: image.transpose(1, 2),
    6: lambda image: image.transpose(1, 2).flip(2),
    7: lambda image: image.transpose(1, 2).flip(1, 2),
    8: lambda image: image.transpose(1, 2).flip(1),
}


class NotAnImageError(ValueError):
    """The file is no image, is broken or cut short, or holds pixels of unknown meaning. The message says which."""


def decode_image(
    source: str | os.PathLike[str] | bytes, *, background: tuple[int, int, int] = WHITE, at_least: int | None = None
) -> UInt8[Tensor, "3 H W"]:
    """Decode a JPEG, PNG, WebP, BMP, TIFF or GIF file to upright uint8 RGB.

    EXIF orientation is applied. Grey, palette and CMYK become RGB (colour profiles are not applied). Transparency is
    laid over the background. 16-bit grey v becomes v / 257, rounded, so that 65535 is 255; of 16-bit colour Pillow
    keeps the high byte, v // 256, which is less than one level away from that. Of animations and multi-page files the
    first frame is taken. A file cut short is an error, never half an image.

    Args:
        source: The file's path, or its contents.
        background: What shows through transparent pixels, RGB in 0..255; white unless given.
        at_least: A JPEG may be decoded at 1/2, 1/4 or 1/8 scale (by libjpeg, quicker and nearly antialiased) as long
            as both sides keep this many pixels; at full scale unless given.

    Raises:
        FileNotFoundError: There is no such file.
        NotAnImageError: The contents are no whole image of these formats, or more pixels than Pillow's
            ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    contents = source if isinstance(source, bytes) else Path(source).read_bytes()
    with open_image(io.BytesIO(contents)) as image:
        try:
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            image.load()
            orientation = image.getexif().get(_ORIENTATION, 1)  # after load(): Pillow turns TIFF upright by itself
        except _BROKEN as error:
            raise NotAnImageError(_cause(error)) from error
        rgb = rgb_from_pil(image, background=background)
    turn = _UPRIGHT.get(orientation)
    return rgb if turn is None else turn(rgb)


def open_image(stream: io.BytesIO | io.BufferedReader) -> Image.Image:
    """Read an image file's header.

    Raises:
        NotAnImageError: The stream does not begin like an image, or promises more pixels than Pillow's limit.
    """
    try:
        image = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise NotAnImageError(f"its contents are none of {', '.join(FORMATS)}") from error
    except _BROKEN as error:
        raise NotAnImageError(_cause(error)) from error
    limit = Image.MAX_IMAGE_PIXELS  # up to twice its limit Pillow only warns
    if limit is not None and image.width * image.height > limit:
        raise NotAnImageError(
            f"{image.width} x {image.height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS = {limit}; "
            "raise that limit if the file is genuine"
        )
    return image


def rgb_from_pil(image: Image.Image, *, background: tuple[int, int, int] = WHITE) -> UInt8[Tensor, "3 H W"]:
    """Pixels of a loaded PIL image as uint8 RGB; see ``decode_image`` for how modes are converted.

    Args:
        image: An image of any mode but those of 32-bit numbers above 65535 or floats.
        background: What shows through transparent pixels, RGB in 0..255.

    Raises:
        NotAnImageError: The mode has no known range or no conversion to RGB.
    """
    if image.mode.startswith("I"):  # I;16 and its byte orders; I where a reader widens 16 bits to 32
        grey = np.asarray(image).astype(np.int64)  # [H, W]
        if grey.min() < 0 or grey.max() > 65535:
            raise NotAnImageError(
                f"its 32-bit grey values {grey.min()}..{grey.max()} have no known range; save it with 8 or 16 bits"
            )
        eight_bits = ((grey + 128) // 257).astype(np.uint8)  # v / 257, rounded: 65535 = 255 * 257
        return torch.from_numpy(eight_bits).expand(3, -1, -1)
    if image.mode == "F":
        raise NotAnImageError("its grey values are floats of unknown range; save it with 8 or 16 bits")
    try:
        if image.mode in ("PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), rgba)
        pixels = np.array(image.convert("RGB"))  # [H, W, 3]
    except ValueError as error:
        raise NotAnImageError(f"its mode {image.mode} does not convert to RGB: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def fit_image(image: UInt8[Tensor, "3 H W"], image_size: int) -> UInt8[Tensor, "3 S S"]:
    """Shorter side to ``image_size`` (bilinear, antialiased), then the square in the centre: the stored image.

    Random crops are taken of this square, so give more pixels here than a view has where objects lie off centre.
    The same as torchvision's ``Resize(image_size)`` and ``CenterCrop(image_size)``.

    Args:
        image: uint8 [3, H, W], H and W at least 1.
        image_size: Side S of the square.
    """
    height, width = image.shape[1:]
    short, long = min(height, width), max(height, width)
    if short != image_size:
        longer = int(image_size * long / short)
        size = (image_size, longer) if height <= width else (longer, image_size)
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
        height, width = size
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    return image[:, top : top + image_size, left : left + image_size].contiguous()


def _cause(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return "its pixels are cut short: " + text if "truncated" in text else text
