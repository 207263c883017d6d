"""The newest state of a run: when it is written, and that going on from it is as if the run had never stopped."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from contrastive import SimCLR
from contrastive.augmentations import simclr_views
from contrastive.callbacks import KNNProbe, LinearProbe
from contrastive.data import TensorImages
from contrastive.module import Batch, Step, Views
from contrastive.optim import adamw_cosine
from contrastive.runs import REQUEUE, CheckpointError, LastCheckpoint, Preempted, WholeCheckpoints, newest
from contrastive.runs.signals import STOPPING
from tests import tiny
from tests.methods import moco

HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_start",
    "on_validation_epoch_end",
    "on_train_epoch_start",
    "on_train_epoch_end",
)


class Dropping(SimCLR):
    """Draws from the global random state in every step."""

    def step(self, views: Views, batch: Batch) -> Step:
        return super().step([nn.functional.dropout(view, 0.3) for view in views], batch)


def dropping() -> Dropping:
    return Dropping(tiny.ConvEncoder(), simclr_views(8), adamw_cosine(0.01, warmup_epochs=0.5))


class Signals(pl.Callback):
    """Sends this process a signal in the n-th call of a hook, and notes the steps and validations that it saw."""

    def __init__(self, hook: str = "", number: int = 0, sent: signal.Signals = signal.SIGTERM) -> None:
        self.hook, self.number, self.sent, self.calls = hook, number, sent, 0
        self.steps: list[tuple[int, int, list[int]]] = []
        self.validated: list[int] = []
        for name in HOOKS:
            setattr(self, name, self._on(name))

    def _on(self, name: str) -> Callable[..., None]:
        def called(trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
            if name == "on_train_batch_end":
                loop = trainer.fit_loop.epoch_loop  # loggers count by its second number
                self.steps.append((loop.total_batch_idx, loop._batches_that_stepped, arguments[1]["index"].tolist()))
            if name == "on_validation_epoch_end" and not trainer.sanity_checking:
                self.validated.append(trainer.current_epoch)
            if name == "on_validation_batch_start":
                torch.rand(1)  # a validation that is repeated must draw the same numbers
            if name == self.hook and not trainer.sanity_checking:
                self.calls += 1
                if self.calls == self.number:
                    os.kill(os.getpid(), self.sent)

        return called


def fit(
    folder: Path, callbacks: list[pl.Callback], build: Callable[[], pl.LightningModule] = dropping, **settings: Any
) -> pl.Trainer:
    """Trains on from the newest checkpoint, if there is one; 4 batches an epoch, 3 epochs, unless told otherwise."""
    pl.seed_everything(0, verbose=False)
    module, data = build(), tiny.data()
    probes = [LinearProbe(4, learning_rates=(0.1,)), KNNProbe(k=3)]
    trainer = tiny.trainer(
        [*probes, *callbacks, LastCheckpoint(folder)],
        plugins=[WholeCheckpoints()],
        enable_checkpointing=True,
        num_sanity_val_steps=1,
        **{"max_epochs": 3, **settings},
    )
    trainer.fit(module, data, ckpt_path=newest(folder).path)
    return trainer


def exit_code(run: Callable[[], Any]) -> Any:
    """That of a run that a signal stopped; None of one that ended."""
    try:
        run()
    except Preempted as stop:
        return stop.code
    return None


def state(folder: Path) -> dict[str, Any]:
    """What a run came to: all that its checkpoint holds but paths and versions."""
    checkpoint = WholeCheckpoints().load_checkpoint(folder / "last.ckpt")
    del checkpoint["callbacks"]["LastCheckpoint"]["random"][0]["python"]  # type checks in tests draw from it
    return {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "epoch")}


def assert_equal(one: Any, other: Any, place: str = "") -> None:
    """Bit for bit."""
    assert type(one) is type(other), place
    if isinstance(one, Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{place}/{number}")
    else:
        assert one == other, place


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Signals, dict[str, Any]]]:
    """What an uninterrupted run sees and comes to."""
    done: dict[str, tuple[Signals, dict[str, Any]]] = {}

    def get(build: Callable[[], pl.LightningModule], **settings: Any) -> tuple[Signals, dict[str, Any]]:
        name = f"{build} {settings}"
        if name not in done:
            folder, seen = tmp_path_factory.mktemp("whole"), Signals()
            fit(folder, [seen], build, **settings)
            done[name] = seen, state(folder)
        return done[name]

    return get


@pytest.mark.parametrize(
    ("hook", "number"),
    [
        ("on_train_epoch_start", 1),
        ("on_train_batch_start", 1),
        ("on_train_batch_start", 4),
        ("on_train_batch_end", 3),
        ("on_train_batch_end", 4),
        ("on_train_batch_end", 12),
        ("on_validation_start", 2),
        ("on_validation_batch_start", 1),
        ("on_validation_batch_start", 4),
        ("on_validation_epoch_end", 1),
        ("on_train_epoch_end", 2),
        ("on_train_epoch_end", 3),
    ],
)
@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (dropping, {}),
        (moco.build, {"accumulate_grad_batches": 3}),
        (dropping, {"max_epochs": -1, "max_steps": 12}),
        (dropping, {"val_check_interval": 2}),
    ],
    ids=["epochs", "accumulating", "steps", "validating inside epochs"],
)
def test_a_run_that_a_signal_stopped_goes_on_as_if_it_never_had(
    hook: str, number: int, build: Any, settings: dict[str, Any], tmp_path: Path, whole: Any
) -> None:
    uninterrupted, end = whole(build, **settings)
    first, second = Signals(hook, number), Signals()
    code = exit_code(lambda: fit(tmp_path, [first], build, **settings))
    if code is None:  # nothing was left to do
        assert len(first.steps) == len(uninterrupted.steps)
    else:
        assert code == REQUEUE
        fit(tmp_path, [second], build, **settings)
    assert len(first.validated + second.validated) == len(uninterrupted.validated)
    assert_equal(state(tmp_path), end)


def trained(folder: Path, callbacks: Sequence[pl.Callback] = (), **settings: Any) -> pl.Trainer:
    """A run without probes or validation: 4 batches an epoch."""
    trainer = tiny.trainer(
        callbacks, plugins=[WholeCheckpoints()], enable_checkpointing=True, **{"limit_val_batches": 0, **settings}
    )
    trainer.fit(dropping(), tiny.data(), ckpt_path=newest(folder).path)
    return trainer


def step_of(file: Path) -> int:
    return int(WholeCheckpoints().load_checkpoint(file)["global_step"])


class Reports(pl.Callback):
    """Notes the step of the checkpoint that is there after every batch; may raise in one."""

    def __init__(self, file: Path, raise_in: str = "", at: int = 0) -> None:
        self.file, self.raise_in, self.at, self.steps = file, raise_in, at, []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.steps.append(step_of(self.file))

    def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.raise_in == "a step" and trainer.global_step == self.at:
            raise MemoryError("no memory left")

    def on_before_zero_grad(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.raise_in == "the keyboard" and trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


class BreakingImages(TensorImages):
    """Images whose reader fails once so many batches were read."""

    def load(self, *arguments: Any, **options: Any) -> Any:
        loader = super().load(*arguments, **options)
        batches = loader.batches

        def breaking() -> Iterator[Any]:
            yield from islice(batches(), 3)
            raise OSError("the disk is gone")

        loader.batches = breaking
        return loader


@pytest.mark.parametrize(
    ("hook", "number", "step"), [("on_train_batch_start", 2, 2), ("on_validation_batch_start", 1, 4)]
)
def test_a_signal_waits_for_no_more_than_the_batch(hook: str, number: int, step: int, tmp_path: Path) -> None:
    sent = Signals(hook, number, signal.SIGUSR1)
    with pytest.raises(Preempted) as stop:
        trained(tmp_path, [sent, LastCheckpoint(tmp_path)], max_epochs=1, limit_val_batches=1.0)
    assert stop.value.file == tmp_path / "last.ckpt"
    assert step_of(stop.value.file) == len(sent.steps) == step
    assert sent.validated == []


class TermBeforeTheFirstStep(pl.Callback):
    """After Lightning has begun to listen, and before ours does."""

    def on_train_start(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_just_before_the_first_step_waits_for_it_and_asks_for_another_call(tmp_path: Path) -> None:
    with pytest.raises(Preempted) as stop:
        trained(tmp_path, [TermBeforeTheFirstStep(), LastCheckpoint(tmp_path)], max_epochs=1)
    assert stop.value.code == REQUEUE
    assert step_of(stop.value.file) == 1


def test_a_signal_stops_a_probe_that_reads_its_bank(tmp_path: Path) -> None:
    read: list[int] = []

    class Bank:
        """Counts the batches that are read of it; the signal comes with the first."""

        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Any]:
            for number, batch in enumerate(tiny.data().bank_dataloader()):
                read.append(number)
                os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    callbacks = [KNNProbe(k=3, bank=Bank()), LastCheckpoint(tmp_path)]
    with pytest.raises(Preempted):
        trained(tmp_path, callbacks, max_epochs=1, limit_val_batches=1.0)
    assert read == [0]


def test_the_first_checkpoint_is_there_before_the_first_step_and_then_one_for_each_epoch(tmp_path: Path) -> None:
    reports = Reports(tmp_path / "last.ckpt")
    trained(tmp_path, [reports, LastCheckpoint(tmp_path)], max_epochs=3)
    assert reports.steps == [0] * 4 + [4] * 4 + [8] * 4
    assert step_of(tmp_path / "last.ckpt") == 12
    assert step_of(tmp_path / "previous.ckpt") == 8


def test_a_checkpoint_is_written_every_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 60))  # a minute goes by whenever it is read
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    reports = Reports(tmp_path / "last.ckpt")
    trained(tmp_path, [reports, LastCheckpoint(tmp_path, every_minutes=2.5)], max_steps=12, max_epochs=-1)
    assert max(b - a for a, b in pairwise(reports.steps)) <= 3
    assert len({*reports.steps}) > 4  # more than the epochs' own


def test_a_reader_that_fails_leaves_the_last_step(tmp_path: Path) -> None:
    data = BreakingImages(tiny.images(), batch_size=16)
    settings = {"plugins": [WholeCheckpoints()], "enable_checkpointing": True, "max_epochs": 1, "limit_val_batches": 0}
    trainer = tiny.trainer([LastCheckpoint(tmp_path)], **settings)
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit(dropping(), data)
    assert step_of(tmp_path / "last.ckpt") == 3


def test_a_step_that_fails_leaves_the_checkpoint_of_before(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    with pytest.raises(MemoryError):
        trained(tmp_path, [Reports(file, "a step", 6), LastCheckpoint(tmp_path)], max_epochs=3)
    assert step_of(file) == 4


def test_a_second_interrupt_waits_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stopped:  # Lightning's answer to KeyboardInterrupt
            trained(tmp_path, [Reports(file, "the keyboard", 6), LastCheckpoint(tmp_path)], max_epochs=3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(stopped.value, Preempted)
    assert step_of(file) == 4


def test_what_cannot_be_written_or_loaded_again_fails_before_the_first_step(tmp_path: Path) -> None:
    class Unsafe(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"share": Fraction(1, 3)}

    reports = Reports(tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"fractions\.Fraction"):
        trained(tmp_path, [Unsafe(), reports, LastCheckpoint(tmp_path)], max_epochs=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Nothing can be written to .*file/checkpoints"):
        trained(tmp_path / "new", [reports, LastCheckpoint(tmp_path / "file" / "checkpoints")], max_epochs=1)
    assert reports.steps == []


def test_a_trainer_that_writes_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"only WholeCheckpoints does .* Give the trainer plugins=\[contrastive\.runs"):
        tiny.trainer([LastCheckpoint(tmp_path)], enable_checkpointing=True, max_epochs=1).fit(dropping(), tiny.data())
    with pytest.raises(ValueError, match="every_minutes must be more than 0, or None, got 0"):
        LastCheckpoint(tmp_path, every_minutes=0)


def test_two_runs_in_one_process_leave_the_handlers_as_they_were(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in STOPPING}
    for name in ("one", "two"):
        trained(tmp_path / name, [LastCheckpoint(tmp_path / name)], max_epochs=1)
        assert {number: signal.getsignal(number) for number in STOPPING} == before
    one, two = (WholeCheckpoints().load_checkpoint(tmp_path / name / "last.ckpt") for name in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 4
