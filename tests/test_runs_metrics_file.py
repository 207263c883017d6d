"""The table of what a run logs, through checkpoints and kills."""

import csv
import math
from pathlib import Path

import pytest
import torch

from contrastive.runs.metrics_file import MetricsFile


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_rows_are_in_the_file_as_soon_as_they_are_logged_under_columns_sorted_by_name(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    logger = MetricsFile(file)
    logger.log_metrics({"train/loss": 0.5, "epoch": 0}, step=9)
    assert file.read_text().splitlines() == ["epoch,step,train/loss", "0,9,0.5"]
    logger.log_metrics({"knn/top1": 0.25, "epoch": 0}, step=9)
    assert file.read_text().splitlines() == ["epoch,knn/top1,step,train/loss", "0,,9,0.5", "0,0.25,9,"]
    assert logger.num_rows == 2


def test_what_lightning_logs_a_second_time_is_one_row_also_where_it_is_no_number(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path / "metrics.csv")
    for loss in (0.5, 0.5, math.nan, float("nan"), 0.5):
        logger.log_metrics({"train/loss": loss}, step=3)
    assert [row["train/loss"] for row in rows(logger.file)] == ["0.5", "nan", "0.5"]
    assert logger.num_rows == 3


def test_a_run_that_goes_on_keeps_the_rows_of_its_checkpoint_and_drops_later_and_torn_ones(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    killed = MetricsFile(file)
    for step in range(5):
        killed.log_metrics({"train/loss": step / 2}, step=step)
    file.write_bytes(file.read_bytes() + b'9,"0.1')
    resumed = MetricsFile(file)
    resumed.keep(3)
    for step in range(3, 6):
        resumed.log_metrics({"train/loss": step / 2}, step=step)
    assert [(row["step"], row["train/loss"]) for row in rows(file)] == [(str(n), str(n / 2)) for n in range(6)]


def test_a_run_that_begins_anew_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\r\n0,1.0\r\n")
    logger = MetricsFile(tmp_path / "metrics.csv")
    logger.keep(0)
    assert not logger.file.exists()
    logger.log_metrics({"knn/top1": 0.5}, step=0)
    assert rows(logger.file) == [{"knn/top1": "0.5", "step": "0"}]


def test_rows_that_are_gone_are_told_of(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path / "metrics.csv")
    with pytest.warns(UserWarning, match=r"metrics\.csv had 4 rows when the run stopped, 0 are there\."):
        logger.keep(4)


def test_numbers_are_written_whole(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path / "metrics.csv")
    third = torch.tensor(1 / 3).item()
    logger.log_metrics({"train/loss": third}, step=0)
    assert float(rows(logger.file)[0]["train/loss"]) == third
