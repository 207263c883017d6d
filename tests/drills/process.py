"""Real processes to be killed: each in a session of its own, with a time limit that ends it and fails the test."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OF_LAUNCHERS = ("PL_", "LOCAL_", "NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "MASTER_", "SLURM", "PYTEST_")
TAIL = 4000  # characters of what a process wrote, in a failure's message


@dataclass(frozen=True)
class Ended:
    """What is left of a process.

    Attributes:
        code: Its exit code; minus a signal's number, if that killed it.
        stdout: What it and its children wrote there.
        stderr: What it and its children wrote there.
        seconds: From the start, or from the last signal sent to it, to its end.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float


class Process:
    """A running process, and its children in its process group; ``started`` makes one.

    Args:
        popen: The process, leader of its group.
        folder: Where ``stdout`` and ``stderr`` are written.
    """

    def __init__(self, popen: subprocess.Popen[bytes], folder: Path) -> None:
        self.popen = popen
        self.folder = folder
        self.since = time.monotonic()

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self.popen.pid

    @property
    def stdout(self) -> str:
        """What was written so far."""
        return (self.folder / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What was written so far."""
        return (self.folder / "stderr").read_text(errors="replace")

    def signal(self, number: int, pid: int | None = None) -> None:
        """Send a signal to this process, or another one of its group."""
        self.since = time.monotonic()
        os.kill(self.pid if pid is None else pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and all its children at once, as a terminal or a scheduler does."""
        self.since = time.monotonic()
        os.killpg(self.pid, number)

    def line(self, start: str, seconds: float = 60) -> str:
        """Wait for a line on stdout.

        Args:
            start: What it starts with.
            seconds: Until the process group is killed and the test fails.

        Returns:
            The rest of the line.
        """
        found: list[str] = []

        def told() -> bool:
            whole = self.stdout.rpartition("\n")[0].splitlines()
            found[:] = [line.removeprefix(start).strip() for line in whole if line.startswith(start)]
            return bool(found) or self.popen.poll() is not None

        self._wait(told, seconds, f"did not write {start!r}")
        if not found:
            pytest.fail(f"The process ended with {self.popen.returncode}, before {start!r}. {self._tail()}")
        return found[0]

    def ended(self, seconds: float = 60) -> Ended:
        """Wait for the end of the process, and of its children.

        Args:
            seconds: Until the process group is killed and the test fails.
        """
        self._wait(lambda: self.popen.poll() is not None and not self.alive(), seconds, "did not end")
        return Ended(self.popen.returncode, self.stdout, self.stderr, time.monotonic() - self.since)

    def alive(self) -> bool:
        """Whether any process of the group runs."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return any(_runs(pid) for pid in _group(self.pid))

    def kill(self) -> None:
        """End whatever of the group still runs."""
        if self.alive():
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()

    def _wait(self, until: Callable[[], bool], seconds: float, otherwise: str) -> None:
        limit = time.monotonic() + seconds
        while not until():
            if time.monotonic() > limit:
                self.kill()
                pytest.fail(f"The process {otherwise} within {seconds} s and was killed. {self._tail()}")
            time.sleep(0.01)

    def _tail(self) -> str:
        return f"Its stderr ends with:\n{self.stderr[-TAIL:]}\nIts stdout ends with:\n{self.stdout[-TAIL:]}"


@contextmanager
def started(
    command: Sequence[str | Path],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    preexec: Callable[[], None] | None = None,
) -> Iterator[Process]:
    """A process that ends with the block at the latest.

    Args:
        command: ``python`` stands for this Python.
        folder: Where ``stdout`` and ``stderr`` are written; made if it is not there.
        environment: Added to this process's, of which what launchers set is left out.
        preexec: Called in the process before the command, to set limits for example.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}

    def prepare() -> None:
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # jobs in a shell's background ignore it, and children inherit that
        if preexec is not None:
            preexec()

    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        popen = subprocess.Popen(
            [sys.executable if word == "python" else word for word in command],
            cwd=ROOT,
            env={**kept, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=prepare,
        )
    process = Process(popen, folder)
    try:
        yield process
    finally:
        process.kill()


def run(
    command: Sequence[str | Path],
    folder: Path,
    *,
    seconds: float = 60,
    environment: Mapping[str, str] | None = None,
    preexec: Callable[[], None] | None = None,
) -> Ended:
    """``started``, and wait for its end; longer than so many seconds fails the test."""
    with started(command, folder, environment=environment, preexec=preexec) as process:
        return process.ended(seconds)


def _group(pgid: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            pid = int(entry.name)
            try:
                if os.getpgid(pid) == pgid:
                    yield pid
            except ProcessLookupError:  # it has just ended
                continue


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
