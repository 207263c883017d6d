"""A run's folder and its record."""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

from contrastive.runs import environment
from contrastive.runs.folder import RunFolder, check_free, new_folder
from contrastive.runs.lock import LOCK
from contrastive.runs.signature import JSON


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(recipe: str = "demo", **arguments: JSON) -> RunFolder:
    """A run's folder, mine, in which an attempt has begun."""
    folder = RunFolder(Path("mine"))
    folder.path.mkdir(exist_ok=True)
    folder.begin(recipe, arguments)
    return folder


def test_two_runs_of_one_second_have_folders_of_their_own() -> None:
    folders = [new_folder("demo") for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.parent == Path("runs") and folder.name.startswith("demo-20") for folder in folders)


def test_the_record_says_what_ran_where() -> None:
    before = datetime.now().astimezone().replace(microsecond=0)
    folder = begun(seed=3, data_dir="/images")
    record = json.loads((Path("mine") / "run.json").read_text())
    assert record["recipe"] == "demo"
    assert record["arguments"] == {"seed": 3, "data_dir": "/images"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["python"] == sys.version.split()[0]
    assert record["hardware"]["cpu_cores"] >= 1
    assert before <= datetime.fromisoformat(record["started"]) <= datetime.now().astimezone()
    assert record["status"] == "running"
    assert folder.record() == record


def test_the_record_holds_no_environment_variables_and_no_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "not-for-the-record")
    text = begun().record_file.read_text()
    host = subprocess.run(["uname", "-n"], capture_output=True, text=True, check=True).stdout.strip()
    assert "not-for-the-record" not in text
    assert f'"{host}"' not in text


def test_an_attempt_that_ends_is_written_down_and_leaves_no_other_file() -> None:
    folder = begun(seed=3)
    folder.end("failed", step=7, error="ValueError: of 3")
    record = folder.record()
    (attempt,) = record["attempts"]
    assert record["status"] == attempt["status"] == "failed"
    assert record["error"] == attempt["error"] == "ValueError: of 3"
    assert record["finished"] == attempt["ended"]
    assert (attempt["checkpoint"], attempt["step"], attempt["reached_step"]) == (None, 0, 7)
    assert record["arguments"] == {"seed": 3}
    assert [file.name for file in folder.path.iterdir()] == ["run.json"]


def test_one_more_attempt_keeps_the_first_start_and_says_what_is_no_longer_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("contrastive.runs.folder.now", lambda: "2026-11-23T10:00:00+00:00")
    monkeypatch.setattr("contrastive.runs.folder.commit", lambda: "0123456789ab")
    folder = begun(seed=3, lr=0.1)
    folder.end("failed", step=7, error="ValueError: of 3")
    monkeypatch.setattr("contrastive.runs.folder.now", lambda: "2026-11-23T11:00:00+00:00")
    monkeypatch.setattr("contrastive.runs.folder.commit", lambda: "ba9876543210")
    folder.begin("demo", {"seed": 3, "lr": 0.2, "names": ("a", "b")}, checkpoint="last.ckpt", step=7)
    record = folder.record()
    assert (record["started"], record["finished"], record["status"]) == ("2026-11-23T10:00:00+00:00", None, "running")
    assert record["commit"] == "0123456789ab"
    assert record["arguments"] == {"seed": 3, "lr": 0.2, "names": ["a", "b"]}
    assert "error" not in record
    first, second = record["attempts"]
    assert (first["status"], first["error"]) == ("failed", "ValueError: of 3")
    assert second == {
        "started": "2026-11-23T11:00:00+00:00",
        "ended": None,
        "status": "running",
        "checkpoint": "last.ckpt",
        "step": 7,
        "commit": "ba9876543210",
        "changed_arguments": {"lr": [0.1, 0.2], "names": [None, ["a", "b"]]},
    }
    folder.begin("demo", {"seed": 3, "lr": 0.2, "names": ("a", "b")})
    assert "changed_arguments" not in folder.record()["attempts"][-1]


def test_a_finished_run_that_is_called_again_in_vain_stays_finished() -> None:
    folder = begun(seed=3, lr=0.1)
    folder.end("finished", step=7)
    before = folder.record()
    for _ in range(2):
        folder.begin("demo", {"seed": 3, "lr": 0.2}, checkpoint="last.ckpt", step=7)
        folder.end("failed", step=7, error="ContinuityError: nothing is left")
    after = folder.record()
    assert len(after["attempts"]) == 3
    assert after["attempts"][-1]["error"] == "ContinuityError: nothing is left"
    assert {**after, "attempts": before["attempts"]} == before


def test_an_attempt_that_never_said_how_it_ended_was_killed() -> None:
    begun()
    first, second = begun().record()["attempts"]
    assert (first["status"], first["ended"], second["status"]) == ("killed", None, "running")


def test_a_folder_that_is_new_or_empty_or_of_the_same_recipe_is_free() -> None:
    folder = RunFolder(Path("mine"))
    check_free(folder.path, "demo")
    folder.path.mkdir()
    (folder.path / LOCK).touch()  # of a process that was killed before it wrote anything
    check_free(folder.path, "demo")
    begun()
    check_free(folder.path, "demo")


def test_a_folder_of_another_recipe_or_of_other_files_is_refused() -> None:
    begun()
    with pytest.raises(FileExistsError) as error:
        check_free(Path("mine"), "moco")
    assert str(error.value) == (
        "mine holds a run of recipe demo, not of moco, and a run keeps its folder to itself. Name a new folder with "
        "--run-dir."
    )
    Path("others").mkdir()
    Path("others", "thesis.tex").touch()
    with pytest.raises(FileExistsError) as error:
        check_free(Path("others"), "demo")
    assert str(error.value) == (
        "others is not empty, and a run keeps its folder to itself. Name a new folder with --run-dir."
    )


def test_a_folder_that_is_no_runs_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"^\S+ holds no run.json, so it is no run's folder"):
        RunFolder(Path().absolute()).record()


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"recipe": ', "run.json cannot be read as JSON"), ("[]", "run.json names no recipe and arguments")],
)
def test_a_record_that_is_none_is_named(content: str, message: str) -> None:
    Path("run.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        RunFolder(Path()).record()


def test_the_commit_is_that_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    root = environment.PACKAGE.parent
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        pytest.skip("the tests do not run in a checkout")
    commit = environment.commit()
    assert commit is not None
    assert head.stdout.startswith(commit.removesuffix("+changes"))


def test_a_copy_inside_somebody_elses_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    installed = tmp_path / "site-packages" / "contrastive"
    installed.mkdir(parents=True)
    (installed / "module.py").touch()
    monkeypatch.setattr(environment, "PACKAGE", installed)
    assert environment.commit() is None
