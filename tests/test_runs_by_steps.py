"""Runs by ``max_steps``, which may end inside of an epoch: nothing that is left is left out, or done twice."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from contrastive.runs import Continuity, LastCheckpoint, Preempted, WholeCheckpoints
from tests.test_runs_last_checkpoint import Signals, trained


def test_a_run_by_steps_without_validation_goes_on_from_an_epochs_end(tmp_path: Path) -> None:
    whole, first, second = Signals(), Signals("on_train_epoch_end", 1), Signals()
    settings = {"max_epochs": -1, "max_steps": 12}
    trained(tmp_path / "whole", [whole, LastCheckpoint(tmp_path / "whole")], **settings)
    with pytest.raises(Preempted):
        trained(tmp_path, [first, LastCheckpoint(tmp_path)], **settings)
    assert trained(tmp_path, [second, LastCheckpoint(tmp_path)], **settings).current_epoch == 3
    assert first.steps + second.steps == whole.steps


@pytest.mark.filterwarnings("ignore:.*the learning rate climbs back", "ignore:Since the checkpoint")
def test_a_run_by_steps_that_is_given_more_goes_on_inside_its_epoch(tmp_path: Path) -> None:
    whole, first, second, by_steps = Signals(), Signals(), Signals(), {"max_epochs": -1}
    trained(tmp_path / "whole", [whole, LastCheckpoint(tmp_path / "whole")], max_steps=12, **by_steps)
    for seen, steps in ((first, 6), (second, 12)):  # epochs have 4
        trained(tmp_path, [Continuity(), seen, LastCheckpoint(tmp_path)], max_steps=steps, **by_steps)
        inside = WholeCheckpoints().load_checkpoint(tmp_path / "last.ckpt")["contrastive"]["run"]["inside an epoch"]
        assert inside is (steps == 6)
    assert first.steps + second.steps == whole.steps


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_by_steps_goes_on_from_any_callbacks_checkpoint_of_an_epochs_end(tmp_path: Path) -> None:
    whole, rest, by_steps = Signals(), Signals(), {"max_epochs": -1, "max_steps": 12}
    each_epoch = ModelCheckpoint(tmp_path / "epochs", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trained(tmp_path / "whole", [whole, each_epoch, LastCheckpoint(tmp_path / "whole")], **by_steps)
    (tmp_path / "epochs" / "epoch=0.ckpt").rename(tmp_path / "epoch.ckpt")
    trained(tmp_path, [rest, each_epoch, LastCheckpoint(tmp_path)], **by_steps)
    assert rest.steps == whole.steps[4:]


class BreaksOnce(pl.Callback):
    """Fails in the last validation."""

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 8:
            raise OSError("the disk is gone")


def test_the_last_validation_of_a_run_by_steps_is_done_again_if_it_failed(tmp_path: Path) -> None:
    again, by_steps = Signals(), {"max_epochs": -1, "max_steps": 8, "limit_val_batches": 1.0}
    with pytest.raises(OSError, match="the disk is gone"):
        trained(tmp_path, [BreaksOnce(), LastCheckpoint(tmp_path, every_minutes=1e-9)], **by_steps)
    trained(tmp_path, [again, LastCheckpoint(tmp_path, every_minutes=1e-9)], **by_steps)
    assert again.validated == [1]
    assert len(again.steps) == 1  # the last one, before which the newest checkpoint was written


class Saves(pl.Callback):
    """Counts checkpoints."""

    saved = 0

    def on_save_checkpoint(self, *_: Any) -> None:
        self.saved += 1


def test_a_signal_in_the_last_validation_of_a_run_by_steps_lets_it_end(tmp_path: Path) -> None:
    sent, saves = Signals("on_validation_batch_start", 1), Saves()
    trained(tmp_path, [sent, saves, LastCheckpoint(tmp_path)], max_epochs=-1, max_steps=4, limit_val_batches=1.0)
    assert sent.validated == [0]
    assert saves.saved == 2  # before the first step, and at the end
