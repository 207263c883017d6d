"""Trainees as processes: to the end, or until something happens to them."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.drills import process
from tests.drills.process import Ended, Process
from tests.drills.trace import Line, read
from tests.drills.trainee import Options, train

HAPPENS = ("kill", "kill_by", "kill_group", "tell", "tell_rank", "pause", "linger")
SECONDS = 150  # for a training that takes two; on a busy machine a process may take a minute to start


@contextmanager
def running(options: Options, *, launched: bool = False) -> Iterator[Process]:
    """A trainee that runs.

    Args:
        options: See there.
        launched: As a command, which starts the other ranks as Lightning does; otherwise all are forked together.
    """
    folder = options.folder / "output"
    if launched:
        command = ["python", "-W", "ignore", "-m", "tests.drills.trainee", *options.words()]
        with process.started(command, folder) as started:
            yield started
        return
    with process.forked(train, options, folder=folder, environments=environments(options.ranks)) as forked:
        yield forked


def ended(options: Options, *, launched: bool = False, seconds: float = SECONDS) -> Ended:
    """A trainee that has ended, in whatever way."""
    with running(options, launched=launched) as trainee:
        return trainee.ended(seconds)


def finished(options: Options) -> list[list[Line]]:
    """Each rank's trace, after going on until the end.

    Raises:
        RuntimeError: It failed.
    """
    end = ended(options)
    if any(end.codes):
        raise RuntimeError(f"The training ended with {end.codes}:\n{end.stderr[-process.TAIL :]}")
    return [read(options.folder, rank) for rank in range(options.ranks)]


class References:
    """Trainings that nothing happens to, each done once.

    Args:
        folder: For them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[Options, list[list[Line]]] = {}

    def __call__(self, options: Options) -> list[list[Line]]:
        """Each rank's trace of such a training, whose checkpoints are those at the epochs' ends alone."""
        nothing = {name: getattr(Options, name) for name in HAPPENS}
        plain = replace(options, folder=self.folder, minutes=1e6, **nothing)
        if plain not in self.known:
            self.known[plain] = finished(replace(plain, folder=self.folder / str(len(self.known))))
        return self.known[plain]


def environments(ranks: int) -> list[dict[str, str]]:
    """What a launcher such as torchrun sets for each rank."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    return [{**shared, "LOCAL_RANK": str(rank)} for rank in range(ranks)]
