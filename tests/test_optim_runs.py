"""How long a run is, and what optimizers and schedules of a resumed one do."""

import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from contrastive.optim import (
    ScheduleWarning,
    TrainingLength,
    adamw_cosine,
    lars_cosine,
    sgd_cosine,
    training_length,
)


class Counting(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        self.length = training_length(self.trainer)
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(**settings) -> Counting:
    module = Counting()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, DataLoader(torch.zeros(24, 2), batch_size=4, num_workers=0))
    return module


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*logging interval")
def test_the_length_of_a_run_counts_optimizer_steps() -> None:
    assert fit(max_epochs=3).length == TrainingLength(steps=18, steps_per_epoch=6)
    assert fit(max_epochs=3, accumulate_grad_batches=2).length == TrainingLength(steps=9, steps_per_epoch=3)
    assert fit(max_epochs=-1, max_steps=4).length == TrainingLength(steps=4, steps_per_epoch=6)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*max_epochs")
def test_a_run_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="A cosine schedule needs an end: give the Trainer max_epochs or max_steps"):
        fit(max_epochs=-1)


class Recorded(pl.LightningModule):
    """Writes down what each optimizer step runs with."""

    def __init__(self, make) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make, self.course = make, {}
        self.encoder = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=0)
        self.predictor = nn.Linear(8, 2)

    def training_step(self, batch, batch_idx):
        groups = self.optimizers().param_groups
        self.course[self.global_step] = [(group["lr"], group["weight_decay"]) for group in groups]
        return self.predictor(self.encoder(batch)).square().mean()

    def configure_optimizers(self):
        optimizer, schedule = self.make(self, training_length(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize(
    "make",
    [
        sgd_cosine(0.1, fixed_lr=("predictor",), final_lr=0.01, warmup_epochs=1),
        adamw_cosine(0.01, weight_decay=0.04, final_weight_decay=0.4, layer_decay=0.75, final_lr=1e-3, warmup_epochs=1),
        lars_cosine(0.1, clip=True, bias_and_norm_lr=0.01, final_lr=1e-3, warmup_epochs=1),
    ],
    ids=["sgd", "adamw", "lars"],
)
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*logging interval")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_a_run_resumed_in_the_middle_equals_one_without_break(make, tmp_path: Path) -> None:
    def run(resume: Path | None = None) -> Recorded:
        module = Recorded(make)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=4,
            logger=False,
            callbacks=[ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        images = torch.linspace(0, 1, 3 * 8 * 8).view(1, 3, 8, 8).expand(24, 3, 8, 8)  # all alike, whatever their order
        trainer.fit(module, DataLoader(images, batch_size=6, num_workers=0), ckpt_path=resume, weights_only=True)
        return module

    straight = run()
    resumed = run(resume=tmp_path / "step=10.ckpt")  # in the middle of an epoch of 4 steps
    assert list(resumed.course) == list(range(10, 16))
    assert resumed.course == {step: straight.course[step] for step in range(10, 16)}
    assert all(a.equal(b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def resumed(lr: float, steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """A run of another rate or length, begun from the checkpoint of one of 10 steps at 0.1 that did 4."""
    before, after = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer, schedule = sgd_cosine(0.1)(before, TrainingLength(10, 5))
    for _ in range(4):
        optimizer.step()
        schedule.step()
    states = optimizer.state_dict(), schedule.state_dict()
    optimizer, schedule = sgd_cosine(lr)(after, TrainingLength(steps, 5))
    optimizer.load_state_dict(states[0])
    schedule.load_state_dict(states[1])
    return optimizer, schedule


def test_a_resumed_schedule_is_its_own_runs_from_the_first_step_on() -> None:
    optimizer, _ = resumed(0.1, 10)
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5 * (1 + math.cos(math.pi * 4 / 10))
    with pytest.warns(ScheduleWarning, match=r"^At optimizer step 4 the learning rate climbs back from 0\.06545"):
        optimizer, schedule = resumed(0.2, 20)
    assert optimizer.param_groups[0]["lr"] == 0.2 * 0.5 * (1 + math.cos(math.pi * 4 / 20))
    assert {*schedule.get_last_lr()} == {optimizer.param_groups[0]["lr"]}


def test_a_resumed_schedule_knows_that_steps_were_taken() -> None:
    _, schedule = resumed(0.1, 10)
    schedule.step()  # torch would warn of a schedule that moves before any step, such as one that a scaler skips
    assert {*schedule.get_last_lr()} == {0.1 * 0.5 * (1 + math.cos(math.pi * 5 / 10))}
