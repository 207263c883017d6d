"""How fast NT-Xent is and how much memory it takes, forward and backward, beside others' implementations.

    python -m benchmarks.bench_losses
    python -m benchmarks.bench_losses --rows 1024 4096 --rounds 3 --without-rivals
    python -m benchmarks.bench_losses --devices cuda --rows 1048576 --dims 256 --dtype bfloat16

Rows are the projections of two views, stacked: correlated random numbers, --dims wide, not yet normalised.

- ours: ``nt_xent``.
- plain: cross-entropy over the matrix of all pairs, as the paper's code has it.
- lightly: its NTXentLoss.
- pytorch-metric-learning: its NTXentLoss, whose memory grows with the cube of the rows, and its SupConLoss, which is
  the same loss where every image has two views, in less memory.

The last two are installed with ``pip install -c constraints.txt -e '.[benchmarks]'``; without them, or with
--without-rivals, ours is measured beside plain alone.

Half precision is that of autocast, for everybody: projections come in it, and matrix products are computed in it.

At every size each contender's peak memory above the projections comes first (the gradient is part of it): on CPUs that
of a new process, on GPUs that of PyTorch's allocator. Who would need more than is free, or --most-seconds a call, by
what it needed at a smaller size, is left out and the reason recorded. Then loss and gradient are asserted equal to
those of the formula in float32, computed a few anchors at a time. Then contenders take turns, in a new order each
round, each for --seconds at least. What is told is the median of the rounds with the range, and ratios of two
contenders in the same round; where their ranges overlap there is no ratio.

Three matrix products of rows x rows x dim are what the loss takes, one forward and two backward. Their 6 rows^2 dim
operations, over the time of everything, are compared with one large matrix product of the same dtype that takes its
turn in every round.

Appends a row for each size to ``benchmarks/results/bench_losses.jsonl``. Linux only.
"""

import argparse
import ctypes
import itertools
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.rows import RESULTS, append_row, libraries
from benchmarks.turns import figure, in_turns, times_as_much, torch_threads, wait_for
from contrastive.losses import nt_xent
from contrastive.losses.backends import tiles_for

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
USUAL = {  # rows, dims and dtype of each device
    "cpu": ((1024, 2048, 4096, 8192, 16384), (128,), "float32"),
    "cuda": ((4096, 16384, 65536, 262144, 1048576), (128, 256), "bfloat16"),
}
MATMUL = {"cpu": 2048, "cuda": 8192}  # side of the large product's matrices
LOGITS_AT_ONCE = 2**27  # of the formula: 512 MiB
SMALLEST = 256  # rows that anybody's memory suffices for
SHARE_OF_FREE = 0.85  # how much of the free memory a contender may be expected to take
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 0.1}  # bfloat16 logits near 10 move in steps of 1/16
PRELOADED = ["contrastive.losses", "lightly.loss.ntx_ent_loss", "pytorch_metric_learning.losses"]  # where installed
INSTALL = "pip install -c constraints.txt -e '.[benchmarks]'"


@dataclass(frozen=True)
class Setting:
    """What is compared.

    Attributes:
        rows: Two views of half as many images.
        dim: Width of a projection.
        device: "cpu" or "cuda".
        dtype: Of projections and matrix products.
        temperature: Of the loss.
        seed: Of the projections.
    """

    rows: int
    dim: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    temperature: float = 0.1
    seed: int = 0

    def projections(self) -> Tensor:
        """New rows that want a gradient, [rows, dim]: two views of an image have a cosine of about 0.8."""
        random = torch.Generator(self.device).manual_seed(self.seed)
        images = torch.randn(self.rows // 2, self.dim, generator=random, device=self.device, dtype=self.dtype)
        views = torch.randn(self.rows, self.dim, generator=random, device=self.device, dtype=self.dtype).mul_(0.5)
        views.unflatten(0, (2, -1)).add_(images)
        return views.requires_grad_()


@dataclass(frozen=True)
class Contender:
    """Somebody's NT-Xent.

    Attributes:
        name: For people.
        loss: Of projections and temperature; found by its name in a new process.
        growth: The power of the rows that its memory grows with; its time grows with their square at least.
        library: Where it comes from; empty for what is here.
    """

    name: str
    loss: Callable[[Tensor, float], Tensor]
    growth: int
    library: str = ""


def ours(projections: Tensor, temperature: float) -> Tensor:
    """The loss of this package."""
    return nt_xent(projections, temperature=temperature)


def plain(projections: Tensor, temperature: float) -> Tensor:
    """Cross-entropy over the matrix of all pairs."""
    z = F.normalize(projections, dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    positives = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy(logits, positives)


def lightly(projections: Tensor, temperature: float) -> Tensor:
    """lightly's, without a memory bank."""
    from lightly.loss.ntx_ent_loss import NTXentLoss

    return NTXentLoss(temperature)(*projections.chunk(2))


def metric_learning(projections: Tensor, temperature: float) -> Tensor:
    """pytorch-metric-learning's, an image being a class."""
    from pytorch_metric_learning.losses import NTXentLoss

    return NTXentLoss(temperature)(projections, _images(projections))


def metric_learning_sup_con(projections: Tensor, temperature: float) -> Tensor:
    """pytorch-metric-learning's supervised loss, an image being a class."""
    from pytorch_metric_learning.losses import SupConLoss

    return SupConLoss(temperature)(projections, _images(projections))


CONTENDERS = (
    Contender("ours", ours, growth=1),
    Contender("plain", plain, growth=2),
    Contender("lightly", lightly, growth=2, library="lightly"),
    Contender("pytorch-metric-learning", metric_learning, growth=3, library="pytorch-metric-learning"),
    Contender("pytorch-metric-learning SupCon", metric_learning_sup_con, growth=2, library="pytorch-metric-learning"),
)
RIVALS = tuple(dict.fromkeys(contender.library for contender in CONTENDERS if contender.library))


@dataclass(frozen=True)
class Cost:
    """What a forward and backward pass takes.

    Attributes:
        peak_mib: The most memory above the projections.
        seconds: Time, once warm.
    """

    peak_mib: float
    seconds: float


class UnaffordableError(Exception):
    """A contender is not measured; the message says why."""


def forward_backward(contender: Contender, projections: Tensor, temperature: float) -> Tensor:
    """The loss; its gradient lies in ``projections.grad``."""
    projections.grad = None
    half = projections.dtype != torch.float32
    with torch.autocast(projections.device.type, projections.dtype if half else None, enabled=half):
        loss = contender.loss(projections, temperature)
    loss.backward()
    return loss.detach()


def loss_and_gradient(projections: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The formula in float32, for a few anchors at a time so that it fits wherever the rows do."""
    x = projections.detach().float().requires_grad_()
    normalized = F.normalize(x, dim=1)
    z = normalized.detach().requires_grad_()
    num_rows = len(z)
    total = z.new_zeros(())
    for anchors in torch.arange(num_rows, device=z.device).split(max(1, LOGITS_AT_ONCE // num_rows)):
        logits = z[anchors] @ z.T / temperature
        itself = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, anchors[:, None], True)
        positives = (anchors + num_rows // 2) % num_rows
        loss = F.cross_entropy(logits.masked_fill(itself, -torch.inf), positives, reduction="sum") / num_rows
        loss.backward()
        total += loss.detach()
    normalized.backward(z.grad)
    assert x.grad is not None
    return total, x.grad


def assert_equal(
    contender: Contender, projections: Tensor, temperature: float, expected: tuple[Tensor, Tensor]
) -> None:
    """Compare loss and gradient with the expected ones.

    Raises:
        AssertionError: The loss, or the gradient of any row, is off by more than the dtype allows.
    """
    loss = forward_backward(contender, projections, temperature)
    expected_loss, expected_gradient = expected
    assert projections.grad is not None
    off_by = {
        "loss": ((loss - expected_loss) / expected_loss).abs().item(),
        "gradient": (
            (projections.grad - expected_gradient).norm(dim=1).max() / expected_gradient.norm(dim=1).max()
        ).item(),
    }
    allowed = TOLERANCE[projections.dtype]
    for what, difference in off_by.items():
        if not difference <= allowed:
            raise AssertionError(
                f"{contender.name} is not NT-Xent of {list(projections.shape)} {projections.dtype}: its {what} is off "
                f"by {difference:.2g} of the largest, where {allowed:.2g} is allowed. Nothing was timed."
            )


def cost(contender: Contender, setting: Setting, threads: int) -> Cost:
    """Of a forward and backward pass.

    Raises:
        UnaffordableError: There was too little memory.
    """
    if setting.device == "cuda":
        return _cost_on_gpu(contender, setting)
    # The server has imported everything and computed nothing: what it forks is as good as new, and soon there.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, mp_context=processes) as process:
        try:
            return process.submit(_cost_in_this_process, contender, setting, threads).result()
        except BrokenProcessPool as killed:
            raise UnaffordableError("the process that measured its memory was killed: there was too little") from killed


def cost_if_affordable(
    contender: Contender, setting: Setting, threads: int, known: dict[int, Cost], most_seconds: float
) -> Cost:
    """Measure at growing sizes up to the setting's, each only if the one before says that it can be afforded.

    Args:
        contender: Whose.
        setting: What is wanted.
        threads: Of PyTorch.
        known: By rows, measured before with all else equal; gets what is measured.
        most_seconds: That a call may take.

    Raises:
        UnaffordableError: It would take more memory than is free, or more time.
    """
    smaller = itertools.takewhile(lambda rows: rows < setting.rows, (SMALLEST * 4**step for step in itertools.count()))
    before = None
    for rows in [*smaller, setting.rows]:
        if rows not in known:
            if before is not None:
                _check_affordable(contender, setting, rows, before, known[before], most_seconds)
            known[rows] = cost(contender, replace(setting, rows=rows), threads)
        before = rows
    return known[setting.rows]


def free_mib(device: str) -> float:
    """Memory that may still be had."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0] / 2**20
    return _mib(Path("/proc/meminfo"), "MemAvailable")


def contenders(*, without_rivals: bool) -> tuple[list[Contender], dict[str, str]]:
    """Who can be measured, and by name why the others cannot."""
    missing = [library for library in RIVALS if find_spec(library.replace("-", "_")) is None]
    left_out = {}
    for contender in CONTENDERS:
        if contender.library and without_rivals:
            left_out[contender.name] = "--without-rivals"
        elif contender.library in missing:
            left_out[contender.name] = f"not installed; {INSTALL}"
    return [contender for contender in CONTENDERS if contender.name not in left_out], left_out


def measure(
    setting: Setting,
    chosen: Sequence[Contender],
    known: Mapping[str, dict[int, Cost]],
    *,
    threads: int,
    rounds: int,
    seconds: float,
    most_seconds: float,
) -> dict[str, Any]:
    """All contenders at one size.

    Args:
        setting: What is compared.
        chosen: Who.
        known: For each of them its costs by rows, as measured before with all else equal.
        threads: Of PyTorch.
        rounds: How often each is timed.
        seconds: How long a turn takes at least.
        most_seconds: How long a call may take.

    Raises:
        AssertionError: One of them does not compute NT-Xent.
    """
    costs, left_out = {}, {}
    for contender in chosen:
        try:
            costs[contender.name] = cost_if_affordable(contender, setting, threads, known[contender.name], most_seconds)
        except UnaffordableError as reason:
            left_out[contender.name] = str(reason)
    projections = setting.projections()
    expected = loss_and_gradient(projections, setting.temperature)
    turns: dict[str, Turn] = {}
    for contender in chosen:
        if contender.name in costs:
            assert_equal(contender, projections, setting.temperature, expected)
            call = partial(forward_backward, contender, projections, setting.temperature)
            turns[contender.name] = Turn(call, _calls(seconds, costs[contender.name].seconds), setting.device)
    del expected
    turns["matmul"] = large_product(setting, seconds)
    timed = in_turns(turns, rounds=rounds, seed=setting.seed)
    return {
        "benchmark": "bench_losses",
        "rows": setting.rows,
        "dim": setting.dim,
        "device": setting.device,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "temperature": setting.temperature,
        "seed": setting.seed,
        "threads": threads,
        "rounds": rounds,
        "seconds": seconds,
        "tiles": tiles_for("auto", projections).__name__.rpartition(".")[2],
        "libraries": libraries((*RIVALS, "triton")),
        "contenders": {
            name: {"peak_mib": one.peak_mib, "calls": turns[name].calls, "seconds": timed[name]}
            for name, one in costs.items()
        },
        "matmul": {"size": MATMUL[setting.device], "calls": turns["matmul"].calls, "seconds": timed["matmul"]},
        "left_out": left_out,
    }


@dataclass(frozen=True)
class Turn:
    """What one gets in every round; calling it gives the seconds of one call.

    Attributes:
        call: What is timed.
        calls: How many there are in a turn.
        device: Which is waited for at both ends.
    """

    call: Callable[[], object]
    calls: int
    device: str

    def __call__(self) -> float:
        wait_for(self.device)
        start = time.perf_counter()
        for _ in range(self.calls):
            self.call()
        wait_for(self.device)
        return (time.perf_counter() - start) / self.calls


def large_product(setting: Setting, seconds: float) -> Turn:
    """A matrix product large enough to be as fast as they get, of the setting's dtype, warm."""
    shape = 2, MATMUL[setting.device], MATMUL[setting.device]
    left, right = torch.randn(shape, device=setting.device, dtype=setting.dtype)
    once = Turn(partial(torch.matmul, left, right), 1, setting.device)
    once()
    return replace(once, calls=_calls(seconds, once()))


def speeds(row: Mapping[str, Any], name: str) -> list[float]:
    """10^12 operations a second, in each round: those of the three products, over the time of everything."""
    return [6e-12 * row["rows"] ** 2 * row["dim"] / seconds for seconds in row["contenders"][name]["seconds"]]


def share_of_matmul(row: Mapping[str, Any], name: str) -> list[float]:
    """A contender's speed by that of the large product in the same round."""
    products = [2e-12 * row["matmul"]["size"] ** 3 / seconds for seconds in row["matmul"]["seconds"]]
    return [speed / product for speed, product in zip(speeds(row, name), products, strict=True)]


def times_as_fast(row: Mapping[str, Any], name: str) -> str:
    """How many times as fast as a contender ours is, for people."""
    measured = row["contenders"]
    return "" if name == "ours" else times_as_much(measured[name]["seconds"], measured["ours"]["seconds"])


def show(row: Mapping[str, Any], console: Console) -> None:
    """For people: all contenders of a size."""
    where = f"{row['threads']} thread{'s' * (row['threads'] > 1)}" if row["device"] == "cpu" else "cuda"
    table = Table(
        *(
            "",
            "ms",
            "peak MiB",
            "ours is so many times as fast",
            "TFLOP/s of three products",
            "share of a large product",
        ),
        title=f"{row['rows']:,} rows of {row['dim']}, {row['dtype']}, {where}, {row['rounds']} rounds",
    )
    for name, measured in row["contenders"].items():
        milliseconds = figure([1e3 * seconds for seconds in measured["seconds"]], ",.4g")
        of_products = figure(speeds(row, name), ".3g"), figure(share_of_matmul(row, name), ".3f")
        table.add_row(name, milliseconds, f"{measured['peak_mib']:,.1f}", times_as_fast(row, name), *of_products)
    console.print(table)
    for name, reason in row["left_out"].items():
        console.print(f"{name} is left out: {reason}.", highlight=False)


def main(words: list[str] | None = None) -> int:
    """Measure, print and append rows."""
    cores = len(os.sched_getaffinity(0))
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", choices=devices, nargs="+", default=devices[-1:], help="where: the GPU if any")
    parser.add_argument("--rows", type=int, nargs="+", help="two views of half as many images; usual: see below")
    parser.add_argument("--dims", type=int, nargs="+", help="widths of a projection; 128, on a GPU also 256")
    parser.add_argument("--dtype", choices=DTYPES, help="float32 on CPUs, bfloat16 on a GPU")
    parser.add_argument("--temperature", type=float, default=0.1, help="of the loss")
    parser.add_argument("--threads", type=int, default=cores, help="of PyTorch")
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender is timed")
    parser.add_argument("--seconds", type=float, default=0.2, help="how long a contender's turn takes at least")
    parser.add_argument("--most-seconds", type=float, default=20.0, help="how long a call may take")
    parser.add_argument("--seed", type=int, default=0, help="of projections and order")
    parser.add_argument("--without-rivals", action="store_true", help="measure ours beside plain alone")
    parser.add_argument("--output", type=Path, default=RESULTS / "bench_losses.jsonl", help="file of rows to append to")
    parser.epilog = "\n".join(f"usual rows, {name}: {' '.join(map(str, usual[0]))}" for name, usual in USUAL.items())
    options = parser.parse_args(words)
    uneven = [rows for rows in options.rows or [] if rows < 4 or rows % 2]
    if uneven:
        parser.error(f"--rows {uneven[0]}: rows are two views of at least two images; give an even number from 4 on.")
    chosen, left_out = contenders(without_rivals=options.without_rivals)
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}.")
    console = Console(width=None if sys.stdout.isatty() else 180)
    for device in options.devices:
        usual_rows, usual_dims, usual_dtype = USUAL[device]
        for dim in options.dims or usual_dims:
            known: dict[str, dict[int, Cost]] = {contender.name: {} for contender in chosen}
            for rows in sorted(options.rows or usual_rows):
                dtype = DTYPES[options.dtype or usual_dtype]
                setting = Setting(rows, dim, device, dtype, options.temperature, options.seed)
                with torch_threads(options.threads):
                    row = measure(
                        setting,
                        chosen,
                        known,
                        threads=options.threads,
                        rounds=options.rounds,
                        seconds=options.seconds,
                        most_seconds=options.most_seconds,
                    )
                show(append_row(options.output, {**row, "left_out": {**left_out, **row["left_out"]}}), console)
    return 0


def _images(projections: Tensor) -> Tensor:
    return torch.arange(len(projections) // 2, device=projections.device).repeat(2)


def _check_affordable(
    contender: Contender, setting: Setting, rows: int, before: int, cost_before: Cost, most_seconds: float
) -> None:
    """Raise UnaffordableError if so many rows would cost too much, judged by fewer."""
    growth, free = contender.growth, free_mib(setting.device)
    if cost_before.peak_mib * (rows / before) ** growth > SHARE_OF_FREE * free:
        needed = _memory(cost_before.peak_mib * (setting.rows / before) ** growth)
        raise UnaffordableError(
            f"needs about {needed} ({_memory(cost_before.peak_mib)} at {before:,} rows, growing as rows^{growth}), and "
            f"{_memory(free)} are free"
        )
    growth = max(2, growth)
    if cost_before.seconds * (rows / before) ** growth > most_seconds:
        needed = f"{cost_before.seconds * (setting.rows / before) ** growth:,.0f} s"
        raise UnaffordableError(
            f"takes about {needed} a call ({cost_before.seconds:.2g} s at {before:,} rows, growing as rows^{growth}), "
            f"more than --most-seconds {most_seconds:g}"
        )


def _cost_on_gpu(contender: Contender, setting: Setting) -> Cost:
    projections = setting.projections()
    call = partial(forward_backward, contender, projections, setting.temperature)
    try:
        call()  # compiles, and takes what stays for good
        projections.grad = None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = Turn(call, 1, "cuda")()
    except torch.OutOfMemoryError as error:
        raise UnaffordableError(f"ran out of memory: {str(error).splitlines()[0]}") from error
    return Cost((torch.cuda.max_memory_allocated() - before) / 2**20, seconds)


def _cost_in_this_process(contender: Contender, setting: Setting, threads: int) -> Cost:
    torch.set_num_threads(threads)
    forward_backward(contender, replace(setting, rows=64).projections(), setting.temperature)  # imports, code, threads
    projections = setting.projections()
    ctypes.CDLL(None).malloc_trim(0)  # or what is free already would hide what is taken next
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here: proc(5)
    before = _mib(Path("/proc/self/status"), "VmHWM")
    call = partial(forward_backward, contender, projections, setting.temperature)
    call()
    peak_mib = _mib(Path("/proc/self/status"), "VmHWM") - before
    return Cost(peak_mib, Turn(call, 1, "cpu")())


def _calls(seconds: float, seconds_of_one: float) -> int:
    """How many take so long; at least one."""
    return max(1, math.ceil(seconds / seconds_of_one))


def _mib(file: Path, name: str) -> float:
    """An entry of one of Linux's tables, which are in KiB."""
    (line,) = (line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def _memory(mib: float) -> str:
    return f"{mib:,.0f} MiB" if mib < 1024 else f"{mib / 1024:,.1f} GiB"


if __name__ == "__main__":
    sys.exit(main())
