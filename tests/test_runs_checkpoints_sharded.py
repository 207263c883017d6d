"""Strategies of sharded weights read checkpoints themselves: what was altered is found all the same, before a step."""

import json
import shutil
from pathlib import Path

import torch
from pytorch_lightning.strategies import ModelParallelStrategy

from contrastive import SimCLR
from contrastive.augmentations import simclr_views
from contrastive.optim import sgd_cosine
from contrastive.runs import CheckpointError, LastCheckpoint, WholeCheckpoints
from contrastive.runs.checkpoints import DIGESTS
from tests import tiny
from tests.drills.process import forked
from tests.drills.runs import SECONDS, environments
from tests.test_runs_checkpoints import flip


def sharded(folder: Path, sources: list[str]) -> None:
    """Write a checkpoint of an epoch, or write down how going on from each of these ends."""
    torch.set_num_threads(1)
    ends = []
    for number, source in enumerate(sources or [None]):
        trainer = tiny.trainer(
            [LastCheckpoint(folder / ("first" if source is None else str(number)))],
            devices=2,
            strategy=ModelParallelStrategy(2, 1, save_distributed_checkpoint=False),
            plugins=[WholeCheckpoints()],
            max_epochs=1 if source is None else 2,
            enable_checkpointing=True,
        )
        try:
            trainer.fit(
                SimCLR(tiny.ConvEncoder(), simclr_views(8), sgd_cosine(0.1)), tiny.data(64, 8), ckpt_path=source
            )
            ends.append(f"step {trainer.global_step}")
        except CheckpointError as error:
            ends.append(str(error))
    if trainer.is_global_zero:
        (folder / "ends.json").write_text(json.dumps(ends))


def test_an_altered_checkpoint_is_refused_where_a_strategy_reads_it_itself(tmp_path: Path) -> None:
    def run(*sources: object) -> list[str]:
        arguments = (tmp_path, [str(source) for source in sources])
        with forked(sharded, *arguments, folder=tmp_path / "output", environments=environments(2)) as processes:
            end = processes.ended(SECONDS)
        assert end.codes == [0, 0], end.stderr[-3000:]
        ends: list[str] = json.loads((tmp_path / "ends.json").read_text())
        return ends

    assert run() == ["step 4"]
    whole = tmp_path / "first" / "last.ckpt"
    weight = WholeCheckpoints().load_checkpoint(whole)["state_dict"]["encoder.0.weight"].numpy().tobytes()
    for folder in ("listed", "alone"):
        (tmp_path / folder).mkdir()
        altered = Path(shutil.copy(whole, tmp_path / folder))
        flip(altered, altered.read_bytes().index(weight) + 5)
    shutil.copy(whole.parent / DIGESTS, tmp_path / "listed")
    ends = run(whole, tmp_path / "listed" / "last.ckpt", tmp_path / "alone" / "last.ckpt")
    assert ends[0] == "step 8"
    assert "listed/last.ckpt is torn or was altered" in ends[1]
    assert "alone/last.ckpt cannot be read as a checkpoint: the sum of its part" in ends[2]
