"""Worker processes that end a training within a stated time if one of them fails, and say why.

What torch's own do (2.15): one that hangs is waited for without end, and outlives a trainer that is killed; one that is
killed raises an error in whatever the trainer is doing just then, also amid an optimizer step; and a signal meant to
stop the run after its next step stops the workers at once, without which there is no next step.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from itertools import count
from math import ceil, inf
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

from torch._C import _remove_worker_pids
from torch.utils.data.dataloader import DataLoader, _MultiProcessingDataLoaderIter

WORKER_TIMEOUT_S = 300.0  # a network disk that is restarted is back by then
LOOK_EVERY_S = 1.0  # whether workers and their trainer still live

_OUTLIVED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SHARED_MEMORY = (
    "Batches come through shared memory, and /dev/shm is full: give the container more (docker run --shm-size=8g), or "
    "take fewer num_workers (now {workers}) or smaller batches."
)
_ADVICE = {  # by the signal that killed a worker
    signal.SIGKILL: (
        "Most often that is the kernel, out of memory; `dmesg` tells. Take fewer num_workers (now {workers}), smaller "
        "batches or a lower max_pixels."
    ),
    signal.SIGBUS: _SHARED_MEMORY,
}


class LoadingError(RuntimeError):
    """A batch could not be loaded. The message says why, and ``__cause__`` has the details."""


class Workers(_MultiProcessingDataLoaderIter):
    """One or more epochs' batches from worker processes; nothing but ``next`` raises.

    Args:
        loader: Whose batches.
        timeout_s: How long to wait for a batch, the time not counted that the run is suspended for; None: without end.
    """

    _workers: Any = ()  # until there are some

    def __init__(self, loader: DataLoader[Any], timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        # Blocked until then, so that none finds a worker before ``outlive_signals`` was called there.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OUTLIVED)
        try:
            super().__init__(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Before this process ends, multiprocessing joins all others without a time limit.
        Finalize(self, _kill, [self._workers], exitpriority=100)
        _remove_worker_pids(id(self))  # of which torch raises an error out of a signal handler
        self._worker_pids_set = False

    def close(self) -> None:
        """End the processes now, whatever they do."""
        _kill(self._workers)
        self._shutdown_workers()

    def _get_data(self) -> Any:
        try_to_get: Any = self._try_get_data  # torch gives it no types
        # Looks are counted, not time by the clock: while a run is suspended, its workers stand still too.
        limit = inf if self.timeout_s is None else self.timeout_s
        look = min(LOOK_EVERY_S, limit)
        for _ in count() if limit == inf else range(ceil(limit / look)):
            try:
                found, data = try_to_get(look)
            except Exception as error:  # what a dying worker leaves half written reads as anything
                dying = wait([worker.sentinel for worker in self._workers], LOOK_EVERY_S)
                for place, worker in enumerate(self._workers):
                    if worker.sentinel in dying:
                        worker.join()
                        raise LoadingError(_obituary(place, self._workers)) from error
                raise
            if found:
                return data
            if self._pin_memory and not self._pin_memory_thread.is_alive():
                raise LoadingError("The thread that copies batches to page-locked memory has ended. See above for why.")
        awaited = self._task_info[self._rcvd_idx][0] if self._rcvd_idx in self._task_info else 0
        raise LoadingError(
            f"No batch came from worker process {awaited} (pid {self._workers[awaited].pid}) within "
            f"worker_timeout_s={self.timeout_s:g}. Its disk or network hangs, or its data set does. If reading a batch "
            "may take that long, raise worker_timeout_s; None waits without end."
        )

    def _shutdown_workers(self) -> None:
        try:
            super()._shutdown_workers()
        finally:
            _kill(self._workers)  # what is alive yet hangs


def outlive_signals(worker: int) -> None:
    """Let a worker live as long as its trainer needs it, and no longer; it calls this first.

    A terminal sends SIGINT to all processes of a run, a scheduler SIGTERM or SIGUSR1. It is the trainer who stops,
    after a step for which it needs its workers.

    Args:
        worker: Its number.
    """
    for number in _OUTLIVED:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def check_timeout(worker_timeout_s: float | None) -> float | None:
    """The same, if it is one.

    Raises:
        ValueError: It is not more than 0.
    """
    if worker_timeout_s is not None and worker_timeout_s <= 0:
        raise ValueError(
            f"worker_timeout_s must be more than 0 seconds, but is {worker_timeout_s}. None waits without end."
        )
    return worker_timeout_s


def explain(error: Exception, num_workers: int) -> LoadingError:
    """What became of a batch, from the error that a loader raised.

    Args:
        error: Any, also one that torch has brought from a worker with its whole traceback as the message.
        num_workers: Of the loader.
    """
    name, text = type(error).__name__, str(error)
    said = text
    if text.startswith(f"Caught {name} in "):
        last = list(re.finditer(rf"^[\w.]*{name}: ?", text, re.MULTILINE))
        said = text[last[-1].end() :] if last else text.rpartition("\n")[2]
    said = f"{name}: {said.strip()}" if said.strip() else name
    if "shared memory" in said or "/torch_" in said:
        said = f"{said} {_SHARED_MEMORY.format(workers=num_workers)}"
    return LoadingError(f"A batch could not be loaded. {said}")


def _obituary(place: int, workers: Sequence[BaseProcess]) -> str:
    worker = workers[place]
    who, code = f"Worker process {place} (pid {worker.pid})", worker.exitcode or 0
    if code >= 0:
        return f"{who} ended with exit code {code} amid its work: something that it loads images with left the process."
    number = signal.Signals(-code)
    advice = _ADVICE.get(number, "num_workers=0 shows where: something that it loads images with crashes.")
    return f"{who} was killed by {number.name}. {advice.format(workers=len(workers))}"


def _kill(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _end_with(trainer: int) -> None:
    while os.getppid() == trainer:
        time.sleep(LOOK_EVERY_S)
    os._exit(1)
