"""The speed benchmark of augmentations on tiny images: everybody makes what is timed, and nobody claims too much."""

import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import augmentation_exactness, bench_augmentations
from benchmarks.bench_augmentations import (
    Contender,
    Setting,
    contenders_of,
    cpu_seconds,
    faster_kornia,
    first_use_seconds,
    over,
    ratios_of,
    setting_of,
    take_turns,
)
from benchmarks.rows import read_rows
from benchmarks.tables import augmentation_exactness_table, bench_augmentations_table
from contrastive.augmentations import CIFAR10
from contrastive.augmentations.backends import native_backend

EVERYBODY = [
    "torch",
    "native",
    "torchvision, tensors",
    "torchvision, PIL",
    "torchvision, 1 worker",
    "torchvision, 2 workers",
    "kornia, slice",
    "kornia, resample",
]
TINY = Setting(size=16, source=20, batch=4, strength=1.0, blur=True, normalize=CIFAR10)


@pytest.fixture(autouse=True)
def without_workers_left_over() -> Iterator[None]:
    yield
    gc.collect()  # a loader's workers end with it


@pytest.mark.parametrize(
    "setting", [TINY, replace(TINY, dtype=torch.bfloat16, channels_last=True, blur=False)], ids=["plain", "half"]
)
def test_everybody_makes_two_new_views_of_every_image(setting: Setting) -> None:
    contenders = contenders_of(setting, seed=0, loader_batches=2)
    assert [contender.name for contender in contenders] == EVERYBODY
    for contender in contenders:
        one, other = contender.make()
        assert one.shape == other.shape == (4, 3, 16, 16)
        assert one.dtype == other.dtype == setting.dtype
        assert one.is_contiguous(memory_format=setting.memory_format)
        assert not torch.equal(one, other)
        assert not torch.equal(one, contender.make()[0])
        assert contender.num_pairs == (8 if "worker" in contender.name else 4)


def test_everybody_scales_and_normalises(monkeypatch: pytest.MonkeyPatch) -> None:
    def white(sides: list[tuple[int, int]], seed: int) -> list[Tensor]:
        return [torch.full((3, *side), 255, dtype=torch.uint8) for side in sides]

    monkeypatch.setattr(bench_augmentations, "photographs", white)
    expected = (1 - torch.tensor(CIFAR10.mean)) / torch.tensor(CIFAR10.std)
    for contender in contenders_of(replace(TINY, strength=0.0), seed=0, loader_batches=1):
        for view in contender.make():
            middle = view.flatten(2).median(2).values  # Kornia mixes black into the border
            torch.testing.assert_close(middle, expected.expand(4, 3), atol=1e-3, rtol=0)


def wrong_in_one_pixel(render: Callable[..., None]) -> Callable[..., None]:
    def rendered(images: Any, program: Any, normalize: Any, out: Tensor) -> None:
        render(images, program, normalize, out)
        out[-1, -1, -1, -1] += 0.01

    return rendered


@pytest.mark.parametrize("size", [32, 224])
def test_a_backend_that_makes_other_views_is_not_timed(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_backend, "render", wrong_in_one_pixel(native_backend.render))
    with pytest.raises(AssertionError, match="native does not make torchvision's views"):
        contenders_of(setting_of(size, "cpu", batch=2), seed=0, loader_batches=1)


def test_somebody_who_makes_too_little_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    half = Contender("half", lambda: [torch.zeros(2, 3, 16, 16)] * 2, 4)
    monkeypatch.setattr(bench_augmentations, "kornia_contenders", lambda *_: [half])
    with pytest.raises(
        AssertionError, match=r"^half made \(2, 3, 16, 16\) torch\.float32 instead of \(\(4, 3, 16, 16\)"
    ):
        contenders_of(TINY, seed=0, loader_batches=1)


def test_contenders_take_turns_in_every_round() -> None:
    log: list[str] = []

    def logging(name: str) -> Contender:
        return Contender(name, lambda: log.append(name) or [], 1)

    measured = take_turns([logging(name) for name in "abcd"], "cpu", rounds=6, seconds=0.0, seed=0)
    warm_up, timed = log[:12], log[12:]
    assert warm_up == [name for name in "abcd" for _ in range(3)]
    rounds = [tuple(timed[start : start + 4]) for start in range(0, 24, 4)]
    assert all(sorted(turn) == list("abcd") for turn in rounds)
    assert len(set(rounds)) > 1
    assert all(len(one["pairs_per_s"]) == len(one["pairs_per_cpu_s"]) == 6 for one in measured.values())


def test_a_turn_has_as_many_calls_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]

    def make() -> list[Tensor]:
        seconds[0] += 0.125
        return []

    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    monkeypatch.setattr(bench_augmentations, "cpu_seconds", lambda: 2 * seconds[0])
    (measured,) = take_turns([Contender("one", make, 10)], "cpu", rounds=2, seconds=0.9, seed=0).values()
    assert measured == {"calls": 8, "pairs_per_s": [80.0, 80.0], "pairs_per_cpu_s": [40.0, 40.0]}


def spin(ready: Event, done: Event) -> None:
    while time.process_time() < 0.3:
        pass
    ready.set()
    done.wait()


def test_cpu_time_counts_that_of_living_workers() -> None:
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Event(), fork.Event()
    before, own = cpu_seconds(), time.process_time()
    worker = fork.Process(target=spin, args=(ready, done))
    worker.start()
    ready.wait()
    both, own = cpu_seconds() - before, time.process_time() - own
    done.set()
    worker.join()
    assert both - own > 0.25


def measured_as(**pairs_per_cpu_s: list[float]) -> dict[str, dict[str, Any]]:
    return {
        name.replace("_", ", "): {"calls": 1, "pairs_per_s": values, "pairs_per_cpu_s": values}
        for name, values in pairs_per_cpu_s.items()
    }


def test_ratios_are_those_of_each_round_and_none_where_the_ranges_overlap() -> None:
    measured = measured_as(native=[30.0, 60.0, 40.0], kornia_slice=[10.0, 20.0, 5.0], torch=[20.0, 25.0, 22.0])
    quantity = "pairs_per_cpu_s"
    assert ratios_of(measured, "native", "kornia, slice", quantity) == [3.0, 3.0, 8.0]
    assert ratios_of(measured, "kornia, slice", "native", quantity) == [1 / 3, 1 / 3, 1 / 8]
    assert ratios_of(measured, "torch", "kornia, slice", quantity) is None  # 20 is in both
    assert ratios_of(measured, "torch", "torch", quantity) is None
    assert over(measured, "native", "kornia, slice", quantity) == "3 (3 to 8)"
    assert over(measured, "torch", "kornia, slice", quantity) == "ranges overlap"
    assert over(measured, "torch", "torch", quantity) == "1"


def test_the_faster_kornia_is_the_one_to_beat() -> None:
    measured = measured_as(kornia_slice=[1.0, 9.0, 1.0], kornia_resample=[2.0, 2.0, 2.0], native=[99.0, 99.0, 99.0])
    assert faster_kornia(measured, "pairs_per_s") == "kornia, resample"


def test_first_use_is_timed_with_an_empty_cache_and_then_with_that_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import os\n"
        "cache = os.environ['NUMBA_CACHE_DIR']\n"
        "assert cache == os.environ['TRITON_CACHE_DIR']\n"
        "print(0.5 if os.listdir(cache) else 2.5)\n"
        "open(cache + '/{backend}', 'w').close()\n"
    )
    monkeypatch.setattr(bench_augmentations, "FIRST_USE", script)
    assert first_use_seconds("torch", TINY) == {"compiled": 2.5, "from_disk": 0.5}


def test_the_script_of_first_use_prints_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    exec(bench_augmentations.FIRST_USE.format(size=16, device="cpu", backend="torch"), {})
    torch.set_num_threads(threads)
    assert float(capsys.readouterr().out) < 60


def test_the_command_appends_a_row_for_each_size_and_number_of_threads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads, file = torch.get_num_threads(), tmp_path / "rows.jsonl"
    options = "--sizes 16 --threads 1 2 --batch 4 --rounds 2 --seconds 0 --loader-batches 1 --devices cpu"
    assert bench_augmentations.main([*options.split(), "--without-first-use", "--output", str(file)]) == 0
    assert torch.get_num_threads() == threads
    rows = read_rows(file)
    assert [(row["size"], row["threads"], row["seed"]) for row in rows] == [(16, 1, 0), (16, 2, 0)]
    for row in rows:
        assert list(row["contenders"]) == EVERYBODY
        assert all(len(one["pairs_per_cpu_s"]) == 2 and one["calls"] >= 1 for one in row["contenders"].values())
        assert row["libraries"].keys() == {"numba", "triton", "pillow", "scikit-learn"}
    printed = capsys.readouterr().out
    assert "16 px, batches of 4, cpu, 1 thread, 2 rounds" in printed
    table = bench_augmentations_table(rows).splitlines()
    assert [line.split(" | ")[1] for line in table[2:]] == EVERYBODY


def speed_row(size: int, native: list[float], **changes: Any) -> dict[str, Any]:
    row = {
        "size": size,
        "device": "cpu",
        "threads": 1,
        "dtype": "float32",
        "channels_last": False,
        "first_use_s": {},
        "contenders": measured_as(native=native, kornia_slice=[10.0, 12.0, 11.0]),
        "hardware": {"gpus": [], "cpu": "some", "cpu_cores": 2},
    }
    return {**row, **changes}


def test_the_table_of_speeds_has_the_sizes_of_one_thread_side_by_side_and_gpus_below() -> None:
    gpu = {"gpus": ["NVIDIA H200"], "cpu": "some", "cpu_cores": 16}
    on_gpu = measured_as(triton=[40000.0], kornia_slice=[100.0])
    on_gpu["triton"]["host_ms"] = [0.5]
    table = bench_augmentations_table(
        [
            speed_row(32, [1.0, 2.0, 3.0]),  # replaced by the newer row
            speed_row(32, [1000.0, 1100.0, 1200.0], first_use_s={"native": {"compiled": 21.0, "from_disk": 0.4}}),
            speed_row(32, [5.0] * 3, threads=2),
            speed_row(32, [5.0] * 3, dtype="bfloat16"),
            speed_row(32, [5.0] * 3, channels_last=True),
            speed_row(224, [11.0, 15.0, 12.0]),
            speed_row(32, [0.0], device="cuda", threads=16, contenders=on_gpu, hardware=gpu),
            speed_row(32, [50.0] * 3, hardware=gpu),
        ]
    )
    assert table.splitlines() == [
        "| on | who | 32 px, pairs per CPU-second | over Kornia | 224 px, pairs per CPU-second | over Kornia |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 2 cores of some | native | 1,100 (1,000 to 1,200, 3 runs) | 100 (91.7 to 109) "
        "| 12 (11 to 15, 3 runs) | ranges overlap |",
        "| 2 cores of some | kornia, slice | 11 (10 to 12, 3 runs) | 1 | 11 (10 to 12, 3 runs) | 1 |",
        "| 16 cores of some | native | 50 (50 to 50, 3 runs) | 4.55 (4.17 to 5) |  |  |",
        "| 16 cores of some | kornia, slice | 11 (10 to 12, 3 runs) | 1 |  |  |",
        "",
        "What a process's first call takes longer, 32 px on 2 cores of some: `native` 21.0 s, or 0.4 s once compiled "
        "code is on disk.",
        "",
        "| on | who | 32 px, pairs/s | over Kornia |",
        "| --- | --- | --- | --- |",
        "| NVIDIA H200 | triton | 40,000 (1 run), host 0.50 ms (1 run) | 400 (1 round) |",
        "| NVIDIA H200 | kornia, slice | 100 (1 run) | 1 |",
    ]


def test_the_table_of_exactness_has_the_largest_differences_of_the_newest_rows() -> None:
    def difference(subject: str, content: str, from_float32: float) -> dict[str, Any]:
        of_all = {"from_float32": from_float32, "from_float64": from_float32 / 10, "torchvision": from_float32 / 2}
        return {"subject": subject, "content": content, **of_all}

    rows = [
        {"target": "native", "differences": [difference("flip", "noise", 9.0)]},
        {
            "target": "native",
            "differences": [
                difference("flip", "photographs", 1e-6),
                difference("flip", "photographs", 4e-6),
                difference("flip", "flat", 3e-6),
                difference("flip", "noise", 8e-6),
                difference("hue", "flat", 2e-6),
            ],
        },
    ]
    assert augmentation_exactness_table(rows).splitlines() == [
        "|  | native, photographs and flat | native, noise | native, from float64 "
        "| torchvision's float32 from its float64 |",
        "| --- | --- | --- | --- | --- |",
        "| flip | 4.0e-06 | 8.0e-06 | 8.0e-07 | 4.0e-06 |",
        "| hue | 2.0e-06 | 0.0e+00 | 2.0e-07 | 1.0e-06 |",
    ]


@pytest.mark.parametrize("benchmark", [bench_augmentations, augmentation_exactness])
def test_each_says_how_to_run_it(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        benchmark.main(["--help"])
    assert exit.value.code == 0
    assert f"python -m {benchmark.__name__}" in capsys.readouterr().out
