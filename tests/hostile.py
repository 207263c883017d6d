"""Files that are no image, or more than one can take, as they lie in folders of images by accident or by malice."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MEBIBYTE = 1 << 20
NOT_ONE = "its contents are none of JPEG, PNG, WEBP, BMP, TIFF, GIF"
TOO_MANY = r"its {} pixels are more than max_pixels=\d+; raise that if it is genuine"


def noise(width: int, height: int) -> Image.Image:
    """An image that hardly compresses."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    """An image file."""
    file = io.BytesIO()
    (image or noise(32, 32)).save(file, kind, **options)
    return file.getvalue()


def deflated(count: int) -> bytes:
    """So many zero bytes, half a percent of that as large."""
    packer = zlib.compressobj(1)
    packed = [packer.compress(bytes(min(MEBIBYTE, count - done))) for done in range(0, count, MEBIBYTE)]
    return b"".join([*packed, packer.flush()])


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG file (PNG specification, section 5.3)."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, *others: bytes, bits: int = 8) -> bytes:
    """A grey PNG file of any compressed pixels, and other chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(others) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """A GIF file of a few bytes that promises these sizes (GIF89a, sections 18 and 20)."""
    head = b"GIF89a" + struct.pack("<HH", *screen) + b"\x80\0\0" + bytes(6)
    return head + b"," + struct.pack("<HHHH", 0, 0, *frame) + b"\0\x02\x02\x44\x01\0;"


def bmp(width: int, height: int) -> bytes:
    """A BMP file of a few bytes that promises this size."""
    sizes = struct.pack("<iiHHII", width, height, 1, 24, 0, 0)
    return b"BM" + struct.pack("<III", 154, 0, 54) + struct.pack("<I", 40) + sizes + bytes(16) + bytes(100)


def tiff(width: int, height: int, *, strips: int = 1, strip_bytes: int = 1024) -> bytes:
    """A grey TIFF file of a few bytes that promises these sizes (TIFF 6.0, section 2)."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: height, 279: strip_bytes}
    counts = {273: strips, 279: strips}
    entries = b"".join(struct.pack("<HHII", tag, 4, counts.get(tag, 1), value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(2000)


def webp(width: int, height: int) -> bytes:
    """An animated WebP file of one small frame on a canvas of this size (WebP container specification)."""
    frame = bytes(6) + (31).to_bytes(3, "little") * 2 + bytes(4) + saved("WEBP", lossless=True)[12:]
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    parts = [(b"VP8X", b"\2\0\0\0" + canvas), (b"ANIM", bytes(6)), (b"ANMF", frame)]
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data for kind, data in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width: int, height: int, **options: Any) -> bytes:
    """A JPEG file of a few bytes that promises this size (ITU-T T.81, B.2.2)."""
    contents = saved("JPEG", **options)
    place = contents.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
    return contents[:place] + struct.pack(">HH", height, width) + contents[place + 4 :]


def jpeg_of_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    contents = saved("JPEG", Image.new("L", (2048, 2048)), progressive=True)
    last = contents.rindex(b"\xff\xc4", 0, contents.rindex(b"\xff\xda"))
    return contents[:-2] + contents[last:-2] * scans + contents[-2:]


def jpeg_of_parts(count: int, begin: bytes) -> bytes:
    """A JPEG with so many APP1 segments of 64 kB."""
    contents, part = saved("JPEG"), begin + bytes(65533 - len(begin))
    return contents[:2] + (b"\xff\xe1\xff\xff" + part) * count + contents[2:]


def cut(kind: str) -> Callable[[], bytes]:
    """Two thirds of a file."""
    contents = saved(kind)
    return lambda: contents[: len(contents) * 2 // 3]


# Name, what is in it, and why it is refused.
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb.png": (lambda: png(60000, 60000, deflated(60000 * 7501), bits=1), TOO_MANY.format("60000 x 60000")),
    "long.png": (lambda: png(2**31 - 1, 1, deflated(9)), TOO_MANY.format("2147483647 x 1")),
    "text.png": (
        lambda: png(32, 32, deflated(1056), chunk(b"zTXt", b"a\0\0" + deflated(1 << 26))),
        "Decompressed data too large",
    ),
    "profile.png": (
        lambda: png(32, 32, deflated(1056), chunk(b"iCCP", b"a\0\0" + deflated(1 << 26))),
        "Decompressed data too large",
    ),
    "texts.png": (
        lambda: png(32, 32, deflated(1056), *[chunk(b"zTXt", b"a\0\0" + deflated(MEBIBYTE // 2))] * 200),
        "Too much memory used in text chunks",
    ),
    "screen.gif": (lambda: gif((65535, 65535), (1, 1)), TOO_MANY.format("65535 x 65535")),
    "frame.gif": (lambda: gif((10, 10), (20000, 20000)), "400000000 pixels|20000 x 20000 pixels"),
    "bomb.bmp": (lambda: bmp(30000, 30000), TOO_MANY.format("30000 x 30000")),
    "bomb.tiff": (lambda: tiff(60000, 60000), TOO_MANY.format("60000 x 60000")),
    "strips.tiff": (lambda: tiff(1000, 1000, strips=2**32 - 1), "unknown data organization|Tag data larger than file"),
    "strip.tiff": (lambda: tiff(1000, 1000, strip_bytes=2**32 - 1), "cut short"),
    "bomb.webp": (lambda: webp(13000, 13000), TOO_MANY.format("13000 x 13000")),
    "bomb.jpg": (lambda: jpeg(65500, 65500), TOO_MANY.format("65500 x 65500")),
    "progressive.jpg": (lambda: jpeg(20000, 20000, progressive=True), TOO_MANY.format("20000 x 20000")),
    "header.jpg": (lambda: jpeg_of_parts(600, b"Exif\0\0"), "begins with more than 33554432 bytes that are no pixels"),
    "empty.jpg": (lambda: b"", NOT_ONE),
    "zeros.jpg": (lambda: bytes(MEBIBYTE), NOT_ONE),
    "text.jpg": (lambda: b"<html>404 Not Found</html>", NOT_ONE),
    "program.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NOT_ONE),
    "cut.jpg": (cut("JPEG"), "its pixels are cut short"),
    "cut.png": (cut("PNG"), "its pixels are cut short"),
    "cut.gif": (cut("GIF"), "its pixels are cut short"),
    "cut.bmp": (cut("BMP"), "its pixels are cut short"),
    "cut.tiff": (cut("TIFF"), "its pixels are cut short"),
    "cut.webp": (cut("WEBP"), "could not create decoder object"),
    "point.png": (lambda: saved("PNG", noise(1, 1)), "1 x 1 pixels are smaller than minimum_size=8"),
    "line.png": (lambda: saved("PNG", noise(1, 20000)), "1 x 20000 pixels are smaller than minimum_size=8"),
}

# What is odd and yet an image.
USABLE: dict[str, Callable[[], bytes]] = {
    "frames.gif": lambda: saved(
        "GIF",
        noise(32, 32),
        save_all=True,
        append_images=[Image.new("RGB", (32, 32), (0, k % 256, 0)) for k in range(3000)],
    ),
    "metadata.jpg": lambda: jpeg_of_parts(400, b"http://ns.adobe.com/xmp/extension/\0"),
    "much.png": lambda: png(32, 32, deflated(1 << 26)),  # of which 1056 bytes are pixels
    "strip.png": lambda: saved("PNG", noise(20000, 9)),
    "cmyk.jpg": lambda: saved("JPEG", Image.new("CMYK", (32, 32))),
    "16 bits.png": lambda: saved("PNG", Image.fromarray(np.zeros((32, 32), np.uint16))),
    "\udcff\udcfe.png": lambda: saved("PNG"),  # two bytes that are no UTF-8
    "two\nlines.png": lambda: saved("PNG"),
}


def pipe(path: Path) -> None:
    """Opening it waits for somebody who writes."""
    os.mkfifo(path)


def link_to_pipe(path: Path) -> None:
    """The same."""
    os.mkfifo(path.with_suffix(""))
    path.symlink_to(path.with_suffix(""))


def bound_socket(path: Path) -> None:
    """Of a program that has ended."""
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(path))


def ring(path: Path) -> None:
    """Two links that lead to one another."""
    path.symlink_to(path.with_suffix(".png"))
    path.with_suffix(".png").symlink_to(path)


def unreadable(path: Path) -> None:
    """Whose owner keeps it to himself."""
    path.write_bytes(saved("PNG"))
    path.chmod(0)


def sparse(path: Path) -> None:
    """An image, and a terabyte of nothing behind it, which takes no room on a disk."""
    path.write_bytes(saved("JPEG"))
    os.truncate(path, 1 << 40)


# Name, how it comes about, and why it is refused.
ENTRIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe.jpg": (pipe, "it is a pipe, not a file"),
    "pipes.jpg": (link_to_pipe, "it is a pipe, not a file"),
    "socket.jpg": (bound_socket, "it is a socket, not a file"),
    "device.jpg": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    "dangling.jpg": (lambda path: path.symlink_to("/nowhere/at/all.jpg"), "No such file or directory"),
    "itself.jpg": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "ring.jpg": (ring, "Too many levels of symbolic links"),
    "unreadable.jpg": (unreadable, "Permission denied"),
    "sparse.jpg": (sparse, r"its 1099511627776 bytes are more than max_pixels=\d+ can need"),
}
