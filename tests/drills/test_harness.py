"""The drills' own instruments: a lost trial fails, none made fails, and a hung process is killed with its children."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from tests.drills import process

DRILLS = """
import pytest
from tests.drills.drill import Drill, promise

@promise("kept | always")
@pytest.mark.parametrize("number", [1, 2, 3])
def test_three_times(drill: Drill, number: int) -> None:
    drill.trial(lost=False)

@promise("broken")
def test_one_of_two_is_lost(drill: Drill) -> None:
    drill.trial(lost=False)
    drill.trial(lost=True, note="found 8, not 7")

@promise("untried")
def test_nothing_tried(drill: Drill) -> None:
    pass

@promise("broke off")
def test_an_error(drill: Drill) -> None:
    raise OSError("no such thing")

def test_without_a_promise(drill: Drill) -> None:
    drill.trial(lost=False)
"""


@pytest.mark.parametrize("processes", ["0", "2"])
def test_the_table_has_a_row_for_each_drill_and_lost_ones_fail(processes: str, tmp_path: Path) -> None:
    file, table = tmp_path / "test_some.py", tmp_path / "new" / "table.md"
    file.write_text(DRILLS)
    command = ["python", "-m", "pytest", "-p", "tests.drills.conftest", "-p", "no:cacheprovider", "-c", os.devnull]
    options = ["--rootdir", tmp_path, "--reliability", table, "-n", processes]
    ended = process.run([*command, *options, file], tmp_path / "out")
    assert ended.code == 1
    assert "1 of 2 trials lost: broken\nfound 8, not 7" in ended.stdout
    assert "No trial was made of: untried" in ended.stdout
    assert "test_without_a_promise makes no promise" in ended.stdout
    rows = [line.split("|")[:-2] for line in table.read_text().replace(r"\|", "or").splitlines() if line[:2] == "| "]
    assert [[cell.strip() for cell in row[1:]] for row in rows[2:]] == [
        ["broke off", "an error", "1", "1"],
        ["untried", "nothing tried", "0", "0"],
        ["broken", "one of two is lost", "2", "1"],
        ["kept or always", "three times", "3", "0"],
    ]
    assert "4 promises, 6 trials, 2 lost" in table.read_text()


def test_a_process_that_hangs_is_killed_with_its_children_and_fails_the_test(tmp_path: Path) -> None:
    with process.started(["bash", "-c", "echo lost >&2; sleep 100 & sleep 100"], tmp_path) as started:
        with pytest.raises(pytest.fail.Exception, match=r"did not end within 0\.3 s and was killed[^$]*lost"):
            started.ended(seconds=0.3)
        assert not started.alive()


def test_a_process_has_not_ended_while_a_child_of_it_runs(tmp_path: Path) -> None:
    assert process.run(["bash", "-c", "sleep 0.5 & exit 3"], tmp_path).code == 3
    with (
        process.started(["bash", "-c", "sleep 100 & exit 3"], tmp_path) as started,
        pytest.raises(pytest.fail.Exception),
    ):
        started.ended(seconds=0.3)


def test_an_interrupt_reaches_what_is_started_though_this_process_ignores_it(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        command = ["python", "-c", "import time; print('ready', flush=True); time.sleep(100)"]
        with process.started(command, tmp_path) as started:
            started.line("ready")
            started.signal(signal.SIGINT)
            assert started.ended(seconds=20).code in (-signal.SIGINT, 130)
    finally:
        signal.signal(signal.SIGINT, before)


def test_launchers_variables_do_not_reach_what_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "SLURM_JOB_ID", "MASTER_PORT", "WORLD_SIZE", "PL_TORCH_DISTRIBUTED_BACKEND"):
        monkeypatch.setenv(name, "1")
    ended = process.run(["env"], tmp_path)
    names = {line.partition("=")[0] for line in ended.stdout.splitlines()}
    assert not {name for name in names if name.startswith(("LOCAL_", "SLURM", "MASTER_", "WORLD_", "PL_"))}


def say_temporary_folder() -> None:
    """As a function that ``forked`` can import."""
    print(tempfile.gettempdir())


def test_what_is_forked_has_its_own_temporary_folder(tmp_path: Path) -> None:
    tempfile.gettempdir()  # the parent has settled on another
    environments = [{"TMPDIR": str(tmp_path)}]
    with process.forked(say_temporary_folder, folder=tmp_path / "output", environments=environments) as forked:
        assert forked.ended(seconds=60).stdout.strip() == str(tmp_path)
