"""The benchmark of losses on tiny sizes: who is timed computes NT-Xent, memory is what was taken, reasons are told."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import bench_losses
from benchmarks.bench_losses import (
    CONTENDERS,
    Contender,
    Cost,
    Setting,
    Turn,
    UnaffordableError,
    assert_equal,
    contenders,
    cost,
    cost_if_affordable,
    forward_backward,
    loss_and_gradient,
    share_of_matmul,
    speeds,
)
from benchmarks.rows import read_rows
from benchmarks.tables import bench_losses_table
from benchmarks.turns import ratios, times_as_much, torch_threads
from tests import reference

TINY = Setting(rows=16, dim=8)
BY_NAME = {contender.name: contender for contender in CONTENDERS}
REASON = "not installed; pip install -c constraints.txt -e '.[benchmarks]'"


def skip_without(contender: Contender) -> None:
    if contender.library:
        pytest.importorskip(contender.library.replace("-", "_"))


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_each_computes_the_papers_loss(name: str, temperature: float) -> None:
    skip_without(BY_NAME[name])
    projections = TINY.projections()
    loss = forward_backward(BY_NAME[name], projections, temperature)
    views = [view.tolist() for view in projections.detach().chunk(2)]
    assert loss.item() == pytest.approx(reference.nt_xent(views, temperature), rel=1e-4)


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_is_equal_to_the_formula(name: str, dtype: torch.dtype) -> None:
    skip_without(BY_NAME[name])
    # Few rows have a loss near zero, of which the rivals' bfloat16 on CPUs keeps no digit.
    setting = Setting(rows=96 if dtype == torch.float32 else 256, dim=16, dtype=dtype, temperature=0.5)
    projections = setting.projections()
    assert projections.dtype == dtype
    assert_equal(BY_NAME[name], projections, 0.5, loss_and_gradient(projections, 0.5))


@pytest.mark.parametrize("logits_at_once", [1, 5 * 16, 16 * 16])
def test_the_formula_is_the_papers_with_the_gradient_of_finite_differences(
    logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_losses, "LOGITS_AT_ONCE", logits_at_once)
    projections = TINY.projections().detach()
    loss, gradient = loss_and_gradient(projections, 0.5)

    def papers(x: Tensor) -> float:
        return reference.nt_xent([view.tolist() for view in x.double().chunk(2)], 0.5)

    assert loss.item() == pytest.approx(papers(projections), rel=1e-5)
    for row, column in [(0, 0), (7, 3), (8, 5), (15, 7)]:
        step = torch.zeros(16, 8, dtype=torch.float64)
        step[row, column] = 1e-4
        slope = (papers(projections + step) - papers(projections - step)) / 2e-4
        assert gradient[row, column].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


def doubled_gradient(projections: Tensor, temperature: float) -> Tensor:
    loss = bench_losses.plain(projections, temperature)
    return 2 * loss - loss.detach()


def with_itself(projections: Tensor, temperature: float) -> Tensor:
    z = torch.nn.functional.normalize(projections, dim=1)
    return torch.nn.functional.cross_entropy(z @ z.T / temperature, torch.arange(len(z)).roll(len(z) // 2))


def wrong_in_one_row(projections: Tensor, temperature: float) -> Tensor:
    return bench_losses.plain(torch.cat([projections[:-1], projections[-1:].detach()]), temperature)


@pytest.mark.parametrize(
    ("loss", "what"), [(doubled_gradient, "gradient"), (with_itself, "loss"), (wrong_in_one_row, "gradient")]
)
def test_another_loss_is_not_timed(
    loss: Callable[[Tensor, float], Tensor], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Contender("wrong", loss, growth=2)
    known = {"wrong": {16: Cost(1.0, 1.0)}}
    timed: list[object] = []
    monkeypatch.setattr(bench_losses, "in_turns", lambda *turns, **_: timed.append(turns))
    with pytest.raises(
        AssertionError, match=rf"^wrong is not NT-Xent of \[16, 8\] torch\.float32: its {what} is off by .* Nothing was"
    ):
        bench_losses.measure(TINY, [wrong], known, threads=1, rounds=1, seconds=0.0, most_seconds=9.0)
    assert not timed


def takes_64_mib(projections: Tensor, temperature: float) -> Tensor:
    if len(projections) < TINY.rows * 8:
        return projections.sum()
    return projections.sum() + torch.ones(2**24).sum()


def dies(projections: Tensor, temperature: float) -> Tensor:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    return projections


def test_memory_is_what_a_new_process_takes_above_the_projections() -> None:
    setting = replace(TINY, rows=128)
    measured = cost(Contender("known", takes_64_mib, growth=1), setting, threads=1)
    assert measured.peak_mib == pytest.approx(64, abs=4)
    assert 0 < measured.seconds < 60
    with pytest.raises(
        UnaffordableError, match=r"^the process that measured its memory was killed: there was too little$"
    ):
        cost(Contender("killed", dies, growth=1), setting, threads=1)


def paid(monkeypatch: pytest.MonkeyPatch, costs: Callable[[int], Cost], free_mib: float = 1e9) -> list[int]:
    """Which rows are measured, at these costs."""
    measured: list[int] = []

    def cost(contender: Contender, setting: Setting, threads: int) -> Cost:
        measured.append(setting.rows)
        return costs(setting.rows)

    monkeypatch.setattr(bench_losses, "cost", cost)
    monkeypatch.setattr(bench_losses, "free_mib", lambda device: free_mib)
    return measured


def test_sizes_are_measured_once_each_from_small_to_large(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = paid(monkeypatch, lambda rows: Cost(rows / 100, 0.001))
    known: dict[int, Cost] = {}
    for rows in (8192, 16384, 100):
        found = cost_if_affordable(BY_NAME["plain"], replace(TINY, rows=rows), 1, known, most_seconds=20.0)
        assert found.peak_mib == rows / 100
    assert measured == [256, 1024, 4096, 8192, 16384, 100]


def test_who_needs_more_than_is_free_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = replace(TINY, rows=4096)
    measured = paid(monkeypatch, lambda rows: Cost(12.0 * (rows / 256) ** 3, 0.001), free_mib=3600)
    reason = r"needs about 48\.0 GiB \(768 MiB at 1,024 rows, growing as rows\^3\), and 3\.5 GiB are free"
    with pytest.raises(UnaffordableError, match=f"^{reason}$"):
        cost_if_affordable(BY_NAME["pytorch-metric-learning"], setting, 1, {}, most_seconds=20.0)
    assert measured == [256, 1024]
    measured = paid(monkeypatch, lambda rows: Cost(12.0 * (rows / 256) ** 2, 0.001), free_mib=3072 / 0.85 + 1)
    assert cost_if_affordable(BY_NAME["plain"], setting, 1, {}, most_seconds=20.0).peak_mib == 3072
    paid(monkeypatch, lambda rows: Cost(12.0 * (rows / 256) ** 2, 0.001), free_mib=3072 / 0.85 - 1)
    with pytest.raises(UnaffordableError, match=r"^needs about 3\.0 GiB"):
        cost_if_affordable(BY_NAME["plain"], setting, 1, {}, most_seconds=20.0)


def test_who_takes_too_long_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = paid(monkeypatch, lambda rows: Cost(1.0, 0.5 * (rows / 256) ** 2))
    with pytest.raises(
        UnaffordableError,
        match=r"^takes about 128 s a call \(8 s at 1,024 rows, growing as rows\^2\), more than --most-seconds 20$",
    ):
        cost_if_affordable(BY_NAME["ours"], replace(TINY, rows=4096), 1, {}, most_seconds=20.0)
    assert measured == [256, 1024]


def test_a_turn_gives_the_seconds_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def call() -> None:
        clock[0] += 0.25

    monkeypatch.setattr(bench_losses.time, "perf_counter", lambda: clock[0])
    assert Turn(call, 6, "cpu")() == 0.25
    assert clock == [1.5]


def test_there_is_no_ratio_where_ranges_overlap() -> None:
    assert ratios([2.0, 3.0, 8.0], [1.0, 1.0, 1.5]) == [2.0, 3.0, 8.0 / 1.5]
    assert ratios([1.0, 1.0], [2.0, 4.0]) == [0.5, 0.25]
    assert ratios([2.0, 3.0], [1.0, 2.0]) is None  # 2 is in both
    assert times_as_much([2.0, 3.0], [1.0, 2.5]) == "ranges overlap"
    assert times_as_much([2.0, 9.0, 3.0], [1.0, 1.0, 1.0]) == "3 (2 to 9)"


def test_who_is_not_installed_is_left_out_with_how_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_spec(name: str) -> ModuleSpec | None:
        assert name in ("lightly", "pytorch_metric_learning")
        return None

    monkeypatch.setattr(bench_losses, "find_spec", find_spec)
    found, left_out = contenders(without_rivals=False)
    assert [contender.name for contender in found] == ["ours", "plain"]
    rivals = ["lightly", "pytorch-metric-learning", "pytorch-metric-learning SupCon"]
    assert left_out == dict.fromkeys(rivals, REASON)
    rows = run(tmp_path, "--rows 16")
    assert rows[0]["left_out"] == left_out
    assert f"lightly is left out: {REASON}." in capsys.readouterr().out
    assert contenders(without_rivals=True) == (found, dict.fromkeys(rivals, "--without-rivals"))


def test_who_is_installed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_losses, "find_spec", lambda name: importlib.util.find_spec("torch"))
    assert contenders(without_rivals=False) == (list(CONTENDERS), {})


def run(folder: Path, options: str) -> list[dict[str, Any]]:
    file = folder / "rows.jsonl"
    words = [*options.split(), "--devices", "cpu", "--dims", "8", "--rounds", "2", "--seconds", "0", "--threads", "1"]
    with torch_threads(torch.get_num_threads()):
        assert bench_losses.main([*words, "--output", str(file)]) == 0
    return read_rows(file)


def test_the_command_appends_a_row_for_each_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    rows = run(tmp_path, "--rows 32 16 --without-rivals --dtype bfloat16 --temperature 0.5 --seed 3")
    assert torch.get_num_threads() == threads
    assert [(row["rows"], row["dim"], row["dtype"], row["seed"]) for row in rows] == [
        (16, 8, "bfloat16", 3),
        (32, 8, "bfloat16", 3),
    ]
    for row in rows:
        assert (row["temperature"], row["device"], row["threads"], row["tiles"]) == (0.5, "cpu", 1, "torch_tiles")
        assert list(row["contenders"]) == ["ours", "plain"]
        for one in row["contenders"].values():
            assert len(one["seconds"]) == 2
            assert one["calls"] >= 1
        assert len(row["matmul"]["seconds"]) == 2
        assert row["libraries"].keys() == {"lightly", "pytorch-metric-learning", "triton"}
    assert "32 rows of 8, bfloat16, 1 thread, 2 rounds" in capsys.readouterr().out
    assert "16 x 8, bfloat16" in bench_losses_table(rows)


@pytest.mark.parametrize("rows", [7, 2])
def test_rows_that_are_no_pairs_are_refused(rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_losses.main(["--rows", str(rows)])
    assert f"--rows {rows}: rows are two views of at least two images; give an even number" in capsys.readouterr().err


def row_of(rows: int, **changes: Any) -> dict[str, Any]:
    row = {
        "rows": rows,
        "dim": 128,
        "device": "cpu",
        "dtype": "float32",
        "contenders": {
            "ours": {"peak_mib": 51.4, "seconds": [0.4, 0.5, 0.41]},
            "plain": {"peak_mib": 3310.2, "seconds": [1.6, 1.7, 1.64]},
            "lightly": {"peak_mib": 99.0, "seconds": [0.45, 2.0, 2.0]},
        },
        "matmul": {"size": 1000, "seconds": [0.01, 0.02, 0.01]},
        "left_out": {
            "pytorch-metric-learning": "needs about 8.0 GiB (1 MiB at 256 rows, growing as rows^3), and 2 GiB are free",
            "pytorch-metric-learning SupCon": REASON,
        },
        "hardware": {"gpus": ["NVIDIA H100"], "cpu": "some", "cpu_cores": 2},
    }
    return {**row, **changes}


def test_speed_is_that_of_three_products_beside_a_large_one() -> None:
    row = row_of(1000)
    assert speeds(row, "ours") == pytest.approx([6 * 1000**2 * 128 / 1e12 / t for t in (0.4, 0.5, 0.41)])
    products = [2 * 1000**3 / 1e12 / t for t in (0.01, 0.02, 0.01)]
    expected = [speed / product for speed, product in zip(speeds(row, "ours"), products, strict=True)]
    assert share_of_matmul(row, "ours") == pytest.approx(expected)


def test_the_table_has_contenders_side_by_side_and_reasons_in_their_place() -> None:
    on_gpu = row_of(50000, device="cuda", dtype="bfloat16", matmul={"size": 1000, "seconds": [4e-6] * 3})
    on_gpu["contenders"]["ours"]["seconds"] = [0.0096, 0.012, 0.0064]
    table = bench_losses_table([row_of(8192, contenders={}), on_gpu, row_of(8192), row_of(1024)]).splitlines()
    columns = (
        "410 ms (400 to 500, 3 runs), 51 MiB",
        "1,640 ms (1,600 to 1,700, 3 runs), 3,310 MiB; 4 (3.4 to 4)",
        "2,000 ms (450 to 2,000, 3 runs), 99 MiB; ranges overlap",
        "needs about 8.0 GiB",
        "not installed",
    )
    assert table[0] == f"| on | projections | {' | '.join(BY_NAME)} |"
    assert table[2] == f"| 2 cores of some | 1,024 x 128, float32 | {' | '.join(columns)} |"
    assert table[3] == f"| 2 cores of some | 8,192 x 128, float32 | {' | '.join(columns)} |"
    assert table[4].startswith(
        "| NVIDIA H100 | 50,000 x 128, bfloat16 | 9.6 ms (6.4 to 12, 3 runs), 51 MiB; "
        "200 TFLOP/s (160 to 300, 3 runs), 0.40 (0.32 to 0.60, 3 runs) of a large product's | "
    )
    assert len(table) == 5


def test_it_says_how_to_run_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        bench_losses.main(["--help"])
    assert exit.value.code == 0
    assert "python -m benchmarks.bench_losses" in capsys.readouterr().out
