"""Several ranks: they agree, see each image once, go on in another number, and none outlives another for long."""

import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import isclose
from pathlib import Path

import pytest

from tests.drills.drill import Drill, promise
from tests.drills.runs import SECONDS, References, ended, finished, running
from tests.drills.trace import Line, difference, last, read
from tests.drills.trainee import Options

PEER_SECONDS = 30
RELATIVE = 1e-5  # of losses in float32, whose sums are taken in another order


def batches(traces: Sequence[Sequence[Line]]) -> list[dict[str, Line]]:
    """By rank, the lines of the batches that counted."""
    return [{at: line for at, line in last(trace).items() if "index" in line} for trace in traces]


def seen(traces: Sequence[Sequence[Line]]) -> dict[int, Counter[int]]:
    """By epoch, how often each image was trained on, over all ranks."""
    counts: dict[int, Counter[int]] = {}
    for lines in batches(traces):
        for line in lines.values():
            counts.setdefault(line["epoch"], Counter()).update(line["index"])
    return counts


def not_once(traces: Sequence[Sequence[Line]], options: Options) -> str:
    """What is wrong with the images of the epochs, in words; empty where each image is seen exactly once in each."""
    once = dict.fromkeys(range(options.images), 1)
    for epoch, counts in seen(traces).items():
        if counts != once:
            return f"epoch {epoch} saw {counts}"
    return "" if sorted(seen(traces)) == list(range(options.epochs)) else f"epochs {sorted(seen(traces))}"


def disagreement(traces: Sequence[Sequence[Line]]) -> str:
    """Where two ranks' digests differ, in words; BatchNorm's running statistics are each rank's own."""
    first, second = (last(trace) for trace in traces)
    for at, line in first.items():
        parts = line.keys() - {"index", "views", "loss"}
        differ = [part for part in sorted(parts) if line[part] != second[at][part]]
        if differ:
            return f"{', '.join(differ)} differ at {at}"
    return ""


@promise(
    "After every epoch all ranks hold the same encoder, momentum encoder, queue and probe, bit for bit, also after "
    "they were killed and went on; and each image was seen once an epoch, and all is what it would have been."
)
@pytest.mark.parametrize(
    ("method", "moment"),
    [
        ("moco", "on_train_batch_start:2"),
        *(
            pytest.param(method, moment, marks=pytest.mark.exhaustive)
            for method in ("simclr", "moco", "dino", "nnclr", "swav", "deepcluster")
            for moment in ("on_train_batch_end:3", "on_validation_batch_end:1", "on_train_batch_start:5")
        ),
    ],
)
def test_ranks_agree(drill: Drill, tmp_path: Path, references: References, method: str, moment: str) -> None:
    options = Options(folder=tmp_path, method=method, alone=True, ranks=2)
    killed = ended(replace(options, kill=moment, kill_group=True))
    assert killed.codes == [-9, -9], killed
    found = finished(options)
    reference = references(options)
    notes = [disagreement(reference), disagreement(found), not_once(found, options)]
    notes += [difference(mine, other) for mine, other in zip(found, reference, strict=True)]
    notes = [f"{method} killed at {moment}: {note}" for note in notes if note]
    drill.trial(lost=bool(notes), note="\n".join(notes))


@promise(
    "A run that is stopped goes on with another number of ranks and the same global batch: each image once an epoch, "
    "the same global batches in the same order, the same views, and losses equal up to rounding."
)
@pytest.mark.parametrize(
    ("before", "after", "moment"),
    [
        (2, 1, "on_train_batch_start:3"),
        *(
            pytest.param(before, after, moment, marks=pytest.mark.exhaustive)
            for before, after in ((1, 2), (2, 1))
            for moment in ("on_train_batch_start:2", "on_validation_batch_end:1", "on_train_batch_end:6")
        ),
    ],
)
@pytest.mark.parametrize(
    "method", ["moco", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("simclr", "dino", "byol"))]
)
def test_another_number_of_ranks(
    drill: Drill, tmp_path: Path, references: References, method: str, before: int, after: int, moment: str
) -> None:
    one = Options(folder=tmp_path, method=method, alone=True, batch_size=8)
    by_ranks = {1: one, 2: replace(one, ranks=2, batch_size=4)}
    killed = ended(replace(by_ranks[before], kill=moment, kill_group=True))
    assert set(killed.codes) == {-9}, killed
    first = [read(tmp_path, rank) for rank in range(before)]
    for file in tmp_path.glob("trace-*.jsonl"):
        file.unlink()
    second = finished(by_ranks[after])
    note = not_once(references(one), one) or unlike([first, second], references(one)[0])
    drill.trial(lost=bool(note), note=f"{method}, {before} to {after}, killed at {moment}: {note}")


def unlike(lives: Sequence[Sequence[Sequence[Line]]], reference: Sequence[Line]) -> str:
    """What is not as on one rank, in words; of the lives of a run, each with its own number of ranks."""
    expected, done = batches([reference])[0], set()
    for life in lives:
        for at in batches(life)[-1]:  # a batch that the last rank has written down, the others may not have
            ranks = [lines[at] for lines in batches(life) if at in lines]
            if len(ranks) < len(life):
                continue
            done.add(at)
            for name in ("index", "views"):
                if [item for line in ranks for item in line[name]] != expected[at][name]:
                    return f"{name} differ at {at}"
            if {line["lr"] for line in ranks} != {expected[at]["lr"]}:
                return f"learning rates differ at {at}"
            loss = sum(float.fromhex(line["loss"]) for line in ranks) / len(ranks)
            if not isclose(loss, float.fromhex(expected[at]["loss"]), rel_tol=RELATIVE):
                return f"loss at {at} is {loss}, and {float.fromhex(expected[at]['loss'])} on one rank throughout"
    missing = expected.keys() - done
    return f"{len(missing)} batches are missing: {sorted(missing)}" if missing else ""


@promise(
    "When a rank is killed, the others end with an error within 30 seconds, and the run goes on as if nothing was."
)
@pytest.mark.parametrize(
    ("moment", "rank", "launched"),
    [
        ("on_train_batch_start:2", 1, False),
        *(
            pytest.param(moment, rank, launched, marks=pytest.mark.exhaustive)
            for launched in (False, True)
            for rank in (0, 1)
            for moment in ("on_train_batch_end:2", "on_after_backward:2", "on_validation_batch_end:1", "bank:2")
        ),
    ],
)
def test_a_rank_is_killed(
    drill: Drill, tmp_path: Path, references: References, moment: str, rank: int, launched: bool
) -> None:
    options = Options(folder=tmp_path, method="moco", alone=True, ranks=2)
    with running(replace(options, tell=moment, tell_rank=rank), launched=launched) as trainee:
        pid = int(trainee.line(f"at {moment},", SECONDS))
        trainee.signal(signal.SIGKILL, pid)
        end = trainee.ended(SECONDS)
    notes = [f"took {end.seconds:.0f} s"] if end.seconds > PEER_SECONDS else []
    notes += [f"ended with {end.codes}"] if 0 in end.codes else []
    notes += [difference(mine, other) for mine, other in zip(finished(options), references(options), strict=True)]
    notes = [f"rank {rank} killed at {moment}: {note}" for note in notes if note]
    drill.trial(lost=bool(notes), note="\n".join(notes))
