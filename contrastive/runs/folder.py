"""A run's folder: ``run.json``, ``metrics.csv``, checkpoints and pictures in one place."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from contrastive.runs.environment import commit, hardware, versions
from contrastive.runs.signature import JSON


@dataclass(frozen=True)
class RunFolder:
    """Where things lie in a run's folder; nothing is written by looking.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def record_file(self) -> Path:
        """``run.json``: recipe, arguments, commit, versions, hardware, when, and how it ended."""
        return self.path / "run.json"

    @property
    def metrics_file(self) -> Path:
        """``metrics.csv``: what was logged, as Lightning's CSVLogger writes it."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, of which ``last.ckpt`` is the newest."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.checkpoints / "last.ckpt"

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

    def update(self, **changes: Any) -> None:
        """Add to ``run.json``."""
        record = self.record() if self.record_file.exists() else {}
        _write(self.record_file, record | changes)

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


def create(recipe: str, arguments: Mapping[str, JSON], *, at: Path | None = None) -> RunFolder:
    """Make a new run's folder and write what is known at its start.

    Args:
        recipe: The recipe's name.
        arguments: All its arguments, defaults included.
        at: The folder; by default ``runs/RECIPE-YYYYmmdd-HHMMSS``.

    Raises:
        FileExistsError: ``at`` is there already and is not empty.
    """
    folder = RunFolder(_new(Path("runs"), f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}") if at is None else at)
    if folder.path.exists() and any(folder.path.iterdir()):
        raise FileExistsError(
            f"{folder.path} is not empty, and a run keeps its folder to itself. Name a new folder with --run-dir."
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.update(
        recipe=recipe,
        arguments=dict(arguments),
        commit=commit(),
        versions=versions(),
        hardware=hardware(),
        started=now(),
        finished=None,
        status="running",
    )
    return folder


def _write(file: Path, content: Any) -> None:
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """A reader sees the old content or the new one, never half of it."""
    unfinished = file.with_name(f"{file.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)


def check_writable(folder: Path, option: str) -> None:
    """Make a folder, before hours are spent on what it is to hold.

    Args:
        folder: Where something is to be written.
        option: What names another one on the command line.

    Raises:
        OSError: It cannot be made, or not be written to.
    """
    trial = folder / f"trial-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        raise OSError(
            f"Nothing can be written to {folder}: {error}. Make it writable, or name another with {option}."
        ) from error


def now() -> str:
    """The time of day with its offset from UTC, to the second (ISO 8601)."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _new(parent: Path, name: str) -> Path:
    """A path in ``parent`` that is not there yet: two runs may start in the same second."""
    paths = (parent / (name if n == 1 else f"{name}-{n}") for n in count(1))
    return next(path for path in paths if not path.exists())
