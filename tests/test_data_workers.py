"""Worker processes that are killed, hang or fail: the run ends in time, between two steps, and says why."""

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from contrastive.data import LoadingError, from_dataset
from contrastive.data.module import ImageData
from contrastive.data.workers import LOOK_EVERY_S
from tests.drills import process


class Acts(Dataset[Tensor]):
    """Forty images; reading one of them does something, in a worker process."""

    def __init__(self, act: Callable[[], Any], at: int = 17) -> None:
        self.act = act
        self.at = at

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        if index == self.at and get_worker_info() is not None:
            self.act()
        return torch.zeros(3, 8, 8, dtype=torch.uint8)


def kill(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def leave() -> None:
    os._exit(3)


def hang() -> None:
    time.sleep(1e6)


def lacks() -> None:
    raise KeyError("no such column")


def tells_in_two_lines() -> None:
    raise ValueError("the first line\nand the second")


def data_of(act: Callable[[], Any], *, num_workers: int = 2, seconds: float | None = 2.0) -> ImageData:
    return from_dataset(Acts(act), batch_size=4, num_workers=num_workers, worker_timeout_s=seconds)


def workers() -> set[int]:
    """Pids of all processes that this one has started, be they another test's."""
    return {child.pid or 0 for child in multiprocessing.active_children()}


def failure_of(data: ImageData) -> tuple[LoadingError, int, float]:
    """The error that ends the epoch, after how many batches, and how long it took."""
    batches, start = 0, time.monotonic()
    try:
        for _ in data.bank_dataloader():
            batches += 1
    except LoadingError as error:
        return error, batches, time.monotonic() - start
    pytest.fail("the epoch did not end with an error")


@pytest.mark.parametrize(
    ("act", "cause"),
    [
        (
            kill,
            r"Worker process 0 \(pid \d+\) was killed by SIGKILL\. Most often that is the kernel, out of memory; ",
        ),
        (leave, r"Worker process 0 \(pid \d+\) ended with exit code 3 amid its work: something .* left the process\."),
        (
            hang,
            r"No batch came from worker process 0 \(pid \d+\) within worker_timeout_s=2\. Its disk or ",
        ),
        (lacks, r"A batch could not be loaded\. KeyError: 'no such column'$"),
        (tells_in_two_lines, r"A batch could not be loaded\. ValueError: the first line\nand the second$"),
    ],
)
def test_a_worker_that_fails_ends_the_epoch_in_time_with_its_cause(act: Callable[[], Any], cause: str) -> None:
    others = workers()
    error, batches, seconds = failure_of(data_of(act))
    assert re.match(cause, str(error)), str(error)
    assert batches <= 4  # image 17 is in the fifth; what a killed worker has read may be lost with it
    assert seconds < 2 + LOOK_EVERY_S + 10  # starting two processes, on a busy machine
    assert workers() == others, "workers are left"
    assert (error.__cause__ is None) == (act is hang)
    if act in (lacks, tells_in_two_lines):
        assert "Acts" not in str(error)
        assert "in __getitem__" in str(error.__cause__)  # the worker's own traceback


class Broken(Dataset[Tensor]):
    """Images of which one cannot be read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if index == 5:
            raise ValueError("image 5 is broken")
        return torch.zeros(3, 8, 8, dtype=torch.uint8)


def test_an_error_is_told_in_the_same_words_with_and_without_workers() -> None:
    for num_workers in (0, 1):
        error, batches, _ = failure_of(from_dataset(Broken(), batch_size=2, num_workers=num_workers))
        assert str(error) == "A batch could not be loaded. ValueError: image 5 is broken"
        assert isinstance(error.__cause__, ValueError)
        assert batches == 2


def test_an_epoch_after_a_failed_one_begins_with_new_workers() -> None:
    loader = data_of(kill).train_dataloader()
    for _ in range(2):
        with pytest.raises(LoadingError, match="was killed by SIGKILL"):
            list(loader)


def test_a_worker_that_dies_while_the_training_computes_is_told_at_the_next_batch_and_not_before() -> None:
    others = workers()
    batches = iter(data_of(lambda: None).train_dataloader())
    next(batches)
    os.kill(min(workers() - others), signal.SIGKILL)
    limit = time.monotonic() + 1
    while time.monotonic() < limit:  # torch's own loader raises here
        pass
    with pytest.raises(LoadingError, match="was killed by SIGKILL"):
        list(batches)


def test_workers_outlive_the_signals_that_stop_their_trainer() -> None:
    others = workers()
    batches = iter(data_of(lambda: None).bank_dataloader())
    seen = [next(batches)]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        for worker in workers() - others:
            os.kill(worker, number)
    seen += batches
    assert torch.cat([batch["index"] for batch in seen]).tolist() == list(range(40))


def test_a_batch_that_takes_long_is_waited_for_as_long_as_is_allowed() -> None:
    def slow() -> None:
        time.sleep(2.5)

    for seconds in (None, 60.0):
        assert len(list(data_of(slow, seconds=seconds).bank_dataloader())) == 10
    error, _, _ = failure_of(data_of(slow, seconds=0.5))
    assert "within worker_timeout_s=0.5." in str(error)
    with pytest.raises(ValueError, match=r"worker_timeout_s must be more than 0 seconds, but is 0\.0\. None waits"):
        data_of(slow, seconds=0.0)


def reads_for_a_second() -> None:
    print("reading", flush=True)
    for _ in range(20):  # each over after a suspension, and the next begins
        time.sleep(0.05)


def epoch_of(act: Callable[[], Any], seconds: float) -> None:
    print("batches", len(list(data_of(act, seconds=seconds).bank_dataloader())), flush=True)


def test_the_time_that_a_run_is_suspended_for_is_none_that_a_batch_took(tmp_path: Path) -> None:
    with process.forked(epoch_of, reads_for_a_second, 4.0, folder=tmp_path) as trainer:
        trainer.line("reading")
        time.sleep(0.2)  # the trainer waits by now
        trainer.signal_group(signal.SIGSTOP)
        time.sleep(4.5)
        trainer.signal_group(signal.SIGCONT)
        end = trainer.ended(60)
    assert end.code == 0, end.stderr
    assert "batches 10" in end.stdout


KEPT = []  # what lives as long as its process, as a trainer at the top of a script does


def training_that(ends: str) -> None:
    """Its workers hang."""
    batches = iter(data_of(hang, seconds=None).bank_dataloader())
    KEPT.append(batches)
    for _ in range(4):
        next(batches)
    print("workers", *workers(), flush=True)
    if ends == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if ends == "interrupted":
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(1)
        next(batches)
    sys.exit(5)


@pytest.mark.parametrize(("ends", "code"), [("killed", -signal.SIGKILL), ("interrupted", 1), ("exits", 5)])
def test_no_worker_is_left_when_its_trainer_is_gone_also_if_it_hangs(ends: str, code: int, tmp_path: Path) -> None:
    with process.forked(training_that, ends, folder=tmp_path) as trainer:
        assert len(trainer.line("workers").split()) == 2
        start = time.monotonic()
        end = trainer.ended(90)  # of the workers too, which are of its process group
    assert end.code == code
    assert time.monotonic() - start < 30  # one second, on a machine that does nothing else
