"""``contrastive fit`` called again: after kills and signals, on finished, foreign, torn and busy folders."""

import csv
import json
import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from contrastive import SimCLR
from contrastive.augmentations import simclr_views
from contrastive.cli import main
from contrastive.optim import adamw_cosine
from contrastive.runs.folder import RunFolder
from contrastive.runs.lock import LOCK
from contrastive.runs.signals import REQUEUE, Preempted
from contrastive.runs.training import fit
from tests import tiny
from tests.drills.process import Ended, run, started
from tests.shell import draw_images

# 25 steps an epoch, of which every tenth is logged.
OPTIONS = "--batch-size 2 --width 4 --max-epochs 2"
INTERRUPTED = 130

# A fit that kills itself where a function was to write a file, or to put one that is written in its place.
KILLED_IN = """
import os, signal, sys
from contrastive.cli import main
from contrastive.runs import disk
def kill(file, *rest):
    file.touch()
    os.kill(os.getpid(), signal.SIGKILL)
*owner, name = sys.argv[1].split(".")
setattr(disk.Path if owner else disk, name, kill)
main(sys.argv[2:])
"""

pytestmark = [
    pytest.mark.filterwarnings("default::contrastive.runs.continuity.ContinuityWarning"),
    pytest.mark.filterwarnings("default::contrastive.optim.ScheduleWarning"),
    pytest.mark.filterwarnings("default:.*is taken instead"),
]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is fitted."""
    images = draw_images(tmp_path_factory.mktemp("images"), train=5)
    return f"fit simclr_resnet18_cifar10 --data-dir {images} {OPTIONS}"


@pytest.fixture(scope="module")
def whole(words: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(f"{words} --run-dir {folder}".split()) == 0
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "copied"))


def signalled(signals: str, step: int, words: str, folder: Path) -> Ended:
    """A fit in a process of its own, which gets these signals in this step."""
    command = ["python", "-m", "tests.shell", signals, str(step), *words.split(), "--run-dir", folder]
    with started(command, folder.parent / "output") as process:
        return process.ended(120)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def scores(folder: Path) -> list[tuple[Any, ...]]:
    """What ``evaluation.json`` says of the encoder, and of what there is without it, but for the clock."""
    said = json.loads((folder / "evaluation.json").read_text())
    return [
        (one["encoder"], data["num_train"], data["num_test"], result["protocol"], result["mean"])
        for one in (said, *said["baselines"])
        for data in one["data_sets"]
        for result in data["results"]
    ]


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def logged(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without what a clock said."""
    with (folder / "metrics.csv").open(newline="") as lines:
        return [
            {name: value for name, value in row.items() if not name.endswith("_per_s")} for row in csv.DictReader(lines)
        ]


def flip(file: Path) -> None:
    """Alter one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
def test_a_run_that_was_stopped_and_killed_comes_to_what_it_would_have_and_logs_every_row_once(
    words: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    # In a step that is logged; in the first one after an epoch; in any; after a row that no checkpoint knows of.
    for signals, step, code in (("SIGTERM", 20, 75), ("SIGKILL", 26, -9), ("SIGUSR1", 33, 75), ("SIGKILL", 41, -9)):
        end = signalled(signals, step, words, folder)
        assert end.code == code, end.stderr
        if code == REQUEUE:
            (line,) = [line for line in end.stdout.splitlines() if line.startswith("To go on: ")]
            assert line.endswith(shlex.join([*words.split(), "--run-dir", str(folder)]))
    assert main(f"{words} --run-dir {folder}".split()) == 0
    assert f"Goes on in {folder} from last.ckpt: step 33, epoch 2\n" in capsys.readouterr().out

    expected, found = weights(whole), weights(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert logged(folder) == logged(whole)
    assert {row["step"] for row in logged(whole)} == {"9", "19", "24", "29", "39", "49"}
    said = record(folder)
    attempts = [(one["status"], one["checkpoint"], one["step"]) for one in said["attempts"]]
    assert attempts == [
        ("preempted", None, 0),
        ("killed", "last.ckpt", 20),
        ("preempted", "last.ckpt", 25),
        ("killed", "last.ckpt", 33),
        ("finished", "last.ckpt", 33),
    ]
    assert said["status"] == "finished"
    assert said["started"] == said["attempts"][0]["started"]


@pytest.mark.slow
def test_a_second_interrupt_waits_for_nothing(words: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    end = signalled("SIGINT+SIGINT", 30, words, folder)
    assert end.code == INTERRUPTED
    assert end.stderr.endswith("error: interrupted\n")
    assert f"--run-dir {folder}" in end.stdout.splitlines()[-1]
    said = record(folder)
    assert said["status"] == said["attempts"][0]["status"] == "interrupted"
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 25


@pytest.mark.slow
def test_two_processes_never_train_in_one_folder_but_others_may_read_it(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    long = words.replace("--max-epochs 2", "--max-epochs 100000").split()
    with started(["python", "-m", "contrastive", *long, "--run-dir", folder], tmp_path / "output") as process:
        process.line("epoch 2/", 120)
        capsys.readouterr()
        assert main([*long, "--run-dir", str(folder)]) == 1
        assert f"error: {folder} is in use: process {process.pid} trains in it." in capsys.readouterr().err
        assert len(record(folder)["attempts"]) == 1
        assert main(["export", str(folder)]) == 0
        process.signal(signal.SIGTERM)
        assert process.ended().code == REQUEUE


def test_a_finished_run_that_is_called_again_says_so_and_stays_as_it_is(
    words: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, rows = record(copied), (copied / "metrics.csv").read_bytes()
    assert main(f"{words} --run-dir {copied}".split()) == 1
    assert "error: Nothing is left to train: 2 epochs are done, and max_epochs is 2." in capsys.readouterr().err
    assert {**record(copied), "attempts": before["attempts"]} == before
    assert (copied / "metrics.csv").read_bytes() == rows


def test_a_run_killed_after_its_last_checkpoint_ends_when_it_is_called_again(words: str, copied: Path) -> None:
    killed = record(copied)
    killed |= {"status": "running", "finished": None}
    killed["attempts"][-1] |= {"status": "running", "ended": None}
    (copied / "run.json").write_text(json.dumps(killed))
    rows = (copied / "metrics.csv").read_bytes()
    assert main(f"{words} --run-dir {copied}".split()) == 0
    assert [attempt["status"] for attempt in record(copied)["attempts"]] == ["killed", "finished"]
    assert record(copied)["status"] == "finished"
    assert (copied / "metrics.csv").read_bytes() == rows


def test_arguments_that_changed_are_said_and_hold_from_then_on(
    words: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = logged(copied)
    assert main(f"{words} --run-dir {copied} --max-epochs 3".split()) == 0
    assert "argument max_epochs was 2, and is 3" in capsys.readouterr().err
    said = record(copied)
    assert said["arguments"]["max_epochs"] == 3
    assert said["attempts"][-1]["changed_arguments"] == {"max_epochs": [2, 3]}
    assert logged(copied)[: len(rows)] == rows
    assert torch.load(copied / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 75


def test_a_run_of_another_recipe_is_refused(words: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copied / "run.json").read_text()
    other = words.replace("simclr_", "moco_")
    assert main(f"{other} --run-dir {copied}".split()) == 1
    assert f"error: {copied} holds a run of recipe simclr_resnet18_cifar10, not of moco" in capsys.readouterr().err
    assert (copied / "run.json").read_text() == before


@pytest.mark.parametrize("name", ["thesis.tex", "film.12.part", "run.json.old.part"])
def test_a_folder_of_other_files_is_refused(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).touch()
    assert main(f"{words} --run-dir {tmp_path}".split()) == 1
    assert f"error: {tmp_path} is not empty, and a run keeps its folder to itself." in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.slow
def test_a_run_that_is_killed_before_its_record_is_there_can_be_called_again(words: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for function in ("Path.write_bytes", "put"):  # of the first file in a folder, and of run.json
        command = ["python", "-c", KILLED_IN, function, *words.split(), "--run-dir", folder]
        end = run(command, tmp_path / "output", seconds=120)
        assert end.code == -signal.SIGKILL, end.stderr
        assert {file.name for file in folder.iterdir()} - {LOCK}
    assert main(f"{words} --run-dir {folder}".split()) == 0
    assert not [*folder.glob("*.part")]
    assert [attempt["status"] for attempt in record(folder)["attempts"]] == ["finished"]


def test_a_torn_checkpoint_is_skipped_and_said_and_the_rows_of_the_older_one_are_kept(
    words: str, whole: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copied / "checkpoints" / "last.ckpt"
    flip(file)
    assert main(["export", str(copied)]) == 0
    assert "previous.ckpt is taken instead" in capsys.readouterr().err
    assert main(f"{words} --run-dir {copied}".split()) == 0
    printed = capsys.readouterr().out
    assert f"Skipped: {file} is torn or was altered" in printed
    assert f"Goes on in {copied} from previous.ckpt: step 25, epoch 1\n" in printed
    assert logged(copied) == logged(whole)
    assert all(torch.equal(weights(copied)[name], value) for name, value in weights(whole).items())


def test_where_no_checkpoint_is_whole_nothing_is_trained(
    words: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (copied / "checkpoints").glob("*.ckpt"):
        flip(file)
    before = (copied / "run.json").read_text()
    assert main(f"{words} --run-dir {copied}".split()) == 1
    error = capsys.readouterr().err
    assert f"error: None of the checkpoints in {copied / 'checkpoints'} can be used." in error
    assert "Put back a copy of one, or delete them all to begin anew." in error
    assert main(["export", str(copied)]) == 1
    assert (copied / "run.json").read_text() == before


def test_a_run_without_a_checkpoint_begins_anew_and_says_so(
    words: str, whole: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "checkpoints")
    assert main(f"{words} --run-dir {copied}".split()) == 0
    assert f"There is no checkpoint in {copied} yet: the run begins anew\n" in capsys.readouterr().out
    assert logged(copied) == logged(whole)


def test_a_folder_that_cannot_be_written_to_is_an_error_before_training(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(f"{words} --run-dir {tmp_path / 'file' / 'run'}".split()) == 1
    output = capsys.readouterr()
    assert f"error: Nothing can be written to {tmp_path / 'file' / 'run'}: " in output.err
    assert "epoch 1/" not in output.out


def test_a_failing_run_records_its_cause(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"{words.replace('simclr_', 'moco_')} --queue-size 4 --run-dir {tmp_path / 'run'}"
    assert main(f"{words} --batch-norm-groups 8 --batch-size 12".split()) == 1
    assert "error: BatchNorm in 8 groups needs a batch that 8 divides, got 12." in capsys.readouterr().err
    said = record(tmp_path / "run")
    assert said["status"] == said["attempts"][0]["status"] == "failed"
    assert said["error"] == said["attempts"][0]["error"]
    assert said["error"].startswith("ValueError: BatchNorm in 8 groups")


def test_a_budget_of_steps_that_are_not_finite_is_a_count(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"{words} --skip-non-finite -1".split()) == 2
    assert capsys.readouterr().err == "error: --skip-non-finite takes 0 or more, got -1.\n"


def test_a_preempted_fit_is_a_code_and_no_exit_of_whoever_calls_main(
    words: str, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> None:
        raise Preempted(copied / "checkpoints" / "last.ckpt", REQUEUE)

    monkeypatch.setattr("contrastive.commands.fit.train", stopped)
    assert main(f"{words} --run-dir={copied} --seed 1".split()) == 75
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"contrastive {words} --run-dir={copied} --seed 1")


def test_an_interrupt_is_listened_to_again_after_a_fit_that_one_ended() -> None:
    class Interrupted(SimCLR):
        def on_train_start(self) -> None:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    method = Interrupted(tiny.ConvEncoder(), simclr_views(8), adamw_cosine(0.01, warmup_epochs=0))
    with pytest.raises(KeyboardInterrupt):
        fit(tiny.trainer(max_epochs=1), method, tiny.data())
    assert signal.getsignal(signal.SIGINT) is before


MOMENTS = {
    "images are read": (signal.SIGTERM, "contrastive.recipes.recipe.FoldersInMemory.__init__"),
    "the folder is taken": (signal.SIGUSR1, "contrastive.commands.fit.only_process_in"),
    "checkpoints are read": (signal.SIGTERM, "contrastive.runs.load.newest"),
    "the run is said to have begun": (signal.SIGUSR1, "contrastive.commands.fit.train"),
    "the fit begins": (signal.SIGTERM, "contrastive.module.ContrastiveModule.on_fit_start"),
}


@pytest.fixture
def harmless() -> Iterator[None]:
    """Signals do nothing to this process where nobody listens."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("harmless")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_before_the_first_step_ends_with_75_too(
    moment: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, place = MOMENTS[moment]
    monkeypatch.setattr(place, lambda *_, **__: os.kill(os.getpid(), sent))
    before = signal.getsignal(sent)
    assert main(f"{words} --run-dir {tmp_path / 'run'}".split()) == REQUEUE
    assert signal.getsignal(sent) == before
    monkeypatch.undo()
    assert main(f"{words} --run-dir {tmp_path / 'run'}".split()) == 0


@pytest.mark.usefixtures("harmless")
def test_a_signal_once_all_is_trained_does_not_ask_to_be_called_again(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("contrastive.commands.fit.save_curves", send)
    assert main(f"{words} --run-dir {tmp_path / 'run'}".split()) == 0


@pytest.mark.slow
def test_of_several_ranks_the_first_scores_all_images_alone_once_they_are_trained(tmp_path: Path) -> None:
    small = "--max-epochs 1 --num-train 100 --num-test 51 --batch-size 16 --width 4"
    folder, alone = tmp_path / "run", tmp_path / "alone"
    fit_on_two = f"fit demo {small} --devices 2 --run-dir {folder}"
    end = run(["python", "-m", "contrastive", *fit_on_two.split()], tmp_path / "output", seconds=120)
    assert end.code == 0, end.stderr
    assert main(f"evaluate {folder} --baselines --no-cache --output {alone}".split()) == 0
    assert scores(folder) == scores(alone)
    assert len(scores(folder)) == 4 * 3  # encoders by protocols


def test_a_rank_that_does_not_know_the_new_folder_takes_no_other_run_for_it(
    words: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, Path("runs", "simclr_resnet18_cifar10"))
    monkeypatch.setenv("LOCAL_RANK", "1")  # as Lightning starts it
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    begun: list[tuple[Path, Path | None]] = []

    def begin(trainer: object, recipe: object, data: object, folder: RunFolder, checkpoint: Path | None) -> None:
        begun.append((folder.path, checkpoint))

    monkeypatch.setattr("contrastive.commands.fit.train", begin)
    assert main([*words.split(), "--devices", "2"]) == 0
    ((folder, checkpoint),) = begun
    assert checkpoint is None
    assert not folder.exists()  # and whatever an error says of it is about no other run
    assert [path.name for path in Path("runs").iterdir()] == ["simclr_resnet18_cifar10"]
