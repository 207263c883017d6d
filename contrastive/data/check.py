"""Finding the files that are no image before training does."""

import io
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import compress

from PIL import Image
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from contrastive.data.decode import MAX_PIXELS, NotAnImageError, decode_image, open_file, open_image
from contrastive.data.files import ImageTree, shown

_NUM_THREADS = 16  # they wait for the disk, not for the processor
_FILES_PER_TASK = 256
_SHOWN = 20


@dataclass(frozen=True)
class CheckedImages:
    """The images of a tree that passed, and why the others did not.

    Attributes:
        tree: The tree without the bad files.
        bad: Each bad file's path relative to the root, and what is wrong with it.
    """

    tree: ImageTree
    bad: dict[str, str]


def check_images(
    tree: ImageTree,
    *,
    minimum_size: int,
    max_bad_fraction: float,
    verify_pixels: bool = False,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> CheckedImages:
    """Open every file's header, look at its end, and take out those that are no image, cut short or too small.

    Whole files are decoded only where their end is not the format's (a file cut short, or one with data appended) or
    where asked for.

    Args:
        tree: The files.
        minimum_size: Pixels that both sides must have at least.
        max_bad_fraction: Above this fraction of bad files the check fails, 0..1.
        verify_pixels: Decode every file, which finds damage in its middle too and takes as long as an epoch.
        at_least: What both sides of a JPEG keep at least if it is decoded at reduced scale; None decodes all in full.
        max_pixels: More than these are not decoded.

    Raises:
        ValueError: More bad files than allowed, or nothing but bad files.
    """
    start = time.perf_counter()

    def fault(file: str) -> str | None:
        return find_fault(
            tree.root / file,
            minimum_size=minimum_size,
            verify_pixels=verify_pixels,
            at_least=at_least,
            max_pixels=max_pixels,
        )

    reasons = list(_in_threads(fault, tree.files))
    seconds = time.perf_counter() - start
    bad = {file: reason for file, reason in zip(tree.files, reasons, strict=True) if reason is not None}
    kept = [reason is None for reason in reasons]
    ignored = f", {tree.ignored.total()} files of other kinds ignored" if tree.ignored else ""
    rank_zero_info(
        f"{tree.root}: {len(tree.files) - len(bad)} images, {len(bad)} bad files{ignored}; checked in {seconds:.1f} s."
    )
    if bad:
        listed = "".join(f"\n  {shown(file)}: {reason}" for file, reason in list(bad.items())[:_SHOWN])
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        found = f"{len(bad)} of {len(tree.files)} files in {tree.root} are no usable images:{listed}{more}"
        if len(bad) > max_bad_fraction * len(tree.files) or len(bad) == len(tree.files):
            raise ValueError(
                f"{found}\nThat is more than max_bad_fraction={max_bad_fraction:g} allows. Remove or repair them, "
                "lower minimum_size if they are only small, or allow a larger fraction."
            )
        rank_zero_warn(f"{found}\nThey are left out, as max_bad_fraction={max_bad_fraction:g} allows.")
    labels = None if tree.labels is None else list(compress(tree.labels, kept))
    return CheckedImages(replace(tree, files=list(compress(tree.files, kept)), labels=labels), bad)


def find_fault(
    path: str | os.PathLike[str],
    *,
    minimum_size: int,
    verify_pixels: bool = False,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> str | None:
    """What is wrong with an image file, None if nothing is.

    Args:
        path: The file.
        minimum_size: Pixels that both sides must have at least.
        verify_pixels: Decode it also if header and end are in order.
        at_least: What both sides of a JPEG keep at least if it is decoded at reduced scale; None decodes in full.
        max_pixels: More than these are not decoded.
    """
    try:
        with (
            open_file(path, max_pixels=max_pixels) as stream,
            open_image(stream, at_least=at_least, max_pixels=max_pixels) as image,
        ):
            if min(image.size) < minimum_size:
                width, height = image.size
                return f"{width} x {height} pixels are smaller than minimum_size={minimum_size}"
            in_order = _ends_well(image, stream)
        if verify_pixels or not in_order:
            decode_image(path, at_least=at_least, max_pixels=max_pixels)
    except NotAnImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _in_threads(fault: Callable[[str], str | None], files: list[str]) -> Iterator[str | None]:
    def check(first: int) -> list[str | None]:
        return [fault(file) for file in files[first : first + _FILES_PER_TASK]]

    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        for reasons in threads.map(check, range(0, len(files), _FILES_PER_TASK)):
            yield from reasons


def _ends_well(image: Image.Image, stream: io.BufferedReader) -> bool:
    """Whether a file ends as its format says that a whole one does. False asks for a closer look, no more."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 12))
    end = stream.read(12)
    stream.seek(0)
    start = stream.read(8)
    match image.format:
        case "JPEG" | "MPO":
            return end.endswith(b"\xff\xd9")
        case "PNG":
            return end == b"\x00\x00\x00\x00IEND\xaeB`\x82"
        case "GIF":
            return end.endswith(b";")
        case "WEBP":
            return int.from_bytes(start[4:8], "little") + 8 <= size
        case "BMP":
            return 0 < int.from_bytes(start[2:6], "little") <= size
        case _:  # TIFF has no end, its parts may lie anywhere
            return False
