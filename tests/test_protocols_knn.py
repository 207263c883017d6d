"""The protocols of nearest neighbours, against votes counted one by one."""

import math
from dataclasses import replace

import pytest
import torch

from contrastive.evaluation import Features
from contrastive.evaluation.protocols import Evaluation
from contrastive.evaluation.protocols.knn import KNN_DINO, KNN_LIGHTLY, KNNProtocol
from contrastive.evaluation.protocols.protocol import Split
from contrastive.report.evaluation import caveats
from contrastive.runs.evaluation_record import ProtocolResult, Provenance, Trial
from tests.protocol_task import ClusterTask

BOTH = pytest.mark.parametrize("protocol", [KNN_DINO, KNN_LIGHTLY], ids=["dino", "lightly"])


def votes_by_loops(bank: Features, test: Features, k: int, temperature: float, num_classes: int) -> list[list[float]]:
    """Wu et al. 2018, section 3.4, in float64."""
    assert bank.labels is not None
    rows = bank.features.double() / bank.features.double().norm(dim=1, keepdim=True)
    found = []
    for query in test.features.double():
        similarities = (rows @ (query / query.norm())).tolist()
        order = sorted(range(len(bank)), key=lambda place: -similarities[place])[:k]
        votes = [0.0] * num_classes
        for place in order:
            votes[int(bank.labels[place])] += math.exp(similarities[place] / temperature)
        found.append(votes)
    return found


def expected_scores(task: ClusterTask, k: int, temperature: float) -> dict[str, float]:
    train, test = task.features("train"), task.features("val")
    assert test.labels is not None
    votes = votes_by_loops(train, test, min(k, len(train)), temperature, task.num_classes)
    guesses = [row.index(max(row)) for row in votes]
    right = [guess == label for guess, label in zip(guesses, test.labels.tolist(), strict=True)]
    by_class = [
        [hit for hit, label in zip(right, test.labels.tolist(), strict=True) if label == number]
        for number in range(task.num_classes)
    ]
    return {
        "top1": sum(right) / len(right),
        "mean_per_class": sum(sum(hits) / len(hits) for hits in by_class) / len(by_class),
    }


@BOTH
def test_scores_are_those_of_the_votes_of_all_training_images(protocol: KNNProtocol) -> None:
    task = ClusterTask(num_train=260, num_test=50, spread=1.5)
    found = protocol.evaluate(task)
    expected = expected_scores(task, protocol.k[0], protocol.temperature)
    assert 0.3 < expected["top1"] < 1
    assert {name: found.scores[name] for name in expected} == pytest.approx(expected)
    assert next(iter(found.scores)) == "top1"
    assert (found.num_train, found.num_test) == (260, 50)
    assert found.confusion is not None
    assert float(found.confusion.diagonal().sum()) / 50 == pytest.approx(found.scores["top1"])


def test_dino_has_twenty_neighbours_as_its_headline_whichever_number_is_best() -> None:
    task = ClusterTask(num_train=260, num_test=90, spread=1.5)
    found = KNN_DINO.evaluate(task)
    by_k = {scores["k"]: scores for scores in found.details["scores_by_k"]}
    assert set(by_k) == {10, 20, 100, 200}
    for k, scores in by_k.items():
        assert scores["top1"] == pytest.approx(expected_scores(task, k, 0.07)["top1"])
    assert found.scores["top1"] == by_k[20]["top1"] != max(scores["top1"] for scores in by_k.values())
    assert not found.chosen


def test_a_bank_of_fewer_images_than_neighbours_votes_as_a_whole_and_says_so() -> None:
    task = ClusterTask(num_train=30, num_test=20, spread=1.5)
    found = KNN_DINO.evaluate(task)
    assert found.scores["top1"] == pytest.approx(expected_scores(task, 20, 0.07)["top1"])
    assert [scores["k"] for scores in found.details["scores_by_k"]] == [20, 10, 30, 30]
    assert "k_lowered_from" not in found.details  # the headline has all its neighbours
    lowered = KNN_LIGHTLY.evaluate(task)
    trial = Trial.of(lowered, seed=0, seconds=0.0)
    result = ProtocolResult.of("knn-lightly", KNN_LIGHTLY, [trial], Provenance("", "", None, {}, {}))
    assert caveats(result) == ["Lowered for want of images: k from 200 to 30."]


def test_images_without_a_label_neither_vote_nor_are_scored() -> None:
    task = ClusterTask(num_train=80, num_test=30)
    for split in ("train", "val"):
        known = task.features(split)
        assert known.labels is not None
        nowhere = replace(known.rows(torch.arange(7)), labels=torch.full((7,), -1), index=1000 + torch.arange(7))
        task.splits[split] = Features(*(torch.cat(parts) for parts in zip(fields(known), fields(nowhere), strict=True)))
    found = KNN_DINO.evaluate(task)
    assert (found.num_train, found.num_test) == (80, 30)
    assert same(found, KNN_DINO.evaluate(ClusterTask(num_train=80, num_test=30)))


def fields(features: Features) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert features.labels is not None
    return features.features, features.labels, features.index


def same(one: Evaluation, other: Evaluation) -> bool:
    return one.scores == other.scores and one.details == other.details


def test_progress_ends_where_all_queries_are_done() -> None:
    told: list[tuple[str, int, int]] = []
    KNN_DINO.evaluate(ClusterTask(num_test=30), progress=lambda *what: told.append(what))
    assert told[-1] == ("neighbours", 30, 30)
    assert all(done <= total for _, done, total in told)


@pytest.mark.parametrize("split", ["train", "val"])
def test_features_that_are_not_finite_are_an_error(split: Split) -> None:
    task = ClusterTask()
    task.splits[split].features[3] = torch.nan
    with pytest.raises(ValueError, match=r"1 of \d+ feature vectors hold infinities or NaN"):
        KNN_LIGHTLY.evaluate(task)
