"""The few-label protocol, against scikit-learn on the same draws, and the draws against counting."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from torch import Tensor

from contrastive.evaluation import linear_evaluation
from contrastive.evaluation.protocols.few_label import FEW_LABEL, draw_labels
from tests.protocol_task import ClusterTask

UNEVEN = torch.tensor([0] * 100 + [1] * 45 + [2] * 3 + [4] * 1)[
    torch.randperm(149, generator=torch.Generator().manual_seed(0))
]


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0.01, [1, 1, 1, 0, 1]),
        (0.1, [10, 4, 1, 0, 1]),
        (1.0, [100, 45, 3, 0, 1]),
        (1, [1, 1, 1, 0, 1]),
        (5, [5, 5, 3, 0, 1]),
    ],
)
def test_draws_take_a_share_or_a_number_of_each_class_and_at_least_one(
    amount: int | float, expected: list[int]
) -> None:
    for seed in range(4):
        places = draw_labels(UNEVEN, amount, seed=seed)
        assert torch.bincount(UNEVEN[places], minlength=5).tolist() == expected
        assert places.tolist() == sorted(set(places.tolist()))


def test_draws_differ_with_the_seed_and_fewer_images_are_among_more() -> None:
    draws = {seed: [set(draw_labels(UNEVEN, k, seed=seed).tolist()) for k in (1, 2, 5, 0.1, 0.5)] for seed in range(3)}
    for one, two, five, tenth, half in draws.values():
        assert one < two < five
        assert tenth < half
    assert len({frozenset(sets[2]) for sets in draws.values()}) == 3


def test_every_image_of_a_class_is_as_likely_to_be_drawn() -> None:
    labels = torch.arange(40) % 2
    counts = torch.zeros(40)
    for seed in range(2000):
        counts[draw_labels(labels, 3, seed=seed)] += 1
    # Binomial: 2000 draws of 3 in 20, standard deviation 16.
    assert counts.sub(300).abs().max() < 5 * 16


@pytest.mark.parametrize("amount", [0, -1, 0.0, 1.5])
def test_amounts_that_mean_nothing_are_refused(amount: int | float) -> None:
    with pytest.raises(
        ValueError, match=f"{amount} of each class's images cannot be labelled. Take an int of 1 or more"
    ):
        draw_labels(torch.zeros(5, dtype=torch.int64), amount, seed=0)


def centred_unit_rows(features: Tensor) -> np.ndarray:
    """``cyanure.preprocess(features, centering=True, normalize=True, columns=False)``, as MSN calls it."""
    rows = features.double().numpy()
    unit: np.ndarray = normalize(rows - rows.mean(1, keepdims=True))
    return unit


def test_few_shots_are_scored_as_scikit_learn_does_at_the_fixed_strength() -> None:
    task = ClusterTask(num_train=600, num_test=200, width=12, spread=1.2)
    train, test = task.features("train"), task.features("val")
    assert train.labels is not None
    assert test.labels is not None
    found = replace(FEW_LABEL, shares=(), shots=(1, 5)).evaluate(task, seed=2)
    for shots in (1, 5):
        accuracies = []
        for draw in (6, 7, 8):  # seed 2 of three draws each
            places = draw_labels(train.labels, shots, seed=draw)
            reference = LogisticRegression(C=1 / 0.0025, tol=1e-10, max_iter=10000)  # the strength over n, times n
            reference.fit(centred_unit_rows(train.features[places]), train.labels[places].numpy())
            accuracies.append(reference.score(centred_unit_rows(test.features), test.labels.numpy()))
        name = f"top1 at {shots} a class"
        assert found.details[name]["draws"] == pytest.approx(accuracies, abs=1.01 / 200)  # an image may be a near tie
        assert found.scores[name] == pytest.approx(np.mean(found.details[name]["draws"]))
        assert found.spread[name] == pytest.approx(np.std(found.details[name]["draws"], ddof=1))
        assert [fit["num_labelled"] for fit in found.details[name]["fits"]] == [6 * shots] * 3
        assert [fit["l2"] for fit in found.details[name]["fits"]] == pytest.approx([0.0025 / (6 * shots)] * 3)
        assert all(fit["converged"] for fit in found.details[name]["fits"])
    assert not found.chosen


def test_with_enough_labels_the_strength_is_chosen_as_by_linear_evaluation_of_the_labelled_images() -> None:
    task = ClusterTask(num_train=600, num_test=200, width=12, spread=1.2)
    train, test = task.features("train"), task.features("val")
    assert train.labels is not None
    found = replace(FEW_LABEL, shares=(0.1,), shots=()).evaluate(task, seed=1)
    expected = [
        linear_evaluation(train.rows(draw_labels(train.labels, 0.1, seed=draw)), test, num_classes=6, seed=draw)
        for draw in (3, 4, 5)
    ]
    assert found.details["top1 at 10 %"]["draws"] == [one.top1 for one in expected]
    assert found.chosen == {"l2 for top1 at 10 %": [one.l2 for one in expected]}
    assert found.at_edge == (("l2 for top1 at 10 %",) if any(one.l2_at_edge for one in expected) else ())


def test_scores_have_every_amount_in_order_and_draws_do_not_depend_on_the_encoder() -> None:
    task, other = ClusterTask(num_train=240), ClusterTask(num_train=240, width=20, spread=3.0)
    found = FEW_LABEL.evaluate(task)
    assert list(found.scores) == [
        "top1 at 1 %",
        "top1 at 10 %",
        "top1 at 1 a class",
        "top1 at 2 a class",
        "top1 at 5 a class",
    ]
    assert list(found.spread) == list(found.scores)
    assert (found.num_train, found.num_test) == (30, 30)  # 5 of each of 6 classes are more than a tenth
    assert found.details["top1 at 1 %"] == found.details["top1 at 1 a class"]  # one of 40 a class
    seen = [one.details["top1 at 10 %"]["fits"][0]["num_labelled"] for one in (found, FEW_LABEL.evaluate(other))]
    assert seen == [24, 24]
    assert found.scores != FEW_LABEL.evaluate(task, seed=1).scores


def test_one_draw_has_no_spread() -> None:
    found = replace(FEW_LABEL, shares=(), shots=(2,), draws=1).evaluate(ClusterTask())
    assert len(found.scores) == 1
    assert not found.spread


def test_labels_that_mean_nothing_give_chance() -> None:
    task = ClusterTask(num_train=600, num_test=600)
    train = task.features("train")
    assert train.labels is not None
    task.splits["train"] = replace(
        train, labels=train.labels[torch.randperm(600, generator=torch.Generator().manual_seed(1))]
    )
    many = replace(FEW_LABEL, shares=(0.1,), shots=(5,), draws=30)  # clusters are right or wrong as a whole
    for name, top1 in many.evaluate(task).scores.items():
        assert abs(top1 - 1 / 6) < 0.1, name
    assert FEW_LABEL.evaluate(ClusterTask(num_train=600, num_test=600)).scores["top1 at 10 %"] > 0.5


def test_test_features_that_are_not_finite_are_an_error() -> None:
    task = ClusterTask()
    task.splits["val"].features[3] = torch.nan
    with pytest.raises(ValueError, match="1 of 30 feature vectors hold infinities or NaN"):
        FEW_LABEL.evaluate(task)


@pytest.mark.parametrize("few_l2", [FEW_LABEL.few_l2, 1e-30])
def test_it_says_whether_all_classifiers_reached_their_optimum(few_l2: float) -> None:
    protocol = replace(FEW_LABEL, shares=(), shots=(5,), few_l2=few_l2)
    assert protocol.evaluate(ClusterTask()).details["converged"] == (few_l2 == FEW_LABEL.few_l2)
