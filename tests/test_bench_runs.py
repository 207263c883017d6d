"""The benchmark of a run's protections on tiny sizes: both train the same weights, and ratios are of rounds."""

from pathlib import Path

import pytest
import torch

from benchmarks import bench_runs
from benchmarks.bench_runs import PLAIN, PROTECTED, check_equal, shares
from benchmarks.rows import read_rows
from benchmarks.tables import bench_runs_table

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
        PROTECTED: {"wall_ms": 2, "processor_ms": 2, "checkpoint_ms": 2},
    }
    plain, protected = row["contenders"][PLAIN]["wall_ms"], row["contenders"][PROTECTED]["wall_ms"]
    assert shares(row["contenders"], "wall_ms") == pytest.approx([protected[0] / plain[0], protected[1] / plain[1]])
    assert f"{method}, ResNet-18 of width 8, 4 images a rank, 1 rank(s)" in bench_runs_table([row])
    assert "protected / plain" in capsys.readouterr().out


def test_weights_that_a_protection_changed_are_not_timed() -> None:
    with pytest.raises(AssertionError, match="weight is not the same with and without protections: nothing is timed"):
        check_equal({"weight": torch.zeros(2)}, {"weight": torch.tensor([0.0, 1e-7])})
