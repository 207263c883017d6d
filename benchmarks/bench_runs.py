"""What the protections of a run cost: the time of a training step with all of them, beside plain Lightning's.

    python -m benchmarks.bench_runs
    python -m benchmarks.bench_runs --method moco --queue-size 65536 --devices 2

Two trainers fit the same method on the same images, in turns: Lightning's alone, and one with whole checkpoints, the
last checkpoint, the guard of finite losses and continuity, as ``contrastive fit`` has them. Their final weights are the
same to the last bit, which is checked before anything is said of time. A step is timed from one batch's start to the
next one's, so that whatever a protection does anywhere in it is counted; the first steps and what lies between epochs,
where checkpoints are written, are not. What one checkpoint takes is told apart.

A turn's figure is the median of its steps. Ratios are of the two turns of a round, which follow each other, since
machines drift. Where that drift is larger than what is sought, ``hooks_ms`` tells: of the same protected steps, the
time that was spent within the protections, as Lightning's profiler has it, waiting for other ranks included. A row goes
to ``benchmarks/results/bench_runs.jsonl``. With several devices, all ranks train on this machine, and the first one
writes.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import SimpleProfiler
from rich.console import Console
from torch import Tensor

from benchmarks.rows import RESULTS, append_row
from benchmarks.turns import figure, in_turns, wait_for
from contrastive import MoCo, SimCLR
from contrastive.augmentations import CIFAR10, moco_v2_views, simclr_views
from contrastive.data import TensorImages
from contrastive.encoders import resnet18
from contrastive.module import ContrastiveModule
from contrastive.optim import sgd_cosine
from contrastive.report.screen import without_noise
from contrastive.runs import Continuity, FiniteLoss, LastCheckpoint, WholeCheckpoints

PLAIN, PROTECTED = "plain Lightning", "all protections"
WARM_UP = 5  # steps of a turn that are not timed
METHODS = ("simclr", "moco")


class HookTimes(SimpleProfiler):
    """How long each callback's hooks take."""

    def describe(self) -> None:
        """Print nothing."""

    def step_ms(self, callbacks: Sequence[type[pl.Callback]]) -> float:
        """Of the hooks of such callbacks that are called at every step, in milliseconds: the medians' sum."""
        names = tuple(f"[Callback]{callback.__name__}" for callback in callbacks)
        every_step = [
            times[WARM_UP:]
            for name, times in self.recorded_durations.items()
            if name.startswith(names) and len(times) > WARM_UP
        ]
        return 1e3 * sum(statistics.median(times) for times in every_step)


class Clock(pl.Callback):
    """Seconds from one batch's start to the next one's, wall and processor, of one epoch."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.wall: list[float] = []
        self.processor: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Read both clocks."""
        wait_for(self.device)
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())

    def steps(self) -> dict[str, float]:
        """The median step in milliseconds, on either clock."""
        return {
            name: 1e3 * statistics.median(b - a for a, b in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False))
            for name, times in (("wall_ms", self.wall), ("processor_ms", self.processor))
        }


def build(method: str, *, width: int, queue_size: int, seed: int) -> ContrastiveModule:
    """A method with a ResNet-18 for images of 32 x 32 pixels; the same weights every time."""
    torch.manual_seed(seed)
    encoder, optimizer = resnet18(stem="small", width=width), sgd_cosine(0.05, momentum=0.9)
    if method == "moco":
        views = moco_v2_views(32, normalize=CIFAR10)
        return MoCo(encoder, views, optimizer, queue_size=queue_size, batch_norm_groups=2, seed=seed)
    return SimCLR(encoder, simclr_views(32, blur=False, normalize=CIFAR10), optimizer, temperature=0.5, seed=seed)


def turn(
    method: ContrastiveModule, images: Tensor, *, batch_size: int, protected: bool, accelerator: str, devices: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """One epoch: its median step, with what one checkpoint took, and the weights it came to."""
    hooks = HookTimes()
    clock, data = Clock("cuda" if accelerator == "gpu" else "cpu"), TensorImages(images, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            max_epochs=1,
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=protected,
            profiler=hooks,
            plugins=[WholeCheckpoints()] if protected else [],
            callbacks=[clock, *([Continuity(), FiniteLoss(folder), LastCheckpoint(folder)] if protected else [])],
        )
        trainer.fit(method, data)
        measured = clock.steps()
        if protected:
            measured["hooks_ms"] = hooks.step_ms([Continuity, FiniteLoss, LastCheckpoint])
            start = time.perf_counter()
            trainer.save_checkpoint(Path(folder) / "last.ckpt")
            measured["checkpoint_ms"] = 1e3 * (time.perf_counter() - start)
        trainer.strategy.barrier()
    return measured, {name: weight.detach().cpu().clone() for name, weight in method.state_dict().items()}


def check_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Protections change nothing.

    Raises:
        AssertionError: Some weight differs.
    """
    for name, weight in one.items():
        if not torch.equal(weight, other[name]):
            raise AssertionError(f"{name} is not the same with and without protections: nothing is timed.")


def shares(contenders: Mapping[str, Mapping[str, list[float]]], clock: str) -> list[float]:
    """How long a protected step takes, beside the plain one of the same round."""
    pairs = zip(contenders[PROTECTED][clock], contenders[PLAIN][clock], strict=True)
    return [protected / plain for protected, plain in pairs]


def shares_of_hooks(protected: Mapping[str, list[float]]) -> list[float]:
    """Which part of a protected step is spent within the protections."""
    return [hooks / step for hooks, step in zip(protected["hooks_ms"], protected["wall_ms"], strict=True)]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The row."""
    ranks = options.devices
    count = options.batch_size * ranks * (options.steps + WARM_UP)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    ends: dict[str, dict[str, Tensor]] = {}

    def contender(name: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            method = build(options.method, width=options.width, queue_size=options.queue_size, seed=options.seed)
            measured, ends[name] = turn(
                method,
                images,
                batch_size=options.batch_size,
                protected=name == PROTECTED,
                accelerator=accelerator,
                devices=ranks,
            )
            return measured

        return run

    contender(PLAIN)()  # what is compiled at a process's first steps counts for nobody
    turns = in_turns({name: contender(name) for name in (PLAIN, PROTECTED)}, rounds=options.rounds, seed=options.seed)
    check_equal(ends[PLAIN], ends[PROTECTED])
    return {
        "benchmark": "bench_runs",
        "method": options.method,
        "width": options.width,
        "queue_size": options.queue_size if options.method == "moco" else 0,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "ranks": ranks,
        "device": "cuda" if accelerator == "gpu" else "cpu",
        "threads": torch.get_num_threads(),
        "seed": options.seed,
        "contenders": {
            name: {clock: [one[clock] for one in measured] for clock in measured[0]} for name, measured in turns.items()
        },
    }


def main(words: list[str] | None = None) -> int:
    """Measure, print and append a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="simclr", help="what is trained")
    parser.add_argument("--width", type=int, default=16, help="channels of the encoder's first stage")
    parser.add_argument("--queue-size", type=int, default=4096, help="of MoCo")
    parser.add_argument("--batch-size", type=int, default=64, help="images per rank and step")
    parser.add_argument("--devices", type=int, default=1, help="ranks")
    parser.add_argument("--steps", type=int, default=40, help="of a turn, after those that warm up")
    parser.add_argument("--rounds", type=int, default=7, help="how many turns each gets")
    parser.add_argument("--seed", type=int, default=0, help="of weights, views and the order of turns")
    parser.add_argument("--output", type=Path, default=RESULTS / "bench_runs.jsonl", help="file of rows to append to")
    options = parser.parse_args(words)
    with without_noise():
        row = measure(options)
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return 0
    append_row(options.output, row)
    console = Console(highlight=False)
    for clock in ("wall_ms", "processor_ms"):
        for name, one in row["contenders"].items():
            console.print(f"{name}: {figure(one[clock], '.1f')} ms a step, {clock.removesuffix('_ms')}")
        console.print(f"protected / plain: {figure(shares(row['contenders'], clock), '.4f')}")
    protected = row["contenders"][PROTECTED]
    console.print(f"of a protected step, within protections: {figure(shares_of_hooks(protected), '.4f')}")
    console.print(f"a checkpoint: {figure(protected['checkpoint_ms'], '.1f')} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
