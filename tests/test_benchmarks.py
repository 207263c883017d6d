"""Benchmarks: rows that can be traced, numbers that claim no more than was seen, tables made of rows alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import import_time, quality, tables
from benchmarks.kornia_pipeline import kornia_transform
from benchmarks.rows import append_row, read_rows, spread
from benchmarks.tables import fill, quality_table
from contrastive.augmentations import (
    IMAGENET,
    ColorJitter,
    GaussianBlur,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomSolarize,
    SampleKey,
    Views,
    byol_views,
    simclr_views,
)
from tests.reference_augmentations import photographs


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of 32x32 noise, four training and two test images each."""
    folder, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for label in range(10):
            (folder / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / f"class{label}" / f"{number}.png")
    return folder


def quality_row(seed: int, top1: float, *, last: bool = True, **changes: Any) -> dict[str, Any]:
    arguments = {"max_epochs": 200, "batch_size": 512, "precision": "bf16-mixed", "seed": seed}
    row = {
        "benchmark": "quality",
        "recipe": "simclr_resnet18_cifar10",
        "arguments": arguments,
        "compile": False,
        "seed": seed,
        "epoch": 200,
        "train_minutes": 4.0 + seed,
        "minutes": 5.0,
        "images_per_s": 30000.0,
        "peak_memory_mib": 8000.0,
        "knn": [{"k": 200, "temperature": 0.1, "top1": top1}, {"k": 20, "temperature": 0.07, "top1": top1 + 0.01}],
        "linear_evaluation": {"top1": 0.9} if last else None,
        "hardware": {"gpus": ["NVIDIA H200"], "cpu": "some", "cpu_cores": 8},
    }
    return {**row, **changes}


def test_a_spread_is_the_median_and_the_range() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]).__dict__ == {"median": 2.5, "low": 1.0, "high": 10.0, "count": 4}
    with pytest.raises(ValueError, match="at least one measurement"):
        spread([])


def test_rows_are_appended_with_what_they_were_measured_on(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.jsonl"
    assert read_rows(file) == []
    written = [append_row(file, {"value": value}) for value in (1, 2)]
    assert read_rows(file) == written
    assert [row["value"] for row in written] == [1, 2]
    assert all(row.keys() >= {"when", "commit", "versions", "hardware"} for row in written)


def test_a_broken_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"value": 1}\n{"val')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2 is no JSON row"):
        read_rows(file)


def test_quality_appends_accuracy_against_minutes_for_every_seed(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    options = "--max-epochs 3 --batch-size 16 --width 4 --every-n-epochs 2 --seeds 3 4"
    words = f"simclr_resnet18_cifar10 --data-dir {images} {options} --output {file}".split()
    assert quality.main(words) == 0
    rows = read_rows(file)
    assert [(row["seed"], row["epoch"]) for row in rows] == [(3, 2), (3, 3), (4, 2), (4, 3)]
    for row in rows:
        assert [(knn["k"], knn["temperature"]) for knn in row["knn"]] == [(40, 0.1), (20, 0.07)]
        assert (row["linear_evaluation"] is not None) == (row["epoch"] == 3)
        assert 0 < row["train_minutes"] < row["minutes"]
        # Two batches of 16 an epoch; the ragged end of 40 images is dropped.
        assert row["images_per_s"] * row["train_minutes"] * 60 == pytest.approx(32 * row["epoch"])
        assert row["arguments"]["width"] == 4
        assert str(images) not in json.dumps(row)
    assert rows[0]["knn"] != rows[2]["knn"] or rows[1]["knn"] != rows[3]["knn"]  # the seed reaches the run
    assert capsys.readouterr().out.count("seed 4 epoch 3: kNN(k 40, T 0.1)") == 1


@pytest.mark.parametrize("views", ["torch", "kornia"])
def test_quality_trains_on_the_views_that_it_is_told(views: str, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    words = f"simclr_resnet18_cifar10 --data-dir {images} --max-epochs 1 --width 4 --batch-size 8 --views {views}"
    assert quality.main([*words.split(), "--output", str(file)]) == 0
    (row,) = read_rows(file)
    assert row["views"] == views
    recipe = simclr_views(32)
    made = quality.views_by(views, recipe)
    if views == "kornia":
        assert type(made).__name__ == "TransformViews"
        black = made.evaluation_view(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        torch.testing.assert_close(black, recipe.evaluation_view(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
    else:
        assert made == replace(recipe, backend="torch")


def test_kornia_is_given_the_same_operations() -> None:
    """Where nothing is random but what kind of operation, its views are ours to within its own arithmetic."""
    view = [RandomHorizontalFlip(1.0), RandomGrayscale(1.0), GaussianBlur(5, (1.5, 1.5), 1.0), IMAGENET]
    images = photographs(4, 24, 24)
    (ours,) = Views([view])(images, SampleKey(0, 0, torch.arange(4)))
    assert (kornia_transform(view)(images / 255) - ours).abs().max() < 0.01
    crop, jitter = kornia_transform(
        [RandomResizedCrop(16, (0.3, 0.9), (0.5, 2.0)), ColorJitter(0.1, 0.2, 0.3, 0.4, 0.7)]
    )
    assert crop.flags["size"] == (16, 16)
    assert crop.flags["align_corners"] is False
    assert crop._param_generator.scale == (0.3, 0.9)
    assert crop._param_generator.ratio == (0.5, 2.0)
    assert jitter.p == 0.7
    generator = jitter._param_generator
    assert (generator.brightness, generator.contrast, generator.saturation, generator.hue) == (0.1, 0.2, 0.3, 0.4)
    with pytest.raises(ValueError, match=r"RandomSolarize\(.*\) has no counterpart in Kornia here"):
        kornia_transform([RandomSolarize()])
    with pytest.raises(ValueError, match="Kornia's stand-in makes equal views, but this recipe's views differ"):
        quality.views_by("kornia", byol_views(32))


def test_the_training_clock_stands_still_while_features_are_scored(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [0.0]
    score_knn = quality.score_knn

    def slowly(score: Callable[..., Any]) -> Callable[..., Any]:
        def scored(*arguments: Any) -> Any:
            seconds[0] += 60.0  # the only thing that takes time on this clock, but for a second per batch
            return score(*arguments)

        return scored

    class Ticking(quality.Scorer):
        def on_train_batch_end(self, *arguments: Any) -> None:
            super().on_train_batch_end(*arguments)
            seconds[0] += 1.0

    monkeypatch.setattr(quality, "_clock", lambda: seconds[0])
    monkeypatch.setattr(quality, "score_knn", slowly(score_knn))
    monkeypatch.setattr(quality, "Scorer", Ticking)
    rows = tmp_path / "rows.jsonl"
    words = ["simclr_resnet18_cifar10", "--data-dir", str(images), "--max-epochs", "3", "--width", "4"]
    assert quality.main([*words, "--batch-size", "8", "--every-n-epochs", "1", "--output", str(rows)]) == 0
    measured = read_rows(rows)
    steps = round(60 * measured[0]["train_minutes"])
    assert steps >= 1
    assert [round(60 * row["train_minutes"]) for row in measured] == [steps, 2 * steps, 3 * steps]
    assert [round(60 * row["minutes"]) for row in measured] == [(k * steps) + 60 * k for k in (1, 2, 3)]
    assert [row["images_per_s"] for row in measured] == pytest.approx([8.0] * 3)


def test_a_wrong_option_of_the_recipe_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        quality.main(["simclr_resnet18_cifar10", "--data-dir", "x", "--epochs", "3"])
    assert exit.value.code == 2
    assert "There is no option --epochs. Did you mean --max-epochs?" in capsys.readouterr().err


def test_import_times_are_measured_in_fresh_processes_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_time, "BASELINE", "import json")
    monkeypatch.setattr(import_time, "OURS", "import time; time.sleep(0.2)")
    file = tmp_path / "rows.jsonl"
    assert import_time.main(["--pairs", "2", "--output", str(file)]) == 0
    (row,) = read_rows(file)
    baseline, ours = row["seconds"].values()
    assert len(baseline) == len(ours) == len(row["ratios"]) == 2
    assert min(ours) >= 0.2
    assert row["ratios"] == [o / b for o, b in zip(ours, baseline, strict=True)]


def test_the_table_gives_median_and_range_over_the_seeds_last_scores() -> None:
    rows = [
        quality_row(0, 0.50, last=False, epoch=10),
        quality_row(0, 0.85),
        quality_row(1, 0.83),
        quality_row(2, 0.86),
        quality_row(2, 0.84),  # a seed measured again replaces its older row
    ]
    table = quality_table(rows).splitlines()
    assert len(table) == 3
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    assert cells[:4] == ["simclr_resnet18_cifar10", "200", "precision bf16-mixed", "NVIDIA H200"]
    assert cells[4] == "84.00 % (83.00 to 85.00, 3 runs)"
    assert cells[6:8] == ["90.00 % (90.00 to 90.00, 3 runs)", "5.0 (4.0 to 6.0, 3 runs)"]


def test_runs_on_other_machines_or_with_other_options_have_lines_of_their_own() -> None:
    cpu = {"gpus": [], "cpu": "AMD EPYC", "cpu_cores": 2}
    table = quality_table([quality_row(0, 0.8), quality_row(0, 0.8, compile=True), quality_row(0, 0.8, hardware=cpu)])
    assert len(table.splitlines()) == 5
    assert "precision bf16-mixed, compile" in table
    assert "2 cores of AMD EPYC" in table


def test_tables_replace_only_what_stands_between_their_markers(tmp_path: Path) -> None:
    text = "Before.\n<!-- table: quality -->\nold\n<!-- /table -->\nAfter.\n"
    readme = tmp_path / "README.md"
    readme.write_text(text)
    words = ["--file", str(readme), "--results", str(tmp_path)]
    assert tables.main([*words, "--check"]) == 1
    assert readme.read_text() == text
    assert tables.main(words) == 0
    assert readme.read_text() == (
        "Before.\n<!-- table: quality -->\n\nNothing has been measured yet: `python -m benchmarks.quality`.\n\n"
        "<!-- /table -->\nAfter.\n"
    )
    assert tables.main([*words, "--check"]) == 0
    append_row(tmp_path / "quality.jsonl", quality_row(0, 0.85))
    assert tables.main([*words, "--check"]) == 1
    assert "| simclr_resnet18_cifar10 | 200 |" in fill(readme.read_text(), tmp_path)


def test_a_marker_of_no_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^There is no table 'speed'\. There are: quality, import_time, bench_augm"):
        fill("<!-- table: speed -->\n<!-- /table -->", tmp_path)


@pytest.mark.parametrize("benchmark", [quality, import_time, tables])
def test_every_benchmark_says_how_to_run_it(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        benchmark.main(["--help"])
    assert exit.value.code == 0
    assert f"python -m {benchmark.__name__}" in capsys.readouterr().out
