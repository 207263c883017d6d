"""SIGKILL at every kind of boundary: what is trained afterwards is what would have been trained without it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.drills.drill import Drill, promise
from tests.drills.runs import References, ended, finished
from tests.drills.trace import difference
from tests.drills.trainee import Options
from tests.methods import METHODS

IN_TRAINING = [
    "on_fit_start:1",
    "on_train_start:1",
    "on_train_epoch_start:1",
    "on_train_batch_start:1",  # the first batch
    "on_train_batch_start:4",
    "on_before_backward:4",
    "on_after_backward:4",
    "on_before_optimizer_step:4",
    "on_train_batch_end:4",
    "on_train_batch_start:6",  # the epoch's last batch
    "on_train_batch_end:6",
    "on_train_epoch_end:1",
    "on_train_epoch_start:2",
    "on_train_batch_start:7",  # the next epoch's first batch
    "on_train_batch_end:12",
    "on_train_epoch_end:2",
]
IN_VALIDATION = [
    "on_validation_start:1",
    "bank:2",  # KNNProbe reads its bank
    "forward:3",
    "on_validation_epoch_start:1",
    "on_validation_batch_start:1",
    "on_validation_batch_start:2",
    "on_validation_batch_end:3",  # the last of them
    "on_validation_epoch_end:1",
    "on_validation_end:1",
    "on_validation_batch_end:5",  # in the second epoch
]
BATCHES = 6  # in an epoch, all of which are lost if checkpoints are written at its end alone; else a step at most
QUICK = {"on_train_batch_start:4", "on_train_epoch_end:1", "on_validation_batch_start:2"}


def moments(every: Sequence[str]) -> list[object]:
    """As parameters; the quick ones are part of every test."""
    return [pytest.param(moment, marks=[] if moment in QUICK else pytest.mark.exhaustive) for moment in every]


def note_of(options: Options, kills: Sequence[str], references: References) -> str:
    """What became other than in an uninterrupted training, after these kills one after the other."""
    for moment in kills:
        killed = ended(replace(options, kill=moment))
        assert killed.code == -9, f"{moment} was never reached, ended with {killed.code}:\n{killed.stderr}"
    found, reference = finished(options)[0], references(options)[0]
    again = sum("index" in line for line in found) - sum("index" in line for line in reference)
    allowed = len(kills) * (BATCHES if options.minutes else options.accumulate)
    note = difference(found, reference) or (f"{again} batches were trained again" if again > allowed else "")
    return note and f"{options.method} killed at {', '.join(kills)}: {note}"


@promise(
    "A run that is killed at any moment of training and called again goes on from its newest checkpoint, and ends with "
    "the same weights, bit for bit, having seen the same images, views and learning rates, as if nothing had happened."
)
@pytest.mark.parametrize("moment", moments(IN_TRAINING))
def test_killed_in_training(drill: Drill, tmp_path: Path, references: References, moment: str) -> None:
    note = note_of(Options(folder=tmp_path), [moment], references)
    drill.trial(lost=bool(note), note=note)


@promise(
    "A run that is killed in a validation does all of it again, to the same accuracies, and ends with the same weights."
)
@pytest.mark.parametrize("validations", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("moment", moments(IN_VALIDATION))
def test_killed_in_a_validation(
    drill: Drill, tmp_path: Path, references: References, moment: str, validations: int
) -> None:
    note = note_of(Options(folder=tmp_path, validations=validations), [moment], references)
    drill.trial(lost=bool(note), note=note)


@promise("A run that is killed while it writes a checkpoint, before any sync or rename, goes on from a whole one.")
@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("replace", 20),  # of the fourth checkpoint itself
        *(
            pytest.param(call, number, marks=pytest.mark.exhaustive)
            for call in ("replace", "fsync")
            for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 30)
        ),
    ],
)
def test_killed_while_saving(drill: Drill, tmp_path: Path, references: References, call: str, number: int) -> None:
    note = note_of(Options(folder=tmp_path), [f"{call}:{number}"], references)
    drill.trial(lost=bool(note), note=note)


@promise("A run that is killed again and again, also right after it went on, ends with the same weights.")
@pytest.mark.parametrize(
    "method", ["moco", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("simclr", "dino"))]
)
def test_killed_again_and_again(drill: Drill, tmp_path: Path, references: References, method: str) -> None:
    kills = [
        "on_train_batch_start:3",
        "on_train_batch_start:1",
        "on_train_batch_end:1",
        "on_validation_batch_end:1",
        "on_train_batch_start:5",
    ]
    note = note_of(Options(folder=tmp_path, method=method), kills, references)
    drill.trial(lost=bool(note), note=note)


@promise(
    "Every method goes on exactly where it was killed: its queue, momentum encoder, teacher, pseudo-labels and dropout "
    "are those of a run that was never killed."
)
@pytest.mark.exhaustive
@pytest.mark.parametrize("moment", ["on_train_batch_start:4", "on_validation_batch_start:2", "on_train_batch_start:9"])
@pytest.mark.parametrize("method", [*METHODS, "simclr with dropout"])
def test_killed_in_every_method(drill: Drill, tmp_path: Path, references: References, method: str, moment: str) -> None:
    name, dropout = method.split(" ")[0], " with dropout" in method
    note = note_of(Options(folder=tmp_path, method=name, dropout=dropout), [moment], references)
    drill.trial(lost=bool(note), note=note)


@promise(
    "A run of image files goes on exactly, read by 0, 1 or 2 worker processes, also where they are killed with it."
)
@pytest.mark.exhaustive
@pytest.mark.parametrize("moment", ["on_train_batch_start:4", "on_train_batch_end:6", "on_validation_batch_start:2"])
@pytest.mark.parametrize(("workers", "group"), [(0, False), (1, False), (1, True), (2, False), (2, True)])
def test_killed_with_workers(
    drill: Drill, tmp_path: Path, references: References, image_files: Path, workers: int, group: bool, moment: str
) -> None:
    options = Options(folder=tmp_path, files=image_files, workers=workers)
    note = note_of(replace(options, kill_group=group), [moment], references)
    drill.trial(lost=bool(note), note=note)


@promise("A run that is killed while it accumulates gradients begins that step anew, and ends with the same weights.")
@pytest.mark.parametrize(
    "moment",
    [
        "on_train_batch_start:2",
        *(
            pytest.param(moment, marks=pytest.mark.exhaustive)
            for moment in (
                "on_after_backward:2",
                "on_train_batch_end:3",
                "on_train_batch_end:4",
                "on_train_batch_start:5",
                "on_train_batch_end:5",  # within the epoch's last step, which has fewer batches
                "on_train_batch_end:6",
                "on_validation_batch_end:1",
                "on_train_batch_start:9",
            )
        ),
    ],
)
def test_killed_within_an_accumulation(drill: Drill, tmp_path: Path, references: References, moment: str) -> None:
    note = note_of(Options(folder=tmp_path, method="moco", accumulate=4), [moment], references)
    drill.trial(lost=bool(note), note=note)


@promise("A run of max_steps that is killed ends after as many steps, with the same weights.")
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "moment",
    [
        "on_train_batch_start:1",
        "on_train_batch_end:6",
        "on_train_batch_start:7",  # the newest checkpoint is of an epoch's end
        "on_train_batch_start:9",
        "on_train_batch_end:10",
    ],
)
def test_killed_in_a_run_of_steps(drill: Drill, tmp_path: Path, references: References, moment: str) -> None:
    note = note_of(Options(folder=tmp_path, steps=10), [moment], references)
    drill.trial(lost=bool(note), note=note)


@promise("A run that is killed long after its newest checkpoint trains again what came since, each step as it was.")
@pytest.mark.exhaustive
@pytest.mark.parametrize("moment", ["on_train_batch_start:4", "on_validation_batch_end:1", "on_train_batch_end:9"])
@pytest.mark.parametrize("method", ["moco", "dino", "deepcluster"])
def test_killed_long_after_a_checkpoint(
    drill: Drill, tmp_path: Path, references: References, method: str, moment: str
) -> None:
    note = note_of(Options(folder=tmp_path, method=method, minutes=1e6), [moment], references)
    drill.trial(lost=bool(note), note=note)


@promise("A run in mixed precision that is killed ends with the same weights.")
@pytest.mark.exhaustive
@pytest.mark.parametrize("moment", ["on_train_batch_start:4", "on_validation_batch_end:1"])
def test_killed_in_bfloat16(drill: Drill, tmp_path: Path, references: References, moment: str) -> None:
    note = note_of(Options(folder=tmp_path, method="moco", precision="bf16-mixed"), [moment], references)
    drill.trial(lost=bool(note), note=note)
