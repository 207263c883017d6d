"""A run's folder and its record."""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

from contrastive.runs import environment
from contrastive.runs.folder import RunFolder, create


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_two_runs_of_one_second_have_folders_of_their_own() -> None:
    folders = [create("demo", {}) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    assert all(folder.path.parent == Path("runs") and folder.path.name.startswith("demo-20") for folder in folders)


def test_the_record_says_what_ran_where() -> None:
    before = datetime.now().astimezone().replace(microsecond=0)
    folder = create("demo", {"seed": 3, "data_dir": "/images"}, at=Path("mine"))
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
    text = create("demo", {}, at=Path("mine")).record_file.read_text()
    host = subprocess.run(["uname", "-n"], capture_output=True, text=True, check=True).stdout.strip()
    assert "not-for-the-record" not in text
    assert f'"{host}"' not in text


def test_updating_the_record_keeps_what_it_said() -> None:
    folder = create("demo", {"seed": 3}, at=Path("mine"))
    folder.update(status="finished")
    assert folder.record()["status"] == "finished"
    assert folder.record()["arguments"] == {"seed": 3}
    assert [file.name for file in folder.path.iterdir()] == ["run.json"]


def test_a_folder_in_use_is_refused() -> None:
    create("demo", {}, at=Path("mine"))
    with pytest.raises(FileExistsError) as error:
        create("demo", {}, at=Path("mine"))
    assert str(error.value) == (
        "mine is not empty, and a run keeps its folder to itself. Name a new folder with --run-dir."
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
