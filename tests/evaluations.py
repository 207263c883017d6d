"""Made-up evaluations, whose numbers a test can count itself."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from contrastive.evaluation.protocols.protocol import Evaluation, EvaluationProtocol, Progress, Task
from contrastive.runs.evaluation_record import (
    DataSet,
    EvaluatedEncoder,
    EvaluationRecord,
    ProtocolResult,
    Provenance,
    Trial,
)

PROVENANCE = Provenance(
    when="2026-01-02T03:04:05+00:00",
    command="contrastive evaluate 'runs/my run'",
    commit="0123456789ab",
    versions={"python": "3.11.7", "torch": "2.10"},
    hardware={"cpu": "a processor", "gpus": [], "cuda": None},
)


@dataclass(frozen=True, kw_only=True)
class Guess(EvaluationProtocol):
    """Every image is taken for the class that the
    coin says.

    What follows the first blank line is for readers of the code.
    """

    source: str = "Nobody 2026, table 1, https://example.org/a_b/coin_toss.py."
    coins: tuple[float, ...] = tuple(float(number) for number in range(9))
    depth: dict[str, Any] | None = None

    def evaluate(self, task: Task, *, seed: int = 0, progress: Progress | None = None) -> Evaluation:
        return evaluation()


def confusion_of(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64)


def evaluation(top1: float = 0.75, *, confusion: Tensor | None = None, **others: Any) -> Evaluation:
    """Scores as they are said; the confusion matrix need not agree with them."""
    scores = others.pop("scores", {"top1": top1, "mean_per_class": top1 / 2})
    return Evaluation(scores=scores, num_train=1200, num_test=40, confusion=confusion, **others)


def result(protocol: str = "coin", *evaluations: Evaluation, **hyper_parameters: Any) -> ProtocolResult:
    found = evaluations or (evaluation(),)
    trials = [Trial.of(one, seed=seed, seconds=1.5) for seed, one in enumerate(found)]
    return ProtocolResult.of(protocol, Guess(**hyper_parameters), trials, PROVENANCE)


def data_set(name: str = "shapes", *results: ProtocolResult, images: str = "", **others: Any) -> DataSet:
    facts: dict[str, Any] = {
        "root": f"/images/{name}",
        "num_train": 1200,
        "num_test": 40,
        "classes": ("circle", "square"),
        "duplicates_removed": 0,
        "manifest_sha256": f"of {images or name}",
        "transform": "resize to 32",
    }
    return DataSet(name=name, results=results or (result(),), **{**facts, **others})


def record(*data_sets: DataSet, weights: str = "abc", name: str = "tiny", **others: Any) -> EvaluationRecord:
    encoder = EvaluatedEncoder(
        name=name, checkpoint="last.ckpt", epochs=3, num_parameters=12345, num_features=16, weights_sha256=weights
    )
    return EvaluationRecord(encoder, data_sets or (data_set(),), **others)
