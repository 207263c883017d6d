"""Checkpoints that are whole or not there: written beside their place, forced to the disk, proven by a digest, and
loaded without running any code that a file may hold.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from contrastive.runs.folder import check_writable

SUFFIX = ".ckpt"
DIGESTS = "sha256.json"  # beside the checkpoints: the digests that each of them may have
UNFINISHED = ".part"


class CheckpointError(ValueError):
    """A checkpoint that must not be used; the message says why."""


class WholeCheckpoints(CheckpointIO):
    """Saves and loads a trainer's checkpoints so that no kill, full disk or flipped bit costs a run.

    ``Trainer(plugins=[WholeCheckpoints()])``. A checkpoint is written to a file beside its place, forced to the disk,
    read back in the way it will be loaded, and only then takes the place of an older one. Its SHA-256 goes into
    ``sha256.json`` in the same folder, before the file takes its place, beside the older one's: whenever a process is
    killed, the file that lies there has a digest that is listed. The rank that Lightning lets write calls this.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; what lay there before stays until the new one is whole.

        Args:
            checkpoint: What Lightning collected.
            path: A local file.
            storage_options: None, as there are none for local files.

        Raises:
            CheckpointError: It holds what could not be loaded again without running code, such as an object among the
                hyper-parameters.
            TypeError: There are storage options.
            OSError: The disk is full, or the folder cannot be written to.
        """
        if storage_options is not None:
            raise TypeError(f"Checkpoints go to local files, which have no storage options, got {storage_options!r}.")
        path = Path(path)
        unfinished = path.with_name(path.name + UNFINISHED)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = _write(checkpoint, unfinished)
            _check_loads_again(unfinished)
            earlier = _digests(path.parent)
            _write_digests(path.parent, {**earlier, path.name: [digest, *earlier.get(path.name, [])]})
            os.replace(unfinished, path)
            _sync_folder(path.parent)
            _write_digests(path.parent, {**earlier, path.name: [digest]})
        except OSError as error:
            raise OSError(
                f"The checkpoint {path} could not be written: {error}. What lay there before is whole. Free some space "
                "on the disk, or make the folder writable, and call the same command again to go on."
            ) from error
        finally:
            with suppress(FileNotFoundError):
                unfinished.unlink()

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, local or of an http address; nothing in it is executed.

        Args:
            path: A file, or an address that begins with http:// or https://.
            map_location: See ``torch.load``; the CPU unless given.
            weights_only: True or None, which both mean that nothing is executed.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: It is torn or altered, or cannot be read without running code.
            ValueError: ``weights_only=False`` was asked for.
        """
        if weights_only is False:
            raise ValueError("weights_only=False would run code that a checkpoint may hold, which is never done here.")
        if str(path).startswith(("http://", "https://")):
            return _safely(
                lambda: torch.hub.load_state_dict_from_url(
                    str(path), map_location=map_location or "cpu", weights_only=True, progress=False
                ),
                path,
            )
        file = Path(path)
        if not file.exists():
            raise FileNotFoundError(f"There is no checkpoint at {file}.")
        check_whole(file)
        return _safely(lambda: torch.load(file, map_location=map_location or "cpu", weights_only=True), file)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint that Lightning has no more use for; it calls this once a newer one is written."""
        path = Path(path)
        path.unlink(missing_ok=True)
        digests = _digests(path.parent)
        if digests.pop(path.name, None) is not None:
            _write_digests(path.parent, digests)


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
    """The newest whole checkpoint of a folder; newer ones that are not whole are named, and left where they are."""
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)
    skipped: dict[Path, str] = {}
    for file in files:
        try:
            check_whole(file)
            _check_loads_again(file)
        except (CheckpointError, OSError) as error:
            skipped[file] = str(error)
        else:
            return Newest(file, skipped)
    return Newest(None, skipped)


def check_whole(file: Path) -> None:
    """Compare a checkpoint with its digest, where one is listed beside it.

    Raises:
        CheckpointError: They differ, or the list cannot be read.
    """
    listed = _digests(file.parent).get(file.name)
    if listed is not None and _digest_of(file) not in listed:
        raise CheckpointError(
            f"{file} is torn or was altered: its content is not what was written. Go on from another checkpoint of "
            "the folder, or delete this one."
        )


def prepare(folder: Path) -> list[Path]:
    """Make a folder ready to be written to. One process of a run calls this, before the others write.

    Returns:
        Halves of checkpoints that a killed run left behind, which are deleted.

    Raises:
        OSError: It cannot be written to.
    """
    check_writable(folder, "--run-dir")
    orphans = sorted(folder.glob(f"*{UNFINISHED}"))
    for orphan in orphans:
        orphan.unlink()
    return orphans


def _write(checkpoint: Mapping[str, Any], file: Path) -> str:
    """The digest, once all is on the disk."""
    # Through memory, as Lightning does: torch hides what a disk says, and an interrupt, behind errors of its own.
    whole = io.BytesIO()
    torch.save(checkpoint, whole)
    with file.open("wb") as opened:
        opened.write(whole.getbuffer())
        opened.flush()
        os.fsync(opened.fileno())
    return hashlib.sha256(whole.getbuffer()).hexdigest()


def _check_loads_again(file: Path) -> None:
    """Read all but the tensors' numbers.

    Raises:
        CheckpointError: That takes running code, or the file is no checkpoint.
    """
    _safely(lambda: torch.load(file, map_location="cpu", weights_only=True, mmap=True), file)


def _safely(load: Callable[[], Any], source: object) -> dict[str, Any]:
    try:
        content = load()
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"an object of {found[1]}" if found else "more than tensors and plain values"
        raise CheckpointError(
            f"{source} holds {what}, which could run code and is therefore never loaded. Keep only numbers, strings, "
            "lists, mappings and tensors in hyper-parameters and in the states of modules and callbacks."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{source} holds a {type(content).__name__} and is no checkpoint of a trainer.")
    return content


def _digests(folder: Path) -> dict[str, list[str]]:
    """By file name; a list that cannot be read is worse than none, for it says nothing of any file."""
    file = folder / DIGESTS
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise CheckpointError(
            f"{file} cannot be read as JSON ({error}), so no checkpoint beside it can be checked. Delete it to use "
            "them unchecked."
        ) from error


def _write_digests(folder: Path, digests: Mapping[str, list[str]]) -> None:
    file = folder / DIGESTS
    unfinished = file.with_name(file.name + UNFINISHED)
    with unfinished.open("w", encoding="utf-8") as opened:
        json.dump(digests, opened, indent=2)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(unfinished, file)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Until a folder is on the disk too, a new name in it is not."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
