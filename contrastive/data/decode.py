"""From the bytes of an image file to uint8 RGB, whatever the file's format and mode."""

import io
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import takewhile

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # no others: some of Pillow's readers start programs
WHITE = (255, 255, 255)
MAX_PIXELS = 64_000_000  # what a camera of 50 megapixels takes is an image; a decompression bomb has billions

_MAX_HEADER = 2**25  # bytes of EXIF and the like in a JPEG, over which Pillow takes seconds, and for more minutes
_MAX_SCANS = 100  # over a progressive JPEG: encoders make about 10, and each takes as long however few bytes it has

_BROKEN = (  # what Pillow's readers are known to raise on broken files
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,  # where Python makes errors of them
)
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # ITU-T T.81, B.1.1: 00 and D0 to D7 are within a scan
_KINDS = {  # of what a path can lead to beside a file
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_MOST_OBLONG = 100  # long side to short side of what is resized whole
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
    source: str | os.PathLike[str] | bytes,
    *,
    background: tuple[int, int, int] = WHITE,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
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
        max_pixels: More than these are not decoded, as the header tells; nor is a file read that is larger than so many
            pixels of four bytes and 32 MiB. Decoding takes up to 33 bytes of memory for each (a JPEG takes 14).

    Raises:
        FileNotFoundError: There is no such file.
        NotAnImageError: The contents are no whole image of these formats, or have too many pixels.
    """
    if isinstance(source, bytes):
        contents = source
    else:
        with open_file(source, max_pixels=max_pixels) as stream:
            contents = stream.read(_most_bytes(max_pixels))  # it may have grown, or be a device by now
    with open_image(io.BytesIO(contents), at_least=at_least, max_pixels=max_pixels) as image:
        if contents.count(_START_OF_SCAN) > _MAX_SCANS and (scans := _scans(contents)) > _MAX_SCANS:
            raise NotAnImageError(f"it goes over its pixels {scans} times, which would take for ever; save it anew")
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


def open_file(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> io.BufferedReader:
    """Open a file to read, without ever waiting for one: to open a pipe is to wait until somebody writes.

    Args:
        path: The file.
        max_pixels: The most that it may hold.

    Raises:
        OSError: It cannot be opened.
        NotAnImageError: It is no file, or too large for so many pixels.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise NotAnImageError(f"it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}, not a file")
    if status.st_size > _most_bytes(max_pixels):
        raise NotAnImageError(
            f"its {status.st_size} bytes are more than max_pixels={max_pixels} can need; raise that if it is genuine"
        )
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def open_image(
    stream: io.BytesIO | io.BufferedReader, *, at_least: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Read an image file's header.

    Args:
        stream: The file.
        at_least: What both sides of a JPEG keep at least when it is decoded at reduced scale; None for full scale.
        max_pixels: More than these are refused. A JPEG that reduced scale makes small enough may have more; not a
            progressive one, of which all pixels are held at once.

    Raises:
        NotAnImageError: The stream does not begin like an image, or promises too many pixels.
    """
    try:
        image = _read_header(stream)
    except _BROKEN as error:
        raise NotAnImageError(_cause(error)) from error
    width, height = image.size
    if width * height > max_pixels:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        stream.seek(0)
        if image.width * image.height > max_pixels or _scans(stream.read()) > 1:
            raise NotAnImageError(
                f"its {width} x {height} pixels are more than max_pixels={max_pixels}; raise that if it is genuine"
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
        grey = np.asarray(image).astype(np.int32)  # [H, W]
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
    The same as torchvision's ``Resize(image_size)`` and ``CenterCrop(image_size)``. Of an image more than 100 times as
    long as wide only the middle is resized: all of 8 x 8,000,000 pixels would become 150 GB at 224.

    Args:
        image: uint8 [3, H, W], H and W at least 1.
        image_size: Side S of the square.
    """
    most = _MOST_OBLONG * min(image.shape[1:])
    top, left = (max(0, (side - most) // 2) for side in image.shape[1:])
    image = image[:, top : top + most, left : left + most]
    height, width = image.shape[1:]
    short, long = min(height, width), max(height, width)
    if short != image_size:
        longer = int(image_size * long / short)
        size = (image_size, longer) if height <= width else (longer, image_size)
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
        height, width = size
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    return image[:, top : top + image_size, left : left + image_size].contiguous()


def _most_bytes(max_pixels: int) -> int:
    """What a file of so many pixels has at most, uncompressed, with all that may come before them."""
    return 4 * max_pixels + _MAX_HEADER


def _read_header(stream: io.BytesIO | io.BufferedReader) -> Image.Image:
    """As ``Image.open`` does, but for its limit of pixels: that is one for the whole process, and anybody may unset it.

    Raises:
        NotAnImageError: The stream does not begin like an image.
    """
    Image.init()  # registers the readers, once
    start = stream.read(16)
    for name in FORMATS:
        read, accepts = Image.OPEN[name]
        if accepts is None or accepts(start) is True:
            if name == "JPEG" and stream.seek(0, os.SEEK_END) > _MAX_HEADER:
                stream.seek(0)
                if all(marker != _START_OF_SCAN for marker in _markers(stream.read(_MAX_HEADER))):
                    raise NotAnImageError(f"it begins with more than {_MAX_HEADER} bytes that are no pixels")
            stream.seek(0)
            return read(stream, "")
    raise NotAnImageError(f"its contents are none of {', '.join(FORMATS)}")


def _scans(contents: bytes) -> int:
    """How many times a JPEG goes over its pixels."""
    return sum(marker == _START_OF_SCAN for marker in takewhile(lambda one: one != _END_OF_IMAGE, _markers(contents)))


def _markers(contents: bytes) -> Iterator[bytes]:
    """The markers of a JPEG, two bytes each: what begins its parts, not what looks like one inside of a part."""
    place = 2
    while marker := _MARKER.search(contents, place):
        yield marker[0]
        place = marker.end() + int.from_bytes(contents[marker.end() : marker.end() + 2])


def _cause(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "decoding it takes more memory than there is"
    text = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"{text} Pillow's own limit, PIL.Image.MAX_IMAGE_PIXELS, counts too"
    return "its pixels are cut short: " + text if "truncated" in text else text
