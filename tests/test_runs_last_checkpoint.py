"""The newest state of a run: when it is written, and that going on from it is as if the run had never stopped."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from contrastive import SimCLR
from contrastive.augmentations import simclr_views
from contrastive.callbacks import KNNProbe, LinearProbe
from contrastive.module import Batch, Step, Views
from contrastive.optim import adamw_cosine
from contrastive.runs import REQUEUE, LastCheckpoint, Preempted, WholeCheckpoints, newest
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
        self.steps: list[tuple[int, list[int]]] = []
        self.validated: list[int] = []
        for name in HOOKS:
            setattr(self, name, self._on(name))

    def _on(self, name: str) -> Callable[..., None]:
        def called(trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
            if name == "on_train_batch_end":
                self.steps.append((trainer.fit_loop.total_batch_idx, arguments[1]["index"].tolist()))
            if name == "on_validation_epoch_end" and not trainer.sanity_checking:
                self.validated.append(trainer.current_epoch)
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
