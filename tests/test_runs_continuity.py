"""A resumed run beside the one that its checkpoint is of: what is told, and what is refused."""

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from contrastive import SimCLR
from contrastive.augmentations import simclr_views
from contrastive.data import TensorImages
from contrastive.optim import ScheduleWarning, sgd_cosine
from contrastive.runs import (
    Continuity,
    ContinuityError,
    ContinuityWarning,
    LastCheckpoint,
    Preempted,
    WholeCheckpoints,
    newest,
)
from tests import tiny

of_other_data = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:The 'train_dataloader' does not have many workers",
)


class StopAfter(pl.Callback):
    """Ends the run between two steps, as a broken reader does."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            trainer.datamodule.broken = True


class Breaking(TensorImages):
    """Images whose reader can break."""

    broken = False

    def load(self, *arguments: Any, **options: Any) -> Any:
        loader, batches = super().load(*arguments, **options), None
        batches = loader.batches

        def breaking() -> Iterator[Any]:
            for batch in batches():
                if self.broken:
                    raise OSError("the disk is gone")
                yield batch

        loader.batches = breaking
        return loader


def fit(
    folder: Path,
    *,
    count: int = 64,
    batch_size: int = 16,
    steps: int | None = None,
    seed: int = 0,
    lr: float = 0.1,
    continuity: Continuity | None = None,
    **settings: Any,
) -> pl.Trainer:
    """A run in a folder, which goes on from what is there; broken off after so many optimizer steps, if told."""
    data = Breaking(tiny.images(count), batch_size=batch_size, seed=seed)
    callbacks = [continuity or Continuity(), LastCheckpoint(folder)] + ([] if steps is None else [StopAfter(steps)])
    trainer = tiny.trainer(
        callbacks,
        plugins=[WholeCheckpoints()],
        enable_checkpointing=True,
        **{"max_epochs": 2, "limit_val_batches": 0, **settings},
    )
    method = SimCLR(tiny.ConvEncoder(), simclr_views(8), sgd_cosine(lr))
    if steps is None:
        trainer.fit(method, data, ckpt_path=newest(folder).path)
    else:
        with pytest.raises(OSError, match="the disk is gone"):
            trainer.fit(method, data, ckpt_path=newest(folder).path)
    return trainer


def test_a_run_that_is_resumed_as_it_was_tells_nothing(tmp_path: Path) -> None:
    fit(tmp_path, steps=3)
    assert newest(tmp_path).path == tmp_path / "last.ckpt"
    assert WholeCheckpoints().load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3
    assert fit(tmp_path).global_step == 8


@pytest.mark.filterwarnings("ignore::contrastive.optim.ScheduleWarning")
def test_what_changed_is_told_with_the_old_and_the_new_value(tmp_path: Path) -> None:
    fit(tmp_path, steps=4, continuity=Continuity("demo", {"width": 16, "seed": 0}))
    with pytest.warns(ContinuityWarning) as told:
        fit(tmp_path, count=80, precision="bf16-mixed", continuity=Continuity("demo", {"width": 32, "seed": 0}))
    message = next(str(one.message) for one in told if one.category is ContinuityWarning)
    assert "training images was 64, and is 80" in message
    assert "their digest was " in message
    assert "precision was '32-true', and is 'bf16-mixed'" in message
    assert "argument width was 16, and is 32" in message
    assert "seed" not in message


def test_other_images_of_the_same_number_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path, steps=4)
    others = tiny.images(64).flip(0)
    monkeypatch.setattr(tiny, "images", lambda count: others)
    with pytest.warns(ContinuityWarning, match="their digest was '.{16} by pixels', and is '.{16} by pixels'"):
        fit(tmp_path)


@pytest.mark.filterwarnings("ignore::contrastive.optim.ScheduleWarning")
def test_another_batch_size_is_told_between_epochs_and_refused_within_one(tmp_path: Path) -> None:
    fit(tmp_path / "between", steps=5, max_epochs=3)
    fit(tmp_path / "within", steps=5)
    last = tmp_path / "between" / "last.ckpt"
    last.unlink()  # previous.ckpt is that of the first epoch's end
    with pytest.warns(UserWarning, match="batch size was 16, and is 32"):
        fit(tmp_path / "between", batch_size=32, max_epochs=3)
    with pytest.raises(
        ContinuityError,
        match=r"trained on 16 images x 1 rank\(s\) x 1 accumulated batch\(es\) a step, and this run has 32 images .*; "
        r"within an epoch, batches cannot change\. Set the batch size to 16 and accumulate_grad_batches to 1",
    ):
        fit(tmp_path / "within", batch_size=32)
    with pytest.raises(ContinuityError, match=r"x 1 accumulated .* x 2 accumulated"):
        fit(tmp_path / "within", accumulate_grad_batches=2)


def test_another_number_of_ranks_needs_the_same_global_batch(tmp_path: Path) -> None:
    fit(tmp_path, steps=4)
    file = tmp_path / "last.ckpt"
    checkpoint = WholeCheckpoints().load_checkpoint(file)
    checkpoint["contrastive"]["run"] |= {"ranks": 2, "global batch": 32, "inside an epoch": False}
    WholeCheckpoints().save_checkpoint(checkpoint, file)
    with pytest.raises(
        ContinuityError, match=r"only with the same global batch\. Set the batch size to 32 and accumulate"
    ):
        fit(tmp_path)
    checkpoint["contrastive"]["run"] |= {"batch size": 8, "global batch": 16}
    WholeCheckpoints().save_checkpoint(checkpoint, file)
    with pytest.warns(ContinuityWarning, match=r"ranks was 2, and is 1"):
        fit(tmp_path)


class Other(pl.LightningDataModule):
    """As a user may write one."""

    def __init__(self, size: Any = 4, **attributes: Any) -> None:
        super().__init__()
        self.save_hyperparameters("size")
        for name, value in attributes.items():
            setattr(self, name, value)

    def train_dataloader(self) -> Any:
        items = [{"image": image, "index": index} for index, image in enumerate(tiny.images(24))]
        size = self.hparams["size"]
        if size is None:  # batches are made by the user's own code
            return DataLoader(items, batch_sampler=[list(range(start, start + 4)) for start in range(0, 24, 4)])
        if isinstance(size, list):
            return [DataLoader(items, batch_size=one) for one in size]
        return DataLoader(items, batch_size=size)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] if isinstance(batch, list) else batch


def resume_other(folder: Path, before: Mapping[str, Any], data: Other, **settings: Any) -> None:
    """One epoch, of which the checkpoint is changed, and another."""
    for max_epochs in (1, 2):
        trainer = tiny.trainer(
            [Continuity(), LastCheckpoint(folder)],
            plugins=[WholeCheckpoints()],
            enable_checkpointing=True,
            max_epochs=max_epochs,
            limit_val_batches=0,
            **(settings if max_epochs == 2 else {}),
        )
        method = WithoutSchedule(tiny.ConvEncoder(), simclr_views(8), sgd_cosine(0.1))
        trainer.fit(method, data, ckpt_path=newest(folder).path)
        if max_epochs == 1:
            checkpoint = WholeCheckpoints().load_checkpoint(folder / "last.ckpt")
            checkpoint["contrastive"]["run"] |= before
            WholeCheckpoints().save_checkpoint(checkpoint, folder / "last.ckpt")


OTHERS = [
    Other(4),
    Other(4, batch_size="four"),
    Other([4, 4]),
    Other([4, 2], batch_size=4),
    Other(None, batch_size=4),
]
UNKNOWN = [Other(None), Other(None, batch_size=4.0), Other([4, 2])]


@of_other_data
@pytest.mark.parametrize("data", OTHERS)
def test_the_batch_size_of_any_data_module_is_that_of_its_loader_unless_it_says(tmp_path: Path, data: Other) -> None:
    with pytest.warns(ContinuityWarning, match=r"ranks was 2, and is 1"):
        resume_other(tmp_path / "same", {"ranks": 2, "batch size": 2, "global batch": 4}, data)
    with pytest.raises(ContinuityError, match=r"trained on 2 images x 3 .* has 4 images x 1 .*same global batch\."):
        resume_other(tmp_path / "other", {"ranks": 3, "batch size": 2, "global batch": 6}, data)


@of_other_data
@pytest.mark.parametrize("data", UNKNOWN)
def test_another_number_of_ranks_is_refused_where_the_batch_size_is_not_known(tmp_path: Path, data: Other) -> None:
    with pytest.raises(
        ContinuityError,
        match=r"^The checkpoint is of a run on 2 rank\(s\), and this one has 1, which needs the same global batch; but "
        r"the batch size of this run could not be found\. Resume on 2 rank\(s\), or give the data module an int "
        r"attribute batch_size, the images per rank and step\.$",
    ):
        resume_other(tmp_path, {"ranks": 2, "batch size": 2, "global batch": 4}, data)


@of_other_data
def test_a_checkpoint_that_knows_no_batch_size_goes_on_with_as_many_ranks_alone(tmp_path: Path) -> None:
    unknown = {"batch size": None, "global batch": None}
    for size in (4, None):
        with pytest.raises(
            ContinuityError,
            match=r"the batch size of that run could not be found\. Resume on 2 rank\(s\), or give the data module an "
            r"int attribute batch_size, the images per rank and step, and begin anew in another folder\.$",
        ):
            resume_other(tmp_path / f"ranks of {size}", {"ranks": 2, **unknown}, Other(size))
    with pytest.warns(ContinuityWarning, match=r"batch size was None, and is 4"):
        resume_other(tmp_path / "within", {"inside an epoch": True, **unknown}, Other(4))
    with pytest.raises(ContinuityError, match=r"within an epoch, batches cannot change"):
        resume_other(tmp_path / "sums", {"inside an epoch": True}, Other(None), accumulate_grad_batches=2)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, steps=4, continuity=Continuity("demo", {}))
    with pytest.raises(
        ContinuityError, match=r"is of recipe demo, and this run is of other\. Give the new run a folder"
    ):
        fit(tmp_path, continuity=Continuity("other", {}))


@pytest.mark.filterwarnings("ignore::contrastive.runs.ContinuityWarning")
def test_a_longer_schedule_tells_that_the_rate_climbs_back_and_follows_it(tmp_path: Path) -> None:
    fit(tmp_path)
    with pytest.warns(ScheduleWarning, match=r"^At optimizer step 8 the learning rate climbs back from 0 to 0\.05:"):
        trainer = fit(tmp_path, max_epochs=4)
    assert trainer.global_step == 16
    with pytest.warns(ScheduleWarning, match=r"^At optimizer step 16 the learning rate climbs back from 0 to"):
        fit(tmp_path, max_epochs=5)


def test_another_learning_rate_is_told_and_used(tmp_path: Path) -> None:
    fit(tmp_path, steps=4)
    with pytest.warns(ScheduleWarning, match=r"falls from 0\.05 to 0\.01: this run's schedule"):
        trainer = fit(tmp_path, lr=0.02, steps=6)
    expected = 0.02 * 0.5 * (1 + torch.tensor(torch.pi * 6 / 8).cos().item())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(expected)


# Zero work


def test_a_run_that_is_done_says_so(tmp_path: Path) -> None:
    fit(tmp_path)
    with pytest.raises(ContinuityError, match=r"^Nothing is left to train: 2 epochs are done, and max_epochs is 2\."):
        fit(tmp_path)
    fit(tmp_path / "steps", max_epochs=-1, max_steps=3)
    with pytest.raises(ContinuityError, match=r"^Nothing is left to train: 3 steps are done, and max_steps is 3\."):
        fit(tmp_path / "steps", max_epochs=-1, max_steps=3)
    with pytest.raises(ContinuityError, match=r"^Nothing was trained: max_epochs is 0\."):
        fit(tmp_path / "none", max_epochs=0)


def test_a_run_of_which_a_validation_was_left_is_no_run_without_work(tmp_path: Path) -> None:
    def run(*callbacks: pl.Callback) -> pl.Trainer:
        trainer = tiny.trainer(
            [*callbacks, Continuity(), LastCheckpoint(tmp_path)],
            plugins=[WholeCheckpoints()],
            enable_checkpointing=True,
            max_epochs=1,
        )
        method = SimCLR(tiny.ConvEncoder(), simclr_views(8), sgd_cosine(0.1))
        trainer.fit(method, tiny.data(), ckpt_path=newest(tmp_path).path)
        return trainer

    class Stop(pl.Callback):
        def on_validation_batch_start(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        run(Stop())
    assert run().global_step == 4


class Stream(IterableDataset[dict[str, Any]]):
    """A stream that ends after so many images, and is not begun again."""

    def __init__(self, count: int) -> None:
        self.images = iter(tiny.images(max(1, count))[:count])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"image": image, "index": 0} for image in self.images)


@pytest.mark.filterwarnings("ignore:Total length of `.*` across ranks is zero")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Stream(0), batch_size=4), r"^The training loader gave no batch in epoch 0: it is empty, or a"),
        (DataLoader(Stream(8), batch_size=4), r"^The training loader gave no batch in epoch 1: it is empty, or a"),
        (
            DataLoader([{"image": tiny.images(1)[0], "index": 0}] * 3, batch_size=4, drop_last=True),
            r"^Nothing was trained: the training loader gave no batch\. Is the data set empty, or smaller than one",
        ),
    ],
    ids=["empty stream", "stream that runs dry", "batch larger than the data"],
)
def test_no_batch_is_an_error(loader: Any, message: str) -> None:
    trainer = tiny.trainer([Continuity()], max_epochs=2, max_steps=50, limit_val_batches=0)
    with pytest.raises(ContinuityError, match=message):
        trainer.fit(WithoutSchedule(tiny.ConvEncoder(), simclr_views(8), sgd_cosine(0.1)), loader)


@pytest.mark.filterwarnings("ignore:Total length of `.*` across ranks is zero")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_schedule_of_no_steps_names_what_is_too_small() -> None:
    method = SimCLR(tiny.ConvEncoder(), simclr_views(8), sgd_cosine(0.1))
    loader = DataLoader([{"image": tiny.images(1)[0], "index": 0}] * 3, batch_size=4, drop_last=True)
    with pytest.raises(ValueError, match=r"max_epochs is 2, max_steps is -1, and the training loader gives 0 batches"):
        tiny.trainer(max_epochs=2, limit_val_batches=0).fit(method, loader)


class WithoutSchedule(SimCLR):
    """Does not ask how long it will be trained."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
