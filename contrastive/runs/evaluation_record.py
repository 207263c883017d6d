"""What an evaluation leaves behind: every score with all that a reader needs to trust, compare and repeat it.

``evaluation.json`` holds it in plain values; ``json.loads`` reads it. What is no finite number is null there.
"""

import json
import math
import re
import shlex
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from contrastive.evaluation.protocols.protocol import Evaluation, EvaluationProtocol
from contrastive.runs.disk import write_text
from contrastive.runs.environment import commit, hardware, versions
from contrastive.runs.folder import RunFolder, now

FORMAT = "contrastive evaluation 1"
MOST_CLASSES = 100  # of a confusion matrix that is written: one of 1,000 classes takes megabytes
ROW_OF_NUMBERS = re.compile(r"\[\s+((?:(?:-?\d[-+.\deE]*|null),?\s+)+)\]")


@dataclass(frozen=True)
class Provenance:
    """Where, when and with what a number was made.

    Attributes:
        when: ISO 8601 with the offset from UTC.
        command: The command line.
        commit: See ``environment.commit``.
        versions: See ``environment.versions``.
        hardware: See ``environment.hardware``.
    """

    when: str
    command: str
    commit: str | None
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]

    @classmethod
    def here(cls, words: Sequence[str]) -> "Provenance":
        """Of what is computed now, by the command line of these words."""
        return cls(now(), shlex.join(words), commit(), versions(), hardware())


@dataclass(frozen=True)
class ClassCounts:
    """Test images of each class, and how many of them were classified rightly."""

    num_test: tuple[int, ...]
    num_correct: tuple[int, ...]

    @classmethod
    def of(cls, confusion: Int64[Tensor, "C C"]) -> "ClassCounts":
        """From the images of class i that were taken for class j."""
        return cls(tuple(confusion.sum(1).tolist()), tuple(confusion.diagonal().tolist()))

    @property
    def accuracy(self) -> list[float]:
        """Of each class; not a number where the test set has no image of it."""
        return [hits / n if n else math.nan for hits, n in zip(self.num_correct, self.num_test, strict=True)]


@dataclass(frozen=True)
class Trial:
    """What a protocol found with one seed.

    Attributes:
        seed: Of whatever the protocol draws.
        seconds: What it took, once there were features.
        evaluation: What it found. Read from a file, it has no confusion matrix of more than 100 classes.
        per_class: None where nothing was classified.
    """

    seed: int
    seconds: float
    evaluation: Evaluation
    per_class: ClassCounts | None

    @classmethod
    def of(cls, evaluation: Evaluation, *, seed: int, seconds: float) -> "Trial":
        """What was found just now."""
        counts = None if evaluation.confusion is None else ClassCounts.of(evaluation.confusion)
        return cls(seed, seconds, evaluation, counts)

    def to_json(self) -> dict[str, Any]:
        """In plain values."""
        found, counts = self.evaluation, self.per_class
        confusion = found.confusion
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "num_train": found.num_train,
            "num_test": found.num_test,
            "scores": plain(found.scores),
            "spread": plain(found.spread),
            "chosen": plain(found.chosen),
            "at_edge": plain(found.at_edge),
            "details": plain(found.details),
            "per_class": None if counts is None else plain({**asdict(counts), "accuracy": counts.accuracy}),
            "confusion": None if confusion is None or len(confusion) > MOST_CLASSES else confusion.tolist(),
        }

    @classmethod
    def from_json(cls, old: Mapping[str, Any]) -> "Trial":
        """What ``to_json`` wrote."""
        counts, confusion = old["per_class"], old["confusion"]
        evaluation = Evaluation(
            scores=_numbers(old["scores"]),
            num_train=old["num_train"],
            num_test=old["num_test"],
            chosen=old["chosen"],
            at_edge=tuple(old["at_edge"]),
            details=old["details"],
            confusion=None if confusion is None else torch.tensor(confusion, dtype=torch.int64),
            spread=_numbers(old["spread"]),
        )
        per_class = counts and ClassCounts(tuple(counts["num_test"]), tuple(counts["num_correct"]))
        return cls(old["seed"], old["seconds"], evaluation, per_class)


@dataclass(frozen=True)
class ProtocolResult:
    """What a protocol found of one encoder on one data set.

    Attributes:
        protocol: Its name, as in ``PROTOCOLS``.
        description: What it does, in words for people.
        hyper_parameters: All its fields, ``source`` among them.
        trials: One a seed, at least one.
        provenance: Where these numbers come from.
    """

    protocol: str
    description: str
    hyper_parameters: Mapping[str, Any]
    trials: tuple[Trial, ...]
    provenance: Provenance

    @classmethod
    def of(
        cls, name: str, protocol: EvaluationProtocol, trials: Sequence[Trial], provenance: Provenance
    ) -> "ProtocolResult":
        """Of a protocol as it is."""
        return cls(name, protocol.description, asdict(protocol), tuple(trials), provenance)

    @property
    def scores(self) -> list[str]:
        """Names of the scores, the headline first."""
        return list(self.trials[0].evaluation.scores)

    def mean(self, score: str) -> float:
        """Over the seeds."""
        return statistics.fmean(trial.evaluation.scores[score] for trial in self.trials)

    def std(self, score: str) -> float | None:
        """Over the seeds, with n - 1 in the denominator; None with one seed."""
        if len(self.trials) == 1:
            return None
        mean = self.mean(score)
        squares = math.fsum((trial.evaluation.scores[score] - mean) ** 2 for trial in self.trials)
        return math.sqrt(squares / (len(self.trials) - 1))

    def spread(self, score: str) -> float | None:
        """Over the draws within a seed, the seeds' variances averaged; None where the protocol draws only once."""
        spreads = [trial.evaluation.spread.get(score) for trial in self.trials]
        known = [one for one in spreads if one is not None]
        return math.sqrt(statistics.fmean(one**2 for one in known)) if known else None

    def to_json(self) -> dict[str, Any]:
        """In plain values."""
        return {
            "protocol": self.protocol,
            "description": self.description,
            "hyper_parameters": plain(self.hyper_parameters),
            "mean": {score: plain(self.mean(score)) for score in self.scores},
            "std": {score: plain(self.std(score)) for score in self.scores},
            "trials": [trial.to_json() for trial in self.trials],
            "provenance": plain(self.provenance),
        }

    @classmethod
    def from_json(cls, old: Mapping[str, Any]) -> "ProtocolResult":
        """What ``to_json`` wrote."""
        return cls(
            old["protocol"],
            old["description"],
            old["hyper_parameters"],
            tuple(map(Trial.from_json, old["trials"])),
            Provenance(**old["provenance"]),
        )


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A labelled data set, and what protocols found on it.

    Attributes:
        name: As people call it; says which metric is customary.
        root: Where its images lie; empty where they are drawn.
        num_train: Training images, labelled or not.
        num_test: Test images.
        classes: Their names, in the order of the labels.
        duplicates_removed: Training images that were left out because a test image is the same; None where nobody
            looked for them.
        manifest_sha256: Of the list of its files.
        transform: What an image goes through before the encoder, in words.
        extraction_seconds: What its features took; None where they were there already.
        results: One a protocol.
    """

    name: str
    root: str
    num_train: int
    num_test: int
    classes: tuple[str, ...]
    duplicates_removed: int | None
    manifest_sha256: str
    transform: str
    extraction_seconds: float | None = None
    results: tuple[ProtocolResult, ...] = ()

    @property
    def identity(self) -> tuple[str | int | None, ...]:
        """Scores are compared only where this is the same."""
        return self.manifest_sha256, self.transform, self.num_train, self.num_test, self.duplicates_removed

    def to_json(self) -> dict[str, Any]:
        """In plain values."""
        facts: dict[str, Any] = plain(replace(self, results=()))
        return facts | {"results": [result.to_json() for result in self.results]}

    @classmethod
    def from_json(cls, old: Mapping[str, Any]) -> "DataSet":
        """What ``to_json`` wrote."""
        results = tuple(map(ProtocolResult.from_json, old["results"]))
        return cls(**{**old, "classes": tuple(old["classes"]), "results": results})


@dataclass(frozen=True, kw_only=True)
class EvaluatedEncoder:
    """The network whose features were scored.

    Attributes:
        name: As people call it.
        checkpoint: The file its weights are from; None for those that a library ships or draws.
        epochs: How long it was trained; None where that is not known.
        num_parameters: Of the encoder alone, without heads.
        num_features: Width of its output.
        weights_sha256: Of its parameters and buffers.
    """

    name: str
    checkpoint: str | None
    epochs: int | None
    num_parameters: int
    num_features: int
    weights_sha256: str


@dataclass(frozen=True)
class EvaluationRecord:
    """An encoder, and what it reached on each data set.

    Attributes:
        encoder: What was scored.
        data_sets: Each with its results.
        baselines: What there is without the encoder's training, by the same protocols on the same images.

    Raises:
        ValueError: Two data sets have one name.
    """

    encoder: EvaluatedEncoder
    data_sets: tuple[DataSet, ...]
    baselines: tuple["EvaluationRecord", ...] = ()

    def __post_init__(self) -> None:
        names = [data.name for data in self.data_sets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"Two data sets are called {name!r}. Give each a name of its own.")

    def to_json(self) -> dict[str, Any]:
        """In plain values."""
        return {
            "format": FORMAT,
            "encoder": plain(self.encoder),
            "data_sets": [data.to_json() for data in self.data_sets],
            "baselines": [baseline.to_json() for baseline in self.baselines],
        }

    @classmethod
    def from_json(cls, old: Mapping[str, Any]) -> "EvaluationRecord":
        """What ``to_json`` wrote."""
        data_sets, baselines = map(DataSet.from_json, old["data_sets"]), map(cls.from_json, old["baselines"])
        return cls(EvaluatedEncoder(**old["encoder"]), tuple(data_sets), tuple(baselines))


@dataclass(frozen=True)
class Stored:
    """What ``store`` did.

    Attributes:
        record: What the folder holds now: the new results, and earlier ones of the same weights.
        aside: Where an earlier record went that is not part of it; None where there was none.
    """

    record: EvaluationRecord
    aside: Path | None


def store(record: EvaluationRecord, folder: Path) -> Stored:
    """Write ``evaluation.json`` into a folder, which is made where there is none.

    Results that lie there already stay, where they are of the same weights and images; of a protocol that was run
    again the new ones take the old ones' place. A record of other weights or images, or a file that is none, is kept
    beside it as ``evaluation-YYYYmmdd-HHMMSS.json``, by the time it was written, and so is its ``evaluation.md``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, aside = RunFolder(folder).evaluation_file, None
    if file.exists():
        earlier = _read(file)
        if earlier is not None and belong_together(earlier, record):
            record = merged(earlier, record)
        else:
            aside = _put_aside(file)
    write_text(file, in_lines(record.to_json()))
    return Stored(record, aside)


def belong_together(old: EvaluationRecord, new: EvaluationRecord) -> bool:
    """Whether both are of the same weights, and mean the same images wherever they name a data set alike."""
    known = {data.name: data.identity for data in old.data_sets}
    return old.encoder.weights_sha256 == new.encoder.weights_sha256 and all(
        known.get(data.name, data.identity) == data.identity for data in new.data_sets
    )


def merged(old: EvaluationRecord, new: EvaluationRecord) -> EvaluationRecord:
    """The new record with what only the old one has: other data sets, other protocols on the same one, baselines."""
    data_sets = {data.identity: data for data in old.data_sets}
    for data in new.data_sets:
        earlier = data_sets[data.identity].results if data.identity in data_sets else ()
        results = {result.protocol: result for result in (*earlier, *data.results)}
        data_sets[data.identity] = replace(data, results=tuple(results.values()))
    baselines = {baseline.encoder.name: baseline for baseline in old.baselines}
    for baseline in new.baselines:
        before = baselines.get(baseline.encoder.name, baseline)
        baselines[baseline.encoder.name] = merged(before, baseline) if belong_together(before, baseline) else baseline
    return EvaluationRecord(new.encoder, tuple(data_sets.values()), tuple(baselines.values()))


def plain(value: Any) -> Any:
    """Values as JSON holds them: keys are strings, paths too, arrays are lists, and no finite number is None.

    Raises:
        TypeError: JSON has nothing for it.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(one) for one in value]
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return plain(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    raise TypeError(
        f"The record cannot hold {value!r}, a {type(value).__name__}. Protocols give details and hyper-parameters as "
        "numbers, strings, lists and mappings."
    )


def in_lines(content: Mapping[str, Any]) -> str:
    """JSON with each list of numbers on one line: a row of a confusion matrix is one."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return ROW_OF_NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)


def _numbers(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in scores.items()}


def _read(file: Path) -> EvaluationRecord | None:
    """An earlier record; None where the file is none, or one of an earlier format."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return EvaluationRecord.from_json(content) if content["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError, AttributeError):  # nobody loses it: it is put aside
        return None


def _put_aside(file: Path) -> Path:
    """Copied, not moved: whoever looks meanwhile finds the old record in its place until the new one takes it."""
    when = f"{datetime.fromtimestamp(file.stat().st_mtime):%Y%m%d-%H%M%S}"
    stems = (f"{file.stem}-{when}" if n == 1 else f"{file.stem}-{when}-{n}" for n in count(1))
    aside = next(path for path in (file.with_name(f"{stem}.json") for stem in stems) if not path.exists())
    shutil.copy2(file, aside)
    page = file.with_suffix(".md")
    if page.exists():
        shutil.copy2(page, aside.with_suffix(".md"))
    return aside
