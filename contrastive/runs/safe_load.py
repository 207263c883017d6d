"""Files of ``torch.save`` from anywhere, read without running any code that they may hold, and checked for damage."""

import errno
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any
from urllib.request import urlopen

import torch

ADDRESSES = ("http://", "https://")
SILENCE_SECONDS = 60.0  # after so long without a byte, an address is given up
ADVICE = (
    "Keep only numbers, strings, lists, mappings and tensors in hyper-parameters and in the states of modules and "
    "callbacks."
)


class CheckpointError(ValueError):
    """A checkpoint that must not be used; the message says why."""


def load(file: Path | IO[bytes], source: object, map_location: Any | None = None) -> dict[str, Any]:
    """What a trainer's checkpoint holds.

    Args:
        file: Local, or open.
        source: What messages call it.
        map_location: See ``torch.load``; the CPU unless given.

    Raises:
        CheckpointError: It takes running code, or is no checkpoint.
    """
    return _safely(lambda: torch.load(file, map_location=map_location or "cpu", weights_only=True), source)


def header(file: Path) -> dict[str, Any]:
    """The same, but no tensor's numbers are read from the disk until they are used.

    Raises:
        CheckpointError: It takes running code, or is no checkpoint.
    """
    return _safely(lambda: torch.load(file, map_location="cpu", weights_only=True, mmap=True), file)


def unsafe_part(content: object, place: str = "") -> str:
    """Where the first thing is that could not be loaded again, and of which class; empty where all could be."""
    if isinstance(content, Mapping | list | tuple):
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        found = (unsafe_part(value, f"{place}[{key!r}]" if place else str(key)) for key, value in items)
        inside = next(filter(None, found), "")
        if inside or type(content) in (dict, list, tuple):
            return inside
    file = BytesIO()
    try:
        torch.save(content, file)
        torch.load(BytesIO(file.getvalue()), weights_only=True)
    except Exception:  # of whatever class: objects of users say themselves why they cannot be saved
        return f"{place} is an object of {type(content).__module__}.{type(content).__qualname__}"
    return ""


def damage(file: Path) -> str:
    """What is wrong with a file by the sums that it has inside, as every zip archive; torch never looks at them.

    Returns:
        Empty where they are right, or where there are none: files of old versions of torch.
    """
    with file.open("rb") as opened:
        if opened.read(2) != b"PK":
            return ""
        try:
            with zipfile.ZipFile(opened) as archive:
                part = archive.testzip()
        except Exception as error:  # whatever zipfile makes of damaged bytes
            return str(error) or type(error).__name__
    return f"the sum of its part {part} is wrong" if part else ""


def fetch(address: str, copy: IO[bytes]) -> None:
    """Copy what an address has, all of it, to an open file.

    Raises:
        OSError: It does not answer, falls silent or breaks off, or there is no room for it.
    """
    folder = tempfile.gettempdir()
    try:
        with urlopen(address, timeout=SILENCE_SECONDS) as answer:
            size, room = answer.length, shutil.disk_usage(folder).free
            if size is None:
                raise OSError("it does not say how many bytes it has")
            if size > room:
                raise OSError(errno.ENOSPC, f"it has {size} bytes, and {folder} has room for {room}")
            shutil.copyfileobj(answer, copy)
            if copy.tell() != size:
                raise OSError(f"it broke off after {copy.tell()} of {size} bytes")
    except OSError as error:
        raise OSError(f"{address} cannot be read: {error}. Fetch it yourself, and give the file.") from error
    copy.seek(0)


def _safely(read: Callable[[], Any], source: object) -> dict[str, Any]:
    try:
        content = read()
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"an object of {found[1]}" if found else "more than tensors and plain values"
        raise CheckpointError(
            f"{source} holds {what}, which could run code and is therefore never loaded. {ADVICE}"
        ) from error
    except Exception as error:  # whatever torch makes of bytes that are no checkpoint
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{source} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{source} holds a {type(content).__name__} and is no checkpoint of a trainer.")
    return content
