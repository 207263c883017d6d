"""Real processes to be killed: each in a group of its own, with a time limit that ends the group and fails the test.

``started`` runs a command, as a user does. ``forked`` calls a function in processes that have torch and Lightning
imported already, which takes a tenth of a second instead of eight.
"""

import multiprocessing as mp
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

ROOT = Path(__file__).resolve().parents[2]
OF_LAUNCHERS = ("PL_", "LOCAL_", "NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "MASTER_", "SLURM", "PYTEST_")
PRELOADED = ["tests.drills.trainee"]  # with all that it imports
TAIL = 4000  # characters of what a process wrote, in a failure's message


@dataclass(frozen=True)
class Ended:
    """What is left of a process.

    Attributes:
        code: Its exit code; minus a signal's number, if that killed it.
        codes: The same of all that were forked together.
        stdout: What it and its children wrote there.
        stderr: What it and its children wrote there.
        seconds: From the start, or from the last signal sent to it, to its end.
    """

    code: int
    codes: list[int]
    stdout: str
    stderr: str
    seconds: float


class Handle(Protocol):
    """How a process is asked whether it has ended, as ``subprocess.Popen`` has it."""

    pid: int

    def poll(self) -> int | None: ...


class Process:
    """A running process, or several that were forked together, and their children; ``started`` and ``forked`` make one.

    Args:
        handles: The processes; the first is the leader of their group.
        folder: Where ``stdout`` and ``stderr`` are written.
    """

    def __init__(self, handles: Sequence[Handle], folder: Path) -> None:
        self.handles = handles
        self.folder = folder
        self.since = time.monotonic()

    @property
    def pid(self) -> int:
        """Of the first process, and of the group."""
        return self.handles[0].pid

    @property
    def codes(self) -> list[int | None]:
        """Of the processes; None while they run."""
        return [handle.poll() for handle in self.handles]

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
            return bool(found) or None not in self.codes

        self._wait(told, seconds, f"did not write {start!r}")
        if not found:
            pytest.fail(f"The process ended with {self.codes}, before {start!r}. {self._tail()}")
        return found[0]

    def ended(self, seconds: float = 60) -> Ended:
        """Wait for the end of the process, and of its children.

        Args:
            seconds: Until the process group is killed and the test fails.
        """
        self._wait(lambda: None not in self.codes and not self.alive(), seconds, "did not end")
        codes = [code for code in self.codes if code is not None]
        return Ended(codes[0], codes, self.stdout, self.stderr, time.monotonic() - self.since)

    def alive(self) -> bool:
        """Whether any process of the group runs."""
        return any(_runs(pid) for pid in _group(self.pid))

    def kill(self) -> None:
        """End whatever of the group still runs."""
        while self.alive() or None in self.codes:
            with suppress(ProcessLookupError):  # the last one has just ended, or the first is not in its group yet
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.01)

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
def started(command: Sequence[str | Path], folder: Path) -> Iterator[Process]:
    """A process that ends with the block at the latest, in this one's environment without what launchers set.

    Args:
        command: ``python`` stands for this Python.
        folder: Where ``stdout`` and ``stderr`` are written; made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def interrupts() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and children inherit that

    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        popen = subprocess.Popen(
            [sys.executable if word == "python" else word for word in command],
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=interrupts,
        )
    process = Process([popen], folder)
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def forked(
    function: Callable[..., None],
    *arguments: Any,
    folder: Path,
    environments: Sequence[Mapping[str, str]] = ({},),
) -> Iterator[Process]:
    """A call of a function in a process of its own, or in several of one group; they end with the block at the latest.

    Args:
        function: Importable, from a module that the forking process has imported: see ``PRELOADED``.
        arguments: For it.
        folder: Where ``stdout`` and ``stderr`` are written; made if it is not there.
        environments: Of each process, added to this one's, of which what launchers set is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("stdout", "stderr"):
        (folder / name).write_bytes(b"")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    handles: list[_Fork] = []
    try:
        for added in environments:
            environment, leader = {**_environment(), **added}, handles[0].pid if handles else 0
            process = context.Process(target=_in_fork, args=(function, arguments, folder, environment, leader))
            process.start()
            handles.append(_Fork(process))
            while handles[-1].poll() is None and os.getpgid(handles[-1].pid) != handles[0].pid:
                time.sleep(0.002)
        yield Process(handles, folder)
    finally:
        if handles:
            Process(handles, folder).kill()


class _Fork:
    def __init__(self, process: Any) -> None:
        self.process, self.pid = process, process.pid

    def poll(self) -> int | None:
        code: int | None = self.process.exitcode
        return code


def _in_fork(
    function: Callable[..., None], arguments: Sequence[Any], folder: Path, environment: Mapping[str, str], leader: int
) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # found out anew, where the environment has TMPDIR
    signal.signal(signal.SIGINT, signal.default_int_handler)
    mp.set_start_method("fork", force=True)  # for worker processes, as in a process that was not forked so
    os.setpgid(0, leader)
    function(*arguments)


def run(command: Sequence[str | Path], folder: Path, *, seconds: float = 60) -> Ended:
    """``started``, and wait for its end; longer than so many seconds fails the test."""
    with started(command, folder) as process:
        return process.ended(seconds)


def _environment() -> dict[str, str]:
    """This process's, without what launchers of ranks, and pytest, leave in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    return {**kept, "OMP_NUM_THREADS": "1"}


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
