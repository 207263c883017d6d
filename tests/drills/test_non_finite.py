"""A loss that is not a number, on one rank only: the run ends soon, says of which images, and keeps what was good."""

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contrastive.module import Batch, Step, Views
from contrastive.runs.checkpoints import WholeCheckpoints
from contrastive.runs.finite import RECORD, FiniteLoss
from tests.drills.drill import Drill, promise
from tests.drills.process import forked
from tests.drills.runs import SECONDS, References, environments, finished
from tests.drills.trace import difference
from tests.drills.trainee import Options, data_of, module_of, trainer_of

STOP_SECONDS = 15
RANK = 1  # the one that finds it
IMAGES = "broken_images.json"  # of the batch that was broken


def train_broken(options: Options, at: int, budget: int) -> None:
    """Train; the views of this batch (from 0) are not numbers on one rank."""
    torch.set_num_threads(1)
    torch.manual_seed(3)  # the first weights are the trainee's
    module, data = module_of(options), data_of(options)
    trainer = trainer_of(options, module, data)
    (guard,) = [callback for callback in trainer.callbacks if isinstance(callback, FiniteLoss)]
    guard.budget = budget
    step, calls = module.step, iter(range(10**6))

    def broken(views: Views, batch: Batch) -> Step:
        if next(calls) != at or trainer.global_rank != RANK % options.ranks:
            return step(views, batch)
        (options.folder / IMAGES).write_text(json.dumps(batch["index"].tolist()))
        print(f"broken in {os.getpid()}", flush=True)
        return step([view * math.nan for view in views], batch)

    module.step = broken
    trainer.fit(module, data)


def faults(options: Options, at: int, budget: int = 0) -> list[str]:
    """What is wrong with how it ended, and with what is left of it."""
    arguments = (options, at, budget)
    with forked(
        train_broken, *arguments, folder=options.folder / "output", environments=environments(options.ranks)
    ) as trainee:
        trainee.line("broken in", SECONDS)
        since = time.monotonic()
        end = trainee.ended(SECONDS)
    seconds = time.monotonic() - since
    notes = []
    if budget and any(end.codes):
        notes.append(f"ended with {end.codes}: {end.stderr[-300:]}")
    if not budget and (0 in end.codes or "NonFiniteError" not in end.stderr):
        notes.append(f"ended with {end.codes}, as if all were well")
    if not budget and seconds > STOP_SECONDS:
        notes.append(f"took {seconds:.0f} s")
    file = options.folder / RECORD
    events = json.loads(file.read_text()) if file.exists() else []
    found = [batch["images"] for event in events for batch in event["ranks"][RANK % options.ranks]["batches"]]
    if json.loads((options.folder / IMAGES).read_text()) not in found:
        notes.append(f"{RECORD} names the images {found}")
    for checkpoint in options.checkpoints.glob("*.ckpt"):
        weights = WholeCheckpoints().load_checkpoint(checkpoint)["state_dict"].values()
        if not all(weight.isfinite().all() for weight in weights):
            notes.append(f"{checkpoint.name} is not finite")
    return notes


SETTINGS = {
    "one process": Options(folder=Path(), method="moco"),
    "two ranks": Options(folder=Path(), method="moco", ranks=2),
    "two ranks in bfloat16": Options(folder=Path(), method="moco", ranks=2, precision="bf16-mixed"),
    "two ranks that accumulate": Options(folder=Path(), method="byol", ranks=2, accumulate=2),
    "two ranks with a centre": Options(folder=Path(), method="dino", ranks=2),
}
QUICK = {("two ranks", 4)}
MOMENTS = [0, 4, 5]  # the run's first batch; of two ranks, an epoch's second and last


def trials() -> list[object]:
    """One of them is part of every test."""
    return [
        pytest.param(name, at, marks=[] if (name, at) in QUICK else pytest.mark.exhaustive, id=f"{name} at batch {at}")
        for name in SETTINGS
        for at in MOMENTS
    ]


def options_in(folder: Path, name: str) -> Options:
    """The settings of this name."""
    return replace(SETTINGS[name], folder=folder / "run")


@promise(
    "A loss that is not a number, on one rank only, ends all ranks within 15 seconds; non_finite.json names its "
    "images, every checkpoint is finite, and from the newest the run goes on as if nothing had been."
)
@pytest.mark.parametrize(("name", "at"), trials())
def test_a_loss_that_is_not_finite_stops_the_run(
    drill: Drill, tmp_path: Path, references: References, name: str, at: int
) -> None:
    options = options_in(tmp_path, name)
    notes = faults(options, at)
    if not notes:
        traces, references = finished(options), references(options)
        traces = [[line for line in trace if line.get("loss") != "nan"] for trace in traces]  # of an accumulation
        notes = [note for pair in zip(traces, references, strict=True) if (note := difference(*pair))]
    drill.trial(lost=bool(notes), note=f"{name} at batch {at}: {'; '.join(notes)}")


@promise(
    "With --skip-non-finite, the step of a loss that is not a number on one rank only is left out on all ranks; the "
    "run goes on to its end, with finite weights."
)
@pytest.mark.parametrize(("name", "at"), trials())
def test_a_step_that_is_not_finite_is_left_out(drill: Drill, tmp_path: Path, name: str, at: int) -> None:
    options = options_in(tmp_path, name)
    notes = faults(options, at, budget=1)
    drill.trial(lost=bool(notes), note=f"{name} at batch {at}: {'; '.join(notes)}")
