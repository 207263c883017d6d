"""The benchmark of a run's protections on tiny sizes: both train the same weights, and ratios are of rounds."""

import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from benchmarks import bench_runs
from benchmarks.bench_runs import PLAIN, PROTECTED, HookTimes, check_equal, shares, shares_of_hooks
from benchmarks.rows import read_rows
from benchmarks.tables import bench_runs_table
from tests import tiny
from tests.methods import simclr

TINY = ["--steps", "2", "--rounds", "2", "--batch-size", "4", "--width", "8", "--queue-size", "40"]


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_a_row_has_all_steps_of_both_and_the_table_their_ratio(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    assert bench_runs.main([*TINY, "--method", method, "--output", str(file)]) == 0
    (row,) = read_rows(file)
    assert {name: {clock: len(values) for clock, values in one.items()} for name, one in row["contenders"].items()} == {
        PLAIN: {"wall_ms": 2, "processor_ms": 2},
        PROTECTED: {"wall_ms": 2, "processor_ms": 2, "hooks_ms": 2, "checkpoint_ms": 2},
    }
    plain, protected = row["contenders"][PLAIN]["wall_ms"], row["contenders"][PROTECTED]["wall_ms"]
    assert shares(row["contenders"], "wall_ms") == pytest.approx([protected[0] / plain[0], protected[1] / plain[1]])
    hooks = row["contenders"][PROTECTED]["hooks_ms"]
    assert shares_of_hooks(row["contenders"][PROTECTED]) == pytest.approx(
        [hooks[0] / protected[0], hooks[1] / protected[1]]
    )
    assert min(hooks) > 0
    assert f"{method}, ResNet-18 of width 8, 4 images a rank, 1 rank(s)" in bench_runs_table([row])
    assert "protected / plain" in capsys.readouterr().out


class Sleeps(pl.Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(0.02)

    def on_before_backward(self, *_: Any) -> None:
        time.sleep(0.03)

    def on_train_start(self, *_: Any) -> None:
        time.sleep(0.5)  # once is no part of a step


def test_the_hooks_of_a_step_are_added_and_nobody_elses() -> None:
    hooks = HookTimes()
    trainer = tiny.trainer([Sleeps()], profiler=hooks, max_steps=bench_runs.WARM_UP + 2)
    trainer.fit(simclr.build(), tiny.data(64))
    assert 50 <= hooks.step_ms([Sleeps]) < 500
    assert hooks.step_ms([pl.callbacks.Timer]) == 0


def test_weights_that_a_protection_changed_are_not_timed() -> None:
    with pytest.raises(AssertionError, match="weight is not the same with and without protections: nothing is timed"):
        check_equal({"weight": torch.zeros(2)}, {"weight": torch.tensor([0.0, 1e-7])})
