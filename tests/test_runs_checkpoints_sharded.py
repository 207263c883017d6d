"""Strategies that read checkpoints themselves, as those for sharded weights do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy, SingleDeviceStrategy

from contrastive import SimCLR
from contrastive.augmentations import simclr_views
from contrastive.optim import sgd_cosine
from contrastive.runs.checkpoints import DIGESTS, CheckpointError, WholeCheckpoints, check_reads
from tests import tiny
from tests.drills.process import forked
from tests.drills.runs import SECONDS, environments
from tests.test_runs_checkpoints import Malicious, flip


class Checks(pl.Callback):
    """Of what is read around ``WholeCheckpoints``."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_reads(trainer.strategy)


def sharded(folder: Path, sources: list[str]) -> None:
    """Save a checkpoint after an epoch, or write down how going on from each of these ends."""
    torch.set_num_threads(1)
    ends = []
    for source in sources or [None]:
        trainer = tiny.trainer(
            [Checks()],
            devices=2,
            strategy=ModelParallelStrategy(2, 1, save_distributed_checkpoint=False),
            plugins=[WholeCheckpoints()],
            max_epochs=1 if source is None else 2,
        )
        method = SimCLR(tiny.ConvEncoder(), simclr_views(8), sgd_cosine(0.1))
        try:
            for _ in range(2):  # a second fit goes on from what the first one read
                trainer.fit(method, tiny.data(64, batch_size=8), ckpt_path=source)
            ends.append(f"step {trainer.global_step}")
        except (CheckpointError, OSError) as error:
            ends.append(str(error))
        if source is None:
            trainer.save_checkpoint(folder / "last.ckpt")
    if trainer.is_global_zero:
        (folder / "ends.json").write_text(json.dumps(ends))


def test_a_strategy_that_reads_checkpoints_itself_reads_none_that_is_altered_or_holds_code(tmp_path: Path) -> None:
    def run(*sources: object) -> list[str]:
        # which torch obeys wherever it is not told otherwise
        ranks = [{**rank, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"} for rank in environments(2)]
        arguments = (tmp_path, [str(source) for source in sources])
        with forked(sharded, *arguments, folder=tmp_path / "output", environments=ranks) as processes:
            end = processes.ended(SECONDS)
        assert end.codes == [0, 0], end.stderr[-3000:]
        ends: list[str] = json.loads((tmp_path / "ends.json").read_text())
        return ends

    assert run() == ["step 4"]
    whole, canary = tmp_path / "last.ckpt", tmp_path / "canary"
    checkpoint = WholeCheckpoints().load_checkpoint(whole)
    weight = checkpoint["state_dict"]["encoder.0.weight"].numpy().tobytes()
    for folder in ("listed", "alone"):
        (tmp_path / folder).mkdir()
        altered = Path(shutil.copy(whole, tmp_path / folder))
        flip(altered, altered.read_bytes().index(weight) + 5)
    shutil.copy(tmp_path / DIGESTS, tmp_path / "listed")
    torch.save({**checkpoint, "state_dict": Malicious(canary)}, tmp_path / "malicious.ckpt")
    address = "http://127.0.0.1/last.ckpt"
    names = ("last.ckpt", "listed/last.ckpt", "alone/last.ckpt", "malicious.ckpt", "none.ckpt", "alone")
    ends = run(*(tmp_path / name for name in names), address)
    assert not canary.exists()
    assert ends[0] == "step 8"
    assert "listed/last.ckpt is torn or was altered" in ends[1]
    assert "alone/last.ckpt cannot be read as a checkpoint: the sum of its part" in ends[2]
    assert "malicious.ckpt holds an object of posix.mkdir, which could run code" in ends[3]
    for source, end in zip((tmp_path / "none.ckpt", tmp_path / "alone", address), ends[4:], strict=True):
        assert end == (
            f"There is no checkpoint file at {source}. With ModelParallelStrategy, give the path of one local file: an "
            "address is not read, and of a folder the parts would be unpickled unsafely."
        )


class Reads(SingleDeviceStrategy):
    """Notes how it was asked to read."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[object, bool | None]] = []

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        self.asked.append((checkpoint_path, weights_only))
        return {}


def test_whatever_is_asked_for_and_however_often_a_strategy_is_told_to_run_no_code(tmp_path: Path) -> None:
    file, strategy = tmp_path / "last.ckpt", Reads()
    WholeCheckpoints().save_checkpoint({"global_step": 1}, file)
    check_reads(strategy)
    first = strategy.load_checkpoint
    check_reads(strategy)
    assert strategy.load_checkpoint is first
    for asked in (None, True):
        strategy.load_checkpoint(file, weights_only=asked)
    with pytest.raises(ValueError, match="weights_only=False would run code"):
        strategy.load_checkpoint(file, weights_only=False)
    assert strategy.asked == [(file, True)] * 2


def test_a_strategy_that_reads_by_its_plugin_stays_as_it_is() -> None:
    strategy = SingleDeviceStrategy()
    check_reads(strategy)
    assert "load_checkpoint" not in vars(strategy)
