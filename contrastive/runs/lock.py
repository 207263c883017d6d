"""A run's folder belongs to one process at a time."""

import errno
import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "run.lock"  # stays in the folder: to delete it would let two processes hold two files of one name
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without them say


class FolderInUseError(OSError):
    """Another process trains in the folder; the message says which."""


@contextmanager
def only_process_in(folder: Path) -> Iterator[None]:
    """Hold a run's folder. However this process ends, the kernel lets go of it.

    Args:
        folder: Of a run; it exists.

    Raises:
        FolderInUseError: Another process holds it.
    """
    number = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(number, folder)
        _held.add(number)
        yield
    finally:
        _held.discard(number)
        os.close(number)


def _lock(number: int, folder: Path) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.pread(number, 20, 0).decode(errors="replace").strip()
        who = f"process {pid}" if pid else "another process"
        raise FolderInUseError(
            f"{folder} is in use: {who} trains in it. Wait until it has ended, or name another folder with --run-dir."
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"{folder} lies on a file system without locks ({error}): nothing keeps a second process from training in "
            "it at the same time. Start one only.",
            stacklevel=4,
        )
    os.ftruncate(number, 0)
    os.pwrite(number, str(os.getpid()).encode(), 0)


_held: set[int] = set()


def _forget() -> None:
    """A reader's process that outlives this one must not go on holding the folder."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)
