"""A run's folder: ``run.json``, ``metrics.csv``, checkpoints and pictures in one place."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Literal

from contrastive.runs.disk import TRIAL, check_writable, halves_of, write_text
from contrastive.runs.environment import commit, hardware, versions
from contrastive.runs.lock import LOCK
from contrastive.runs.signature import JSON

Status = Literal["running", "finished", "interrupted", "preempted", "failed", "killed"]


@dataclass(frozen=True)
class RunFolder:
    """Where things lie in a run's folder; nothing is written by looking.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def record_file(self) -> Path:
        """``run.json``: recipe, arguments, commit, versions, hardware, when, and how it ended; and each attempt."""
        return self.path / "run.json"

    @property
    def metrics_file(self) -> Path:
        """``metrics.csv``: what was logged, a row each time."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, of which ``last.ckpt`` is the newest."""
        return self.path / "checkpoints"

    @property
    def pairs_picture(self) -> Path:
        """Images beside their augmented views."""
        return self.path / "pairs.png"

    @property
    def curves_picture(self) -> Path:
        """Loss, probe accuracies and learning rate over the epochs."""
        return self.path / "curves.png"

    @property
    def evaluation_file(self) -> Path:
        """Accuracies of the frozen features, with their protocol."""
        return self.path / "evaluation.json"

    @property
    def finetune_file(self) -> Path:
        """Accuracies of the fine-tuned network and of one trained from scratch, a list with all that was set."""
        return self.path / "finetune.json"

    def finetuned_weights(self, number: int) -> Path:
        """The fine-tuned network of the entry ``number`` of that list, from 1."""
        return self.path / f"finetuned-{number}.safetensors"

    @property
    def halves(self) -> list[Path]:
        """What killed processes have left of files that nothing but a fit writes here."""
        files = (self.record_file, self.metrics_file, self.path / TRIAL)
        return [half for file in files for half in halves_of(file)]

    def sweep(self) -> None:
        """Delete these; for the process that holds the folder."""
        for half in self.halves:
            half.unlink(missing_ok=True)  # a trial's own process may be quicker

    def record(self) -> dict[str, Any]:
        """What ``run.json`` says.

        Raises:
            FileNotFoundError: There is none: the folder is no run's.
            ValueError: The file is no record of a run.
        """
        if not self.record_file.exists():
            raise FileNotFoundError(
                f"{self.path} holds no run.json, so it is no run's folder. Give the folder that `contrastive fit` "
                "named at its end, or a checkpoint."
            )
        try:
            record = json.loads(self.record_file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            reason = f"{self.record_file} cannot be read as JSON ({error}). Give a checkpoint instead."
            raise ValueError(reason) from error
        if not isinstance(record, dict) or not {"recipe", "arguments"} <= record.keys():
            raise ValueError(f"{self.record_file} names no recipe and arguments. Give a checkpoint instead.")
        return record

    def begin(
        self, recipe: str, arguments: Mapping[str, JSON], *, checkpoint: str | None = None, step: int = 0
    ) -> None:
        """Write down that an attempt to train begins: the first of the run, or one more, whose arguments hold now.

        Args:
            recipe: The recipe's name.
            arguments: All its arguments, defaults included.
            checkpoint: Where it goes on from; None: it begins anew.
            step: The optimizer step of the checkpoint.
        """
        here = {"commit": commit(), "versions": versions(), "hardware": hardware()}
        before = self.record() if self.record_file.exists() else {}
        earlier = [{**one, "status": _ended(one["status"])} for one in before.get("attempts", [])]
        first = {"recipe": recipe, "arguments": arguments, **here, "started": now()} | before
        arguments = json.loads(json.dumps(dict(arguments)))  # as they are read again: tuples are lists there
        changed = _changes(before.get("arguments", arguments), arguments)
        attempt: dict[str, Any] = {"started": now(), "ended": None, "status": "running"}
        attempt |= {"checkpoint": checkpoint, "step": step}
        attempt |= {name: value for name, value in here.items() if value != first.get(name)}
        attempt |= {"changed_arguments": changed} if changed else {}
        first.pop("error", None)
        state = {"arguments": arguments, "finished": None, "status": "running", "attempts": [*earlier, attempt]}
        _write(self.record_file, first | state)

    def end(self, status: Status, *, step: int, error: str | None = None) -> None:
        """Write down how the attempt ended.

        Args:
            status: How.
            step: The optimizer step it reached.
            error: What went wrong.
        """
        record = self.record()
        *earlier, attempt = record["attempts"]
        cause = {} if error is None else {"error": error}
        attempt |= {"ended": now(), "status": status, "reached_step": step, **cause}
        before = [one for one in earlier if not _is_vain(one)]
        if _is_vain(attempt) and before and before[-1]["status"] == "finished":  # the run stays what it was
            record["arguments"] |= {name: old for name, (old, _) in attempt.get("changed_arguments", {}).items()}
            record |= {"finished": before[-1]["ended"], "status": "finished"}
        else:
            record |= {"finished": attempt["ended"], "status": status, **cause}
        _write(self.record_file, record)

    def has_finished(self) -> bool:
        """Whether an attempt before the one that runs now did."""
        return any(attempt["status"] == "finished" for attempt in self.record()["attempts"][:-1])

    def finetunings(self) -> list[dict[str, Any]]:
        """What ``finetune.json`` says; nothing where there is none yet.

        Raises:
            ValueError: The file is no such list.
        """
        if not self.finetune_file.exists():
            return []
        try:
            results = json.loads(self.finetune_file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.finetune_file} cannot be read as JSON ({error}). Move it away.") from error
        if not isinstance(results, list):
            raise ValueError(f"{self.finetune_file} holds no list of results. Move it away.")
        return results

    def add_finetuning(self, **result: Any) -> None:
        """Add to ``finetune.json``, whose other results stay."""
        _write(self.finetune_file, [*self.finetunings(), result])


def new_folder(recipe: str) -> Path:
    """Make the folder where a run goes unless its user says: ``runs/RECIPE-YYYYmmdd-HHMMSS``.

    Raises:
        OSError: Nothing can be written there.
    """
    runs, name = Path("runs"), f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    check_writable(runs, "--run-dir")
    paths = (runs / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in paths if _made(path))  # two may start in the same second


def check_free(path: Path, recipe: str) -> None:
    """Refuse a folder that is neither new, nor empty, nor of an earlier attempt at the same run.

    Raises:
        FileExistsError: It holds something else.
        ValueError: Its ``run.json`` cannot be read.
    """
    folder = RunFolder(path)
    if folder.record_file.exists():
        other = folder.record()["recipe"]
        if other != recipe:
            raise FileExistsError(
                f"{path} holds a run of recipe {other}, not of {recipe}, and a run keeps its folder to itself. Name a "
                "new folder with --run-dir."
            )
    elif path.exists() and {*path.iterdir()} - {path / LOCK, *folder.halves}:
        raise FileExistsError(
            f"{path} is not empty, and a run keeps its folder to itself. Name a new folder with --run-dir."
        )


def now() -> str:
    """The time of day with its offset from UTC, to the second (ISO 8601)."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _ended(status: Status) -> Status:
    """Of an attempt that another one follows: the folder is held by one process at a time, so the other one is gone."""
    return "killed" if status == "running" else status


def _made(path: Path) -> bool:
    """Whether it was this process that made the folder."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _is_vain(attempt: Mapping[str, Any]) -> bool:
    """Whether an attempt failed before its first step."""
    return bool(attempt["status"] == "failed" and attempt["reached_step"] == attempt["step"])


def _changes(old: Mapping[str, JSON], new: Mapping[str, JSON]) -> dict[str, tuple[JSON, JSON]]:
    names = [*new, *(name for name in old if name not in new)]
    pairs = {name: (old.get(name), new.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _write(file: Path, content: Any) -> None:
    write_text(file, json.dumps(content, indent=2) + "\n")
