"""FSDP2 on two ranks: methods whose weights are dealt out train and resume as those that are whole on each rank."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard

from contrastive.callbacks import KNNProbe, LinearProbe
from contrastive.methods import SimCLR
from contrastive.optim import adamw_cosine, lars_cosine
from contrastive.runs.checkpoints import WholeCheckpoints, newest
from contrastive.runs.finite import FiniteLoss
from contrastive.runs.last_checkpoint import LastCheckpoint
from tests import tiny
from tests.drills.drill import Drill, promise
from tests.drills.process import forked
from tests.drills.runs import SECONDS, environments
from tests.drills.trace import digest
from tests.methods import METHODS

TOLERANCE = 3e-5  # of float32 whose sums are taken in another order, after a few steps
OPTIMIZERS = {  # others have plain SGD
    **dict.fromkeys(["simclr", "byol", "swav"], lars_cosine(1.0, weight_decay=1e-4, warmup_epochs=0)),
    **dict.fromkeys(["moco", "moco_v3", "dino"], adamw_cosine(1e-2, warmup_epochs=0)),
}
TWO_RANKS = {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False}


class Losses(pl.Callback):
    """Of every batch, the mean over the ranks; kills both ranks after so many steps."""

    def __init__(self, kill_after: int = 0) -> None:
        self.kill_after = kill_after
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"].clone(), reduce_op="mean")))
        if trainer.global_step == self.kill_after:
            os.killpg(os.getpgrp(), signal.SIGKILL)


def method(name: str) -> pl.LightningModule:
    """Of the same first weights in every process."""
    torch.manual_seed(3)
    module = METHODS[name].build()
    module.make_optimizer = OPTIMIZERS.get(name, module.make_optimizer)
    return module


def compare(folder: Path, name: str) -> None:
    """Train with DDP and with FSDP2; write down how far they are apart."""
    torch.set_num_threads(1)
    losses, weights, sharded = [], [], False
    for strategy in (DDPStrategy(process_group_backend="gloo"), ModelParallelStrategy(**TWO_RANKS)):
        module, watched = method(name), Losses()
        trainer = tiny.trainer(
            [watched, LastCheckpoint(folder / type(strategy).__name__)],  # which saves before the first step too
            devices=2,
            strategy=strategy,
            plugins=[WholeCheckpoints()],
            max_epochs=2,
            enable_checkpointing=True,
        )
        trainer.fit(module, tiny.data(64, batch_size=8))
        sharded = any(isinstance(child, FSDPModule) for child in module.children())
        weights.append({key: whole(value) for key, value in module.state_dict().items()})
        losses.append(torch.tensor(watched.losses))
    found = {
        "sharded": sharded,
        "steps": len(losses[0]),
        "loss": apart(*losses),
        "weights": max(apart(value, weights[1][key]) for key, value in weights[0].items()),
    }
    if trainer.is_global_zero:
        (folder / "found.json").write_text(json.dumps(found))


def whole(value: Tensor) -> Tensor:
    """Of all ranks' shards."""
    gathered: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return gathered.detach().clone()


def apart(first: Tensor, second: Tensor) -> float:
    """The greatest difference of two elements, as a part of the greatest element."""
    scale = first.double().abs().max().clamp(min=1)
    return float(((first.double() - second.double()).abs().max() / scale).item())


def survive(folder: Path, name: str, kill_after: int) -> None:
    """Train with the protections on, from where an earlier call came to."""
    torch.set_num_threads(1)
    watched = Losses(kill_after)
    probes = [LinearProbe(num_classes=4), KNNProbe(k=3)]
    trainer = tiny.trainer(
        [*probes, watched, FiniteLoss(folder), LastCheckpoint(folder / "checkpoints", every_minutes=1e-9)],
        devices=2,
        strategy=ModelParallelStrategy(**TWO_RANKS),
        plugins=[WholeCheckpoints()],
        max_epochs=2,
        enable_checkpointing=True,
    )
    trainer.fit(method(name), tiny.data(64, batch_size=8), ckpt_path=newest(folder / "checkpoints").path)
    with (folder / "steps").open("a") as told:
        told.write(f"{len(watched.losses)}\n")


@promise("With FSDP2 on two ranks a method has the losses and the final weights that it has with DDP.")
@pytest.mark.parametrize(
    "name", [name if name == "moco" else pytest.param(name, marks=pytest.mark.exhaustive) for name in METHODS]
)
def test_sharded_trains_as_whole(drill: Drill, tmp_path: Path, name: str) -> None:
    with forked(compare, tmp_path, name, folder=tmp_path / "output", environments=environments(2)) as ranks:
        end = ranks.ended(SECONDS)
    assert end.codes == [0, 0], end.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    kept = found["sharded"] and found["steps"] == 8 and max(found["loss"], found["weights"]) < TOLERANCE
    drill.trial(lost=not kept, note=f"{name}: {found}")


@promise("A run with FSDP2 whose ranks are killed goes on to the weights of one that nothing happened to, bit for bit.")
@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("moco", [3]),
        *(pytest.param(name, [1, 4, 6], marks=pytest.mark.exhaustive) for name in ("byol", "swav", "dino")),
    ],
)
def test_sharded_resumes(drill: Drill, tmp_path: Path, name: str, kills: list[int]) -> None:
    for run, moments in (("whole", [0]), ("killed", [*kills, 0])):
        for kill_after in moments:
            arguments = (tmp_path / run, name, kill_after)
            with forked(survive, *arguments, folder=tmp_path / run, environments=environments(2)) as ranks:
                end = ranks.ended(SECONDS)
            assert end.codes == [-signal.SIGKILL if kill_after else 0] * 2, end.stderr[-3000:]
    files = [tmp_path / run / "checkpoints" / "last.ckpt" for run in ("whole", "killed")]
    saved = [WholeCheckpoints().load_checkpoint(file) for file in files]
    parts = [{part: digest(one[part]) for part in ("state_dict", "optimizer_states", "lr_schedulers")} for one in saved]
    differ = [part for part in parts[0] if parts[0][part] != parts[1][part]]
    steps = (tmp_path / "killed" / "steps").read_text().split()
    goes_on = steps == [str(8 - kills[-1] + 1)] * 2  # the kill came before the checkpoint of its step
    drill.trial(lost=bool(differ) or not goes_on, note=f"{name}: {differ} differ, {steps} steps in the end")


class OnlyEncoder(SimCLR):
    """What a user may write."""

    def configure_model(self) -> None:
        fully_shard(self.encoder, mesh=self.device_mesh["data_parallel"])


def refused(folder: Path, class_name: str, settings: dict[str, Any]) -> None:
    """Fit, which fails."""
    module = method("simclr")
    if class_name:
        module.__class__ = globals()[class_name]
    trainer = tiny.trainer(devices=2, strategy=ModelParallelStrategy(**settings), max_epochs=1)
    trainer.fit(module, tiny.data(64, batch_size=8))


@promise("What FSDP2 would train wrongly, or save as files that are not safe, is refused before the first step.")
@pytest.mark.parametrize(
    ("class_name", "settings", "message"),
    [
        ("OnlyEncoder", TWO_RANKS, "Each rank would train projector of OnlyEncoder by itself"),
        ("", {}, "2 ranks would share their images (tensor_parallel_size)"),
        ("", {**TWO_RANKS, "save_distributed_checkpoint": True}, "Checkpoints would be folders"),
    ],
)
def test_sharded_wrongly_is_refused(
    drill: Drill, tmp_path: Path, class_name: str, settings: dict[str, Any], message: str
) -> None:
    arguments = (tmp_path, class_name, settings)
    with forked(refused, *arguments, folder=tmp_path / "output", environments=environments(2)) as ranks:
        end = ranks.ended(SECONDS)
    drill.trial(lost=0 in end.codes or message not in end.stderr, note=f"{end.codes}: {end.stderr[-3000:]}")
