"""The benchmark of probes on tiny sizes: who claims an optimum is at it, who is timed predicts the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import bench_probes
from benchmarks.bench_probes import accuracies, drawn, objective, scaled, strengths
from benchmarks.probe_contenders import KNN, Problem, Solved, ours, scipy_lbfgs
from benchmarks.rows import read_rows
from benchmarks.tables import bench_probes_table

SIZES = "--images 120 --large-images 200 --test-images 80 --width 8 --classes 3 --strengths 3 --large-strengths 4"
TINY = f"{SIZES} --queries 40 --k 5 --rounds 2".split()


def problem() -> Problem:
    train, _ = scaled(*drawn(120, 10, 8, 3, seed=0))
    return Problem(train, 3, strengths(3, 1))


def test_every_part_makes_a_row_and_the_table_has_all_contenders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    assert bench_probes.main([*TINY, "--output", str(file)]) == 0
    sweep, large, knn = rows = read_rows(file)
    assert [row["part"] for row in rows] == ["sweep", "large", "knn"]
    assert sweep["strengths"] == pytest.approx([1e-6, 10**-2.5, 10])
    assert large["strengths"] == pytest.approx([1e-6, 10 ** (-6 + 11 / 3), 10 ** (-6 + 22 / 3), 1e5])
    for row in rows:
        assert (row["features"], row["seed"]) == ("drawn", 0)
        assert row["libraries"].keys() == {"scikit-learn", "scipy", "lightly", "faiss-cpu"}
        for contender in row["contenders"].values():
            assert len(contender["seconds"]) == len(contender["beside_ours"]) >= 1
    first = sweep["contenders"]["ours"]
    assert max(first["relative_excess_loss"]) <= 1e-5
    assert len(first["accuracy_off_by"]) == len(sweep["optimum_accuracy"]) == 3
    assert {len(one["seconds"]) for one in sweep["contenders"].values()} == {1, 2}
    assert len({one["top1"] for one in knn["contenders"].values()}) == 1
    table = bench_probes_table(rows)
    for row in rows:
        for name in row["contenders"]:
            assert f"| {row['part']}: {row['images']} x 8, 3 classes; drawn | {name} |" in table
    assert "sweep: 120 x 8, 3 classes" in capsys.readouterr().out


def test_slow_rivals_can_be_left_out_and_stored_features_be_measured(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("train.npz", "test.npz")]
    for file in files:
        np.savez(file, features=torch.randn(60, 5).numpy(), labels=np.arange(60) % 3, index=np.arange(60))
    output = tmp_path / "rows.jsonl"
    words = [
        "--features",
        *files,
        "--described",
        "noise",
        "--parts",
        "sweep",
        "--without-slow",
        "--output",
        str(output),
    ]
    assert bench_probes.main([*TINY, *words]) == 0
    (row,) = read_rows(output)
    assert (row["features"], row["images"], row["width"]) == ("noise", 60, 5)
    assert row["left_out"] == {"scikit-learn, max_iter=1000": "--without-slow", "SciPy L-BFGS": "--without-slow"}


def test_the_objective_is_the_definitions() -> None:
    given = problem()
    random = torch.Generator().manual_seed(0)
    solved = Solved(torch.randn(3, 3, 8, generator=random), torch.randn(3, 3, generator=random), 0)
    for number, l2 in enumerate(given.l2):
        total = 0.0
        for row, label in zip(given.train.features.double(), given.train.labels.tolist(), strict=True):
            logits = solved.weights[number].double() @ row + solved.biases[number].double()
            total -= float(logits.log_softmax(0)[label])
        expected = total / 120 + l2 / 2 * float(solved.weights[number].double().square().sum())
        assert float(objective(solved, given)[number]) == pytest.approx(expected)


def test_scipy_ends_at_the_certificate() -> None:
    given = problem()
    found = scipy_lbfgs(given)
    assert found.converged == 3
    excess = objective(found, given) / objective(ours(given, 1e-10), given) - 1
    assert float(excess.max()) <= 1e-5
    assert float(excess.min()) >= -1e-6


def test_who_stops_short_of_the_optimum_gets_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(given: Problem, tolerance: float = 1e-5) -> Solved:
        found = ours(given, tolerance)
        return found if tolerance < 1e-5 else replace(found, weights=0.9 * found.weights)

    monkeypatch.setattr(bench_probes, "ours", hasty)
    file = tmp_path / "rows.jsonl"
    with pytest.raises(AssertionError, match=r"^ours claims the optimum to 1e-05 of the loss, but its losses lie from"):
        bench_probes.main([*TINY, "--output", str(file)])
    assert not file.exists()


def test_who_predicts_differently_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rival(bank: Any, queries: torch.Tensor, num_classes: int, k: int) -> torch.Tensor:
        return torch.zeros(len(queries), dtype=torch.int64)

    monkeypatch.setitem(KNN, "rival", (rival, ""))
    with pytest.raises(AssertionError, match=r"^rival predicts .*% of the images differently than ours"):
        bench_probes.main([*TINY, "--parts", "knn", "--output", str(tmp_path / "rows.jsonl")])


def test_drawn_features_have_the_spectrum_and_the_classes_that_they_should() -> None:
    train, test = scaled(*drawn(20_000, 2_000, 16, 4, seed=1))
    spectrum = torch.linalg.eigvalsh(train.features.double().T.cov()).flip(0)
    slope = (spectrum[12] / spectrum[1]).log() / torch.tensor(13 / 2).log()
    assert float(slope) == pytest.approx(bench_probes.SPECTRUM, rel=0.1)
    assert float(train.features.mean()) == pytest.approx(0, abs=1e-5)
    assert float(train.features.square().mean()) == pytest.approx(1, rel=1e-4)
    found = ours(Problem(train, 4, [1e-3]))
    assert 0.3 < float(accuracies(found, test)[0]) < 0.95


def test_it_says_how_to_run_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        bench_probes.main(["--help"])
    assert exit.value.code == 0
    assert "python -m benchmarks.bench_probes" in capsys.readouterr().out
