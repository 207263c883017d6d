"""Checkpoints that are whole or not there: written beside their place, forced to the disk, proven by a digest, and
loaded without running any code that a file may hold.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import PicklingError, UnpicklingError
from typing import Any, BinaryIO, NamedTuple
from urllib.request import urlopen

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from contrastive.runs.disk import check_writable

SUFFIX = ".ckpt"
DIGESTS = "sha256.json"  # beside the checkpoints: their names and digests, in the order in which they were written
UNFINISHED = ".part"
ADDRESSES = ("http://", "https://")
SILENCE_SECONDS = 60.0  # after so long without a byte an address is given up


class CheckpointError(ValueError):
    """A checkpoint that must not be used; the message says why."""


class WholeCheckpoints(CheckpointIO):
    """Saves and loads a trainer's checkpoints so that no kill, full disk, loss of power or flipped bit costs a run.

    ``Trainer(plugins=[WholeCheckpoints()])``. A checkpoint is written to a file beside its place, forced to the disk,
    read back in the way it will be loaded, and only then takes the place of an older one. Its SHA-256 goes into
    ``sha256.json`` in the same folder, before the file takes its place, beside the older one's: whenever a process is
    killed, the file that lies there has a digest that is listed. The rank that Lightning lets write calls this; only
    one run writes to a folder. It takes no memory beside the state itself.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; what lay there before stays until the new one is whole.

        Args:
            checkpoint: What Lightning collected.
            path: A local file. A link gives way to the file; what it leads to is left as it is.
            storage_options: None, as there are none for local files.

        Raises:
            CheckpointError: It holds what could not be loaded again without running code, such as an object among the
                hyper-parameters.
            TypeError: There are storage options.
            ValueError: The path is no local one.
            OSError: The disk is full, or the folder cannot be written to.
        """
        if storage_options is not None:
            raise TypeError(f"Checkpoints go to local files, which have no storage options, got {storage_options!r}.")
        if "://" in str(path):
            raise ValueError(f"Checkpoints go to local files, and {path} is none. Copy them from a local folder.")
        path = Path(path)
        if path.is_dir():
            raise IsADirectoryError(f"The checkpoint {path} would take the place of a folder. Name it otherwise.")
        with _whole_before(path):
            _make_folder(path.parent)
            unfinished = _unfinished(path)
            digest = _write(checkpoint, unfinished)
            _check_loads_again(unfinished, checkpoint)
            with _listing(path.parent, path.name, [_Entry(path.name, digest)]):
                _put(unfinished, path)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, local or of an http address; nothing in it is executed.

        Args:
            path: A file, or an address that begins with http:// or https://, which is read anew each time.
            map_location: See ``torch.load``; the CPU unless given.
            weights_only: True or None, which both mean that nothing is executed.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: It is torn or altered, or cannot be read without running code.
            OSError: The address does not answer, or falls silent, or the disk has no room for what it has.
            ValueError: ``weights_only=False`` was asked for.
        """
        if weights_only is False:
            raise ValueError("weights_only=False would run code that a checkpoint may hold, which is never done here.")
        if str(path).startswith(ADDRESSES):
            with tempfile.TemporaryFile() as copy:
                _fetch(str(path), copy)
                return _safely(lambda: torch.load(copy, map_location=map_location or "cpu", weights_only=True), path)
        file = Path(path)
        if not file.exists():
            raise FileNotFoundError(f"There is no checkpoint at {file}.")
        check_whole(file)
        return _safely(lambda: torch.load(file, map_location=map_location or "cpu", weights_only=True), file)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint that Lightning has no more use for; it calls this once a newer one is written."""
        path = Path(path)
        path.unlink(missing_ok=True)
        listed = _listed(path.parent)
        left = [entry for entry in listed if entry.name != path.name]
        if left != listed:
            _write_list(path.parent, left)


@dataclass(frozen=True)
class Newest:
    """The checkpoint to go on from.

    Attributes:
        path: The newest that is whole; None where there is none.
        skipped: Newer ones, and why each cannot be used.
    """

    path: Path | None
    skipped: Mapping[Path, str]


def newest(folder: Path) -> Newest:
    """The whole checkpoint that was written last; later ones that are not whole are named, and left where they are.

    The list of digests tells the order, which no clock and no copying changes. What is not in the list counts as older,
    the one with the most steps first. Every file's bytes are read until one is whole, but no tensors are made.
    """
    skipped: dict[Path, str] = {}
    for file in _newest_first(folder):
        try:
            check_whole(file)
            _check_loads_again(file)
        except (CheckpointError, OSError) as error:
            skipped[file] = str(error)
        else:
            return Newest(file, skipped)
    return Newest(None, skipped)


def check_whole(file: Path) -> None:
    """Compare a checkpoint with its digest; where none is listed beside it, with the sums that torch put into it.

    Raises:
        CheckpointError: They differ.
    """
    digests = {entry.digest for entry in _listed(file.parent) if entry.name == file.name}
    if digests and _digest_of(file) not in digests:
        raise CheckpointError(
            f"{file} is torn or was altered: its content is not what was written. Go on from another checkpoint of "
            "the folder, or delete this one."
        )
    if not digests and (damaged := _damaged_part(file)):
        raise CheckpointError(f"{file} cannot be read as a checkpoint: {damaged}. It is torn, was altered, or is none.")


def keep_as(file: Path, name: str) -> None:
    """Give a checkpoint a second name beside it, in place of what had that name, before it is overwritten itself."""
    other = file.with_name(name)
    with _whole_before(other):
        unfinished = _unfinished(other)
        unfinished.unlink(missing_ok=True)
        try:
            os.link(file, unfinished)  # costs nothing: what takes the first name's place is another file
        except OSError:  # not every file system has links
            shutil.copyfile(file, unfinished)
            _sync(unfinished)
        own = [entry for entry in _listed(file.parent) if entry.name == file.name]
        with _listing(file.parent, name, [*(_Entry(name, entry.digest) for entry in own), *own]):
            _put(unfinished, other)


def prepare(folder: Path) -> list[Path]:
    """Make a folder ready to be written to. One process of a run calls this, before the others write.

    Returns:
        Halves of checkpoints that a killed run left behind, which are deleted.

    Raises:
        OSError: It cannot be written to.
    """
    check_writable(folder, "--run-dir")
    _sync(folder.parent)
    orphans = sorted(folder.glob(f"*{UNFINISHED}"))
    for orphan in orphans:
        orphan.unlink()
    return orphans


# Writing


@contextmanager
def _whole_before(path: Path) -> Iterator[None]:
    """Within it a file is written beside ``path`` and put there; what is left of it goes, and errors say what stays."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"The checkpoint {path} could not be written: {error}. What lay there before is whole. Free some space "
            "on the disk, or make the folder writable, and call the same command again to go on."
        ) from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            _unfinished(path).unlink()


class _Hashing:
    """A file for ``torch.save``: its digest is known when all is written, and nothing is held in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, part: bytes) -> int:
        self.sha256.update(part)
        return self.file.write(part)

    def flush(self) -> None:
        self.file.flush()


def _write(checkpoint: Mapping[str, Any], file: Path) -> str:
    """The digest, once all is on the disk."""
    handled = sys.exception()  # a checkpoint may be written on account of an error, which is then no cause
    with file.open("wb") as opened:
        hashing = _Hashing(opened)
        try:
            torch.save(checkpoint, hashing)
        except RuntimeError as error:
            # What the disk says, or an interrupt, comes out of torch's writer as an error of its own making.
            hidden = error.__context__
            if hidden is None or hidden is handled:
                raise
            raise hidden from None
        except (PicklingError, AttributeError, TypeError) as error:
            raise CheckpointError(_refusal(str(file), f"what cannot be saved ({error})", checkpoint)) from error
        opened.flush()
        os.fsync(opened.fileno())
    return hashing.sha256.hexdigest()


def _put(unfinished: Path, path: Path) -> None:
    os.replace(unfinished, path)
    _sync(path.parent)


def _unfinished(file: Path) -> Path:
    """Beside it, since only within a file system is a file put in place at once; of this process alone."""
    return file.with_name(f"{file.name}.{os.getpid()}{UNFINISHED}")


def _make_folder(folder: Path) -> None:
    """A folder, and those above it, that are there after a loss of power too."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Force a file to the disk; or a folder, for until then a new name in it is not there."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # network file systems that keep no folders say so
            raise
    finally:
        os.close(number)


# The list of digests


class _Entry(NamedTuple):
    name: str
    digest: str


def _listed(folder: Path) -> list[_Entry]:
    """In the order of writing. A list that is not there, or is damaged itself, says nothing of any file."""
    try:
        content = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        return [_Entry(str(name), str(digest)) for name, digest in content]
    except (FileNotFoundError, ValueError, TypeError):
        return []


@contextmanager
def _listing(folder: Path, name: str, new: Sequence[_Entry]) -> Iterator[None]:
    """Within it, what has the name is replaced: whenever that is cut short, the list has the digest of what is there."""
    earlier = [entry for entry in _listed(folder) if entry not in new]
    _write_list(folder, [*earlier, *new])
    yield
    _write_list(folder, [*(entry for entry in earlier if entry.name != name), *new])


def _write_list(folder: Path, listed: Sequence[_Entry]) -> None:
    unfinished = _unfinished(folder / DIGESTS)
    try:
        with unfinished.open("w", encoding="utf-8") as opened:
            json.dump(listed, opened, indent=2)
            opened.flush()
            os.fsync(opened.fileno())
        _put(unfinished, folder / DIGESTS)
    finally:
        with suppress(FileNotFoundError):
            unfinished.unlink()


def _newest_first(folder: Path) -> list[Path]:
    listed = _listed(folder)
    files = {file.name: file for file in folder.glob(f"*{SUFFIX}")}
    places: dict[str, list[int]] = {}
    for place, entry in enumerate(listed):
        places.setdefault(entry.name, []).append(place)

    def written(file: Path) -> int:
        own = places[file.name]
        if len(own) == 1 or not file.is_file():
            return own[-1]
        digest = _digest_of(file)  # saving was cut short: is it the new one or the old one?
        return max((place for place in own if listed[place].digest == digest), default=own[-1])

    others = [file for name, file in files.items() if name not in places]
    in_list = sorted((file for name, file in files.items() if name in places), key=written, reverse=True)
    return [*in_list, *sorted(others, key=lambda file: (_steps(file), file.name), reverse=True)]


def _steps(file: Path) -> int:
    try:
        return int(
            _safely(lambda: torch.load(file, map_location="cpu", weights_only=True, mmap=True), file)["global_step"]
        )
    except (CheckpointError, OSError, KeyError, TypeError, ValueError):  # will be skipped, and then it is said why
        return -1


# Reading


def _check_loads_again(file: Path, checkpoint: object = None) -> None:
    """Read all but the tensors' numbers.

    Args:
        file: Where it lies.
        checkpoint: What was written to it, where that is at hand: the message then says which part cannot be loaded.

    Raises:
        CheckpointError: That takes running code, or the file is no checkpoint.
    """
    _safely(lambda: torch.load(file, map_location="cpu", weights_only=True, mmap=True), file, checkpoint)


def _safely(load: Callable[[], Any], source: object, checkpoint: object = None) -> dict[str, Any]:
    try:
        content = load()
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"an object of {found[1]}" if found else "more than tensors and plain values"
        raise CheckpointError(_refusal(source, what, checkpoint)) from error
    except OSError:
        raise
    except Exception as error:  # whatever torch makes of bytes that are no checkpoint
        raise CheckpointError(
            f"{source} cannot be read as a checkpoint: {[*str(error).splitlines(), ''][0]}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{source} holds a {type(content).__name__} and is no checkpoint of a trainer.")
    return content


def _refusal(source: object, what: str, checkpoint: object) -> str:
    place = _unsafe_place(checkpoint, "")
    return (
        f"{source} holds {what}{f' as {place}' if place else ''}, which could run code and is therefore never loaded. "
        "Keep only numbers, strings, lists, mappings and tensors in hyper-parameters and in the states of modules and "
        "callbacks."
    )


def _unsafe_place(content: object, place: str) -> str:
    """Where in a checkpoint the first thing is that could not be loaded again; empty where all could be."""
    if type(content) in (dict, list, tuple):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        found = (_unsafe_place(value, f"{place}[{key!r}]" if place else str(key)) for key, value in items)
        return next(filter(None, found), "")
    file = BytesIO()
    try:
        torch.save(content, file)
        torch.load(BytesIO(file.getvalue()), weights_only=True)
    except Exception:  # of whatever class: user's objects say themselves why they cannot be pickled
        return place
    return ""


def _fetch(address: str, copy: BinaryIO) -> None:
    """Copy what an address has, all of it, to a file."""
    try:
        with urlopen(address, timeout=SILENCE_SECONDS) as answer:
            size, free = answer.length, shutil.disk_usage(tempfile.gettempdir()).free
            if size is None:
                raise OSError("it does not say how much it has")
            if size > free:
                raise OSError(errno.ENOSPC, f"it has {size} bytes, and {tempfile.gettempdir()} room for {free}")
            shutil.copyfileobj(answer, copy)
            if copy.tell() != size:
                raise OSError(f"it broke off after {copy.tell()} of {size} bytes")
    except OSError as error:
        raise OSError(f"{address} cannot be read: {error}. Fetch it yourself, and give the file.") from error
    copy.seek(0)


def _damaged_part(file: Path) -> str:
    """What the sums say that a checkpoint has inside, as every zip archive; torch itself never looks at them."""
    with file.open("rb") as opened:
        if opened.read(2) != b"PK":  # of old versions of torch, without sums
            return ""
        try:
            with zipfile.ZipFile(opened) as archive:
                part = archive.testzip()
        except OSError:
            raise
        except Exception as error:  # whatever zipfile makes of damaged bytes
            return str(error) or type(error).__name__
    return f"the sum of its part {part} is wrong" if part else ""


def _digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
