"""Checkpoints that are whole or not there: written beside their place, forced to the disk, proven by a digest, and
loaded without running any code that a file may hold.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import PicklingError
from typing import IO, Any, NamedTuple, cast

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from contrastive.runs import safe_load
from contrastive.runs.disk import UNFINISHED, check_writable, make_folder, put, sync, unfinished_name, write_text
from contrastive.runs.safe_load import CheckpointError as CheckpointError

SUFFIX = ".ckpt"
DIGESTS = "sha256.json"  # beside the checkpoints: their names and digests, in the order in which they were written


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
            make_folder(path.parent)
            unfinished = unfinished_name(path)
            try:
                digest = _write(checkpoint, unfinished)
                safe_load.header(unfinished)
            except (CheckpointError, PicklingError, AttributeError, TypeError) as error:
                part = safe_load.unsafe_part(checkpoint)
                reason = f"{part}, which could run code and would never be loaded again. {safe_load.ADVICE}"
                raise CheckpointError(f"{path} was not written: {reason if part else error}") from error
            with _listing(path.parent, path.name, [_Entry(path.name, digest)]):
                put(unfinished, path)

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
        if str(path).startswith(safe_load.ADDRESSES):
            with tempfile.TemporaryFile() as copy:
                safe_load.fetch(str(path), copy)
                return safe_load.load(copy, path, map_location)
        file = Path(path)
        if not file.exists():
            raise FileNotFoundError(f"There is no checkpoint at {file}.")
        check_whole(file)
        return safe_load.load(file, file, map_location)

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
            safe_load.header(file)
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
    digests = _digests_of(file)
    while digests and _digest_of(file) not in digests:
        earlier, digests = digests, _digests_of(file)
        if digests == earlier:  # and no run has just written it anew
            raise CheckpointError(
                f"{file} is torn or was altered: its content is not what was written. Go on from another checkpoint of "
                "the folder, or delete this one."
            )
    if not digests and (damage := safe_load.damage(file)):
        raise CheckpointError(f"{file} cannot be read as a checkpoint: {damage}. It is torn, was altered, or is none.")


def keep_as(file: Path, name: str) -> None:
    """Give a checkpoint a second name beside it, in place of what had that name, before it is overwritten itself."""
    other = file.with_name(name)
    with _whole_before(other):
        unfinished = unfinished_name(other)
        unfinished.unlink(missing_ok=True)
        try:
            os.link(file, unfinished)  # costs nothing: what takes the first name's place is another file
        except OSError:  # not every file system has links
            shutil.copyfile(file, unfinished)
            sync(unfinished)
        own = [entry for entry in _listed(file.parent) if entry.name == file.name]
        with _listing(file.parent, name, [*(_Entry(name, entry.digest) for entry in own), *own]):
            put(unfinished, other)


def prepare(folder: Path) -> list[Path]:
    """Make a folder ready to be written to. One process of a run calls this, before the others write.

    Returns:
        Halves of checkpoints that a killed run left behind, which are deleted.

    Raises:
        OSError: It cannot be written to.
    """
    check_writable(folder, "--run-dir")
    sync(folder.parent)
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
            f"The checkpoint {path} could not be written: {error}. What lies there is whole. Free some space "
            "on the disk, or make the folder writable, and call the same command again to go on."
        ) from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            unfinished_name(path).unlink()


class _Hashing:
    """A file for ``torch.save``: its digest is known when all is written, and nothing is held in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, part: bytes | memoryview) -> int:
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
            torch.save(checkpoint, cast(IO[bytes], hashing))
        except RuntimeError as error:
            # What the disk says, or an interrupt, comes out of torch's writer as an error of its own making.
            hidden = error.__context__
            if hidden is None or hidden is handled:
                raise
            raise hidden from None
        opened.flush()
        os.fsync(opened.fileno())
    return hashing.sha256.hexdigest()


# The list of digests


class _Entry(NamedTuple):
    name: str
    digest: str


def _listed(folder: Path) -> list[_Entry]:
    """In the order of writing. A list that is not there, or is damaged itself, says nothing of any file."""
    try:
        content = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        return [_Entry(str(name), str(digest)) for name, digest in content]
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return []


@contextmanager
def _listing(folder: Path, name: str, new: Sequence[_Entry]) -> Iterator[None]:
    """Within it the name gets new content. Whenever that is cut short, the digest of what has the name is listed."""
    earlier = [entry for entry in _listed(folder) if entry not in new]
    _write_list(folder, [*earlier, *new])
    yield
    _write_list(folder, [*(entry for entry in earlier if entry.name != name), *new])


def _write_list(folder: Path, listed: Sequence[_Entry]) -> None:
    write_text(folder / DIGESTS, json.dumps(listed, indent=2) + "\n")


def _newest_first(folder: Path) -> list[Path]:
    listed = _listed(folder)
    places: dict[str, list[int]] = {}
    for place, entry in enumerate(listed):
        places.setdefault(entry.name, []).append(place)

    def written(file: Path) -> int:
        own = places[file.name]
        if len(own) == 1 or not file.is_file():
            return own[-1]
        digest = _digest_of(file)  # writing it was cut short: is this the new one or the old one?
        return max((place for place in own if listed[place].digest == digest), default=own[-1])

    files = sorted(folder.glob(f"*{SUFFIX}"))
    in_list = sorted((file for file in files if file.name in places), key=written, reverse=True)
    return [*in_list, *sorted((file for file in files if file.name not in places), key=_steps, reverse=True)]


def _steps(file: Path) -> int:
    try:
        return int(safe_load.header(file)["global_step"])
    except (CheckpointError, OSError, KeyError, TypeError):  # it will be skipped, and then it is said why
        return -1


def _digests_of(file: Path) -> set[str]:
    """Those that are listed beside it."""
    return {entry.digest for entry in _listed(file.parent) if entry.name == file.name}


def _digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
