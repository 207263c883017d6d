"""Runs by ``max_steps``, which may end inside of an epoch: nothing that is left is left out, or done twice."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from contrastive.runs import Continuity, LastCheckpoint, Preempted, WholeCheckpoints
from tests.test_runs_last_checkpoint import Signals, assert_equal, trained


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


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_what_goes_on_from_a_checkpoint_of_lightning_alone_can_be_stopped_inside_an_epoch(tmp_path: Path) -> None:
    by_steps: dict[str, Any] = {"max_epochs": -1, "max_steps": 12}
    each_epoch = ModelCheckpoint(tmp_path / "epochs", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trained(tmp_path, [each_epoch], **by_steps)  # its count of epochs, which nobody has put right, stays one ahead
    whole, first, second = Signals(), Signals("on_train_batch_start", 2), Signals()
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / "epochs" / "epoch=0.ckpt", tmp_path / folder / "epoch.ckpt")
    trained(tmp_path / "whole", [each_epoch, whole, LastCheckpoint(tmp_path / "whole")], **by_steps)
    with pytest.raises(Preempted):
        trained(tmp_path / "stopped", [each_epoch, first, LastCheckpoint(tmp_path / "stopped")], **by_steps)
    trained(tmp_path / "stopped", [each_epoch, second, LastCheckpoint(tmp_path / "stopped")], **by_steps)
    assert first.steps + second.steps == whole.steps


class BreaksOnce(pl.Callback):
    """Fails in the last validation."""

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 8:
            raise OSError("the disk is gone")


@pytest.mark.parametrize("minutes", [None, 1e-9])
def test_the_last_validation_of_a_run_by_steps_is_done_again_if_it_failed(minutes: Any, tmp_path: Path) -> None:
    again, by_steps = Signals(), {"max_epochs": -1, "max_steps": 8, "limit_val_batches": 1.0}
    with pytest.raises(OSError, match="the disk is gone"):
        trained(tmp_path, [BreaksOnce(), LastCheckpoint(tmp_path, every_minutes=minutes)], **by_steps)
    trained(tmp_path, [again, LastCheckpoint(tmp_path, every_minutes=minutes)], **by_steps)
    assert again.validated == [1]
    assert len(again.steps) == 1  # the last one, before which the newest checkpoint was written


def test_a_signal_stops_the_last_validation_of_a_run_by_steps_which_is_then_done_again(tmp_path: Path) -> None:
    sent, again, by_steps = Signals("on_validation_batch_start", 1), Signals(), {"max_epochs": -1, "max_steps": 4}
    with pytest.raises(Preempted):
        trained(tmp_path, [sent, LastCheckpoint(tmp_path)], limit_val_batches=1.0, **by_steps)
    assert sent.validated == []
    trained(tmp_path, [again, LastCheckpoint(tmp_path)], limit_val_batches=1.0, **by_steps)
    assert again.validated == [0]
    assert again.steps == sent.steps[3:]


class StopsInside(pl.Callback):
    """Ends the run in the middle of an accumulation of 2 batches."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = trainer.should_stop or batch_idx == 2


def test_a_run_that_somebody_ends_inside_of_a_step_goes_on_before_that_step(tmp_path: Path) -> None:
    whole, again, halves = Signals(), Signals(), {"max_epochs": 1, "accumulate_grad_batches": 2}
    pl.seed_everything(0, verbose=False)
    trained(tmp_path / "whole", [whole, LastCheckpoint(tmp_path / "whole")], **halves)
    pl.seed_everything(0, verbose=False)
    trained(tmp_path, [StopsInside(), LastCheckpoint(tmp_path, every_minutes=1e-9)], **halves)
    trained(tmp_path, [again, LastCheckpoint(tmp_path)], **halves)
    assert again.steps == whole.steps[2:]
    ends = [WholeCheckpoints().load_checkpoint(folder / "last.ckpt") for folder in (tmp_path, tmp_path / "whole")]
    assert_equal(ends[0]["state_dict"], ends[1]["state_dict"])
