"""Signals that ask a run to stop, in every phase, to one rank or to all: it stops soon, with all it had trained."""

import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from contrastive.runs import newest
from contrastive.runs.signals import REQUEUE, Preempted
from tests.drills import process
from tests.drills.drill import Drill, promise
from tests.drills.process import Ended
from tests.drills.runs import SECONDS, References, finished, running
from tests.drills.trace import difference, read
from tests.drills.trainee import Options, train

STOP_SECONDS = 15
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PHASES = {
    "a training batch": Options(folder=Path(), tell="on_before_backward:4"),
    "an accumulation": Options(folder=Path(), tell="on_train_batch_start:2", accumulate=4),
    "a validation batch": Options(folder=Path(), tell="on_validation_batch_start:2"),
    "a probe's bank": Options(folder=Path(), tell="bank:2"),
    "saving": Options(folder=Path(), tell="fsync:5"),
    "the sanity check": Options(folder=Path(), tell="on_validation_batch_start:1", sanity=2),
}
EVERYONE = -1


def stopped(options: Options, number: int, to: int, *, launched: bool = False) -> Ended:
    """A training that was sent a signal in its phase, to a rank or to ``EVERYONE``, and has ended."""
    with running(options, launched=launched) as trainee:
        trainee.line(f"at {options.tell},", SECONDS)
        if to == EVERYONE:
            trainee.signal_group(number)
        else:
            trainee.signal(number, int(trainee.line(f"rank {to} is", SECONDS)))
        return trainee.ended(SECONDS)


def faults(options: Options, end: Ended, references: References) -> list[str]:
    """What is wrong with how it stopped, and with what becomes of it when it goes on."""
    notes = [f"took {end.seconds:.0f} s"] if end.seconds > STOP_SECONDS else []
    notes += [f"ended with {end.codes}: {end.stderr[-300:]}"] if set(end.codes) != {REQUEUE} else []
    found = newest(options.checkpoints)
    if found.path is None or found.skipped:
        return [*notes, f"left no whole checkpoint: {found}"]
    traces = finished(replace(options, tell=""))
    notes += [difference(mine, other) for mine, other in zip(traces, references(options), strict=True)]
    for lines in traces:
        batches = [line["at"] for line in lines if "index" in line]
        again = sorted({at for at in batches if batches.count(at) > 1})
        notes += [f"trained twice on {again}"] if again else []
    return [note for note in notes if note]


def trials() -> list[object]:
    """Every signal to every rank in every phase; two of them are part of every test."""
    quick = {(signal.SIGTERM, 1, 0, "a training batch"), (signal.SIGINT, 2, 1, "a validation batch")}
    every = [
        (number, ranks, to, phase)
        for number in SIGNALS
        for ranks, to in ((1, 0), (2, 0), (2, 1), (2, EVERYONE))
        for phase in PHASES
    ]
    return [
        pytest.param(
            *trial,
            marks=[] if trial in quick else pytest.mark.exhaustive,
            id=f"{trial[0].name} to {'all' if trial[2] == EVERYONE else trial[2]} of {trial[1]} in {trial[3]}",
        )
        for trial in every
    ]


@promise(
    "SIGTERM, SIGUSR1 and SIGINT, to any rank or to all, stop a run within 15 seconds in whatever phase it is, with "
    "exit code 75 and a whole checkpoint; called again, it goes on without having lost a step, to the same weights."
)
@pytest.mark.parametrize(("number", "ranks", "to", "phase"), trials())
def test_a_signal(
    drill: Drill, tmp_path: Path, references: References, number: signal.Signals, ranks: int, to: int, phase: str
) -> None:
    options = replace(
        PHASES[phase], folder=tmp_path, method="moco", ranks=ranks, alone=ranks > 1, batch_size=8 // ranks, minutes=1e6
    )
    notes = faults(options, stopped(options, number, to), references)
    told = f"{number.name} to {'all' if to == EVERYONE else to} of {ranks} in {phase}"
    drill.trial(lost=bool(notes), note=f"{told}: {'; '.join(notes)}")


@promise("The same of ranks that Lightning has started from a command, which itself ends with 75.")
@pytest.mark.exhaustive
@pytest.mark.parametrize("phase", ["a training batch", "a probe's bank"])
@pytest.mark.parametrize("to", [0, 1, EVERYONE])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_to_ranks_of_a_command(
    drill: Drill, tmp_path: Path, references: References, number: signal.Signals, to: int, phase: str
) -> None:
    options = replace(PHASES[phase], folder=tmp_path, method="moco", ranks=2, alone=True, batch_size=4, minutes=1e6)
    options = replace(options, linger=0.0 if to else 6.0)  # Lightning looks every 5 seconds whether a rank has failed
    notes = faults(options, stopped(options, number, to, launched=True), references)
    told = f"{number.name} to {'all' if to == EVERYONE else to} in {phase}"
    drill.trial(lost=bool(notes), note=f"{told}: {'; '.join(notes)}")


@promise("The same where worker processes read the images and the signal goes to them too.")
@pytest.mark.exhaustive
@pytest.mark.parametrize("phase", ["an accumulation", "a validation batch", "the sanity check"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_to_workers_too(
    drill: Drill, tmp_path: Path, references: References, image_files: Path, number: signal.Signals, phase: str
) -> None:
    options = replace(PHASES[phase], folder=tmp_path, files=image_files, workers=2, minutes=1e6)
    options = replace(options, batch_size=2, accumulate=8)  # the step needs more batches than lie ready
    notes = faults(options, stopped(options, number, EVERYONE), references)
    drill.trial(lost=bool(notes), note=f"{number.name} in {phase}: {'; '.join(notes)}")


@promise("A second SIGINT stops a run at once, without waiting for anything.")
@pytest.mark.exhaustive
@pytest.mark.parametrize("phase", ["a training batch", "a validation batch"])
def test_a_second_interrupt(drill: Drill, tmp_path: Path, references: References, phase: str) -> None:
    options = replace(PHASES[phase], folder=tmp_path, pause=30.0)
    with running(options) as trainee:
        trainee.line(f"at {options.tell},", SECONDS)
        trainee.signal(signal.SIGINT)
        time.sleep(0.5)
        waits = trainee.codes == [None]
        trainee.signal(signal.SIGINT)
        end = trainee.ended(SECONDS)
    notes = [] if waits else ["the first one did not wait"]
    notes += [f"took {end.seconds:.0f} s"] if end.seconds > 5 else []
    notes += [f"ended with {end.code}"] if end.code in (0, REQUEUE) else []
    notes += [difference(finished(replace(options, tell=""))[0], references(options)[0])]
    notes = [note for note in notes if note]
    drill.trial(lost=bool(notes), note=f"in {phase}: {'; '.join(notes)}")


@promise(
    "Two trainers one after the other in one process both train as if alone, also where a signal stopped the first; "
    "after each of them, signals mean what they meant before."
)
@pytest.mark.parametrize("stop", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_two_trainers_in_one_process(drill: Drill, tmp_path: Path, references: References, stop: bool) -> None:
    options = Options(folder=tmp_path / "first"), Options(folder=tmp_path / "second", method="moco")
    told = replace(options[0], kill="on_train_batch_start:4" if stop else "", kill_by=signal.SIGTERM.value)
    with process.forked(train_both, told, options[1], folder=tmp_path) as both:
        end = both.ended(2 * SECONDS)
    notes = [f"ended with {end.code}: {end.stderr[-500:]}"] if end.code else []
    notes += [] if end.stdout.count("as before") == 2 else [f"handlers changed: {end.stdout}"]
    if stop:
        notes += [] if "stopped by SIGTERM" in end.stdout else [f"was not stopped: {end.stdout}"]
        finished(options[0])
    notes += [difference(read(one.folder), references(one)[0]) for one in options]
    notes = [note for note in notes if note]
    drill.trial(lost=bool(notes), note="; ".join(notes))


def train_both(first: Options, second: Options) -> None:
    """In one process; the first may be stopped by a signal."""
    before = [signal.getsignal(number) for number in SIGNALS]
    for options in (first, second):
        try:
            train(options)
        except Preempted:
            print("stopped by SIGTERM")
        print("as before" if [signal.getsignal(number) for number in SIGNALS] == before else "other than before")
