"""Small files that are whole, or as they were before: also after a kill, a full disk or a power cut."""

import errno
import os
from contextlib import suppress
from glob import escape
from pathlib import Path

UNFINISHED = ".part"
TRIAL = "trial"  # what is written to see whether anything can be


def write_text(file: Path, text: str) -> None:
    """A reader sees the old content or the new one, never half of it; when this returns, the new one is on the disk."""
    unfinished = unfinished_name(file)
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        put(unfinished, file)
    finally:
        with suppress(FileNotFoundError):
            unfinished.unlink()


def unfinished_name(file: Path) -> Path:
    """Beside the file, since only within a file system is one put in place at once; of this process alone."""
    return file.with_name(f"{file.name}.{os.getpid()}{UNFINISHED}")


def halves_of(file: Path) -> list[Path]:
    """What processes that were killed while they wrote the file have left beside it; one may still be writing."""
    halves = file.parent.glob(f"{escape(file.name)}.*{UNFINISHED}")
    return [half for half in halves if half.name[len(file.name) + 1 : -len(UNFINISHED)].isdigit()]


def put(unfinished: Path, file: Path) -> None:
    """Give a file that is on the disk its name, in place of what had it; when this returns, that is on the disk too."""
    os.replace(unfinished, file)
    sync(file.parent)


def make_folder(folder: Path) -> None:
    """A folder, and those above it, that are there after a power cut too."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync(path.parent)


def sync(path: Path) -> None:
    """Force a file to the disk, or a folder: until that is there too, a new name in it is not."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # so say file systems over a network that have no use for it
            raise
    finally:
        os.close(number)


def check_writable(folder: Path, option: str) -> None:
    """Make a folder, before hours are spent on what it is to hold.

    Args:
        folder: Where something is to be written.
        option: What names another one on the command line.

    Raises:
        OSError: It cannot be made, or not be written to.
    """
    trial = unfinished_name(folder / TRIAL)
    try:
        make_folder(folder)
        trial.write_bytes(b"")
        trial.unlink(missing_ok=True)  # whoever holds the folder may have swept it
    except OSError as error:
        raise OSError(
            f"Nothing can be written to {folder}: {error}. Make it writable, or name another with {option}."
        ) from error
