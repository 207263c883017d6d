"""Linear classifiers at their optimum as protocols, against the same done with scikit-learn."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from torch import Tensor

from contrastive.evaluation import Features, NotConvergedWarning, stratified_split
from contrastive.evaluation.protocols import AugmentedBatch, Evaluation, EvaluationProtocol
from contrastive.evaluation.protocols.linear import LDA, LINEAR, RIDGE, SIMCLR_TRANSFER
from contrastive.evaluation.protocols.protocol import Split

NUM_CLASSES = 7
GRID = (1e-3, 1e-2, 1e-1, 10.0)
GRID_OF_SUM = (1.0, 1e2, 1e3, 1e5)
QUICK = {  # with fewer strengths, none so weak that it takes long
    "linear": replace(LINEAR, l2=GRID),
    "simclr-transfer": replace(SIMCLR_TRANSFER, l2=GRID_OF_SUM),
    "ridge": replace(RIDGE, l2=GRID),
    "lda": LDA,
}


def images(count: int, seed: int) -> Features:
    """Overlapping classes of unequal frequency in features of an odd scale and place; every tenth image unlabelled."""
    centres = torch.randn(NUM_CLASSES, 12, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = (NUM_CLASSES * torch.rand(count, generator=generator) ** 1.5).long()
    rows = 3 + 5 * (centres[labels] + 1.5 * torch.randn(count, 12, generator=generator))
    labels[::10] = -1
    return Features(rows, labels, torch.arange(count))


@dataclass(frozen=True)
class Stored:
    """A task that is only its features."""

    train: Features
    val: Features
    num_classes: int = NUM_CLASSES

    @property
    def inputs(self) -> Mapping[str, slice]:
        return {"features": slice(None)}

    def features(self, split: Split, *, blocks: bool = False) -> Features:
        return self.train if split == "train" else self.val

    def augmented(
        self, epoch: int, *, batch_size: int, crop_min: float, seed: int, blocks: bool = False
    ) -> Iterator[AugmentedBatch]:
        raise AssertionError("Nothing here is augmented.")

    def num_batches(self, batch_size: int) -> int:
        raise AssertionError("Nothing here is augmented.")


TASK = Stored(images(330, seed=1), images(220, seed=2))


def arrays(features: Features) -> tuple[Any, Any]:
    rows, labels = features.labelled()
    return rows.double().numpy(), labels.numpy()


def assert_scores(found: Evaluation, logits: Any, labels: Any) -> None:
    ranked = (-logits).argsort(1)
    assert found.scores["top1"] == pytest.approx((ranked[:, 0] == labels).mean())
    assert found.scores["top5"] == pytest.approx((ranked[:, :5] == labels[:, None]).any(1).mean())
    assert found.scores["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, ranked[:, 0]))
    assert found.confusion is not None
    assert found.confusion.tolist() == confusion_matrix(labels, ranked[:, 0]).tolist()
    assert (found.num_train, found.num_test) == (297, 198)


def logistic(rows: Any, labels: Any, strength: float, penalty: str) -> LogisticRegression:
    """scikit-learn minimises C sum CE + |W|^2 / 2."""
    c = 1 / (2 * strength) if penalty == "sum" else 1 / (strength * len(labels))
    return LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(rows, labels)


@pytest.mark.parametrize("name", ["linear", "simclr-transfer"])
def test_logistic_protocols_hold_out_choose_refit_and_score_as_scikit_learn_would(name: str) -> None:
    protocol: Any = QUICK[name]
    (x, y), (test, test_labels) = arrays(TASK.train), arrays(TASK.val)
    mean, scale = x.mean(0), 1.0
    if name == "linear":
        scale = math.sqrt(np.mean((x - mean) ** 2))
    x, test = (x - mean) / scale, (test - mean) / scale
    held_out = stratified_split(torch.tensor(y), 0.1, seed=5).numpy()

    def fit(which: Any, strength: float) -> LogisticRegression:
        return logistic(x[which], y[which], strength, protocol.penalty)

    top1 = {one: fit(~held_out, one).score(x[held_out], y[held_out]) for one in protocol.l2}
    best = max(protocol.l2, key=lambda one: (top1[one], one))
    found = replace(protocol, tolerance=1e-7).evaluate(TASK, seed=5)
    assert_scores(found, fit(np.ones_like(held_out), best).decision_function(test), test_labels)
    assert found.chosen == {"l2": best}
    assert found.details["held_out_top1"] == [[one, pytest.approx(top1[one])] for one in protocol.l2]
    assert found.details["feature_scale"] == pytest.approx(scale)
    assert found.details["converged"] is True
    assert found.details["relative_excess_loss"] <= 1e-7


def test_ridge_holds_out_chooses_refits_and_scores_as_scikit_learn_would() -> None:
    (x, y), (test, test_labels) = arrays(TASK.train), arrays(TASK.val)
    mean = x.mean(0)
    scale = math.sqrt(np.mean((x - mean) ** 2))
    x, test = (x - mean) / scale, (test - mean) / scale
    held_out = stratified_split(torch.tensor(y), 0.1, seed=0).numpy()

    def fit(which: Any, l2: float) -> Ridge:
        return Ridge(alpha=l2 * which.sum()).fit(x[which], np.eye(NUM_CLASSES)[y[which]])

    top1 = {l2: (fit(~held_out, l2).predict(x[held_out]).argmax(1) == y[held_out]).mean() for l2 in GRID}
    best = max(GRID, key=lambda l2: (top1[l2], l2))
    found = replace(RIDGE, l2=GRID).evaluate(TASK)
    assert_scores(found, fit(np.ones_like(held_out), best).predict(test), test_labels)
    assert found.chosen == {"l2": best}
    assert found.details["held_out_top1"] == [[l2, pytest.approx(top1[l2])] for l2 in GRID]


def test_lda_scores_as_scikit_learns() -> None:
    (x, y), (test, test_labels) = arrays(TASK.train), arrays(TASK.val)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, y)
    found = LDA.evaluate(TASK)
    assert_scores(found, theirs.predict_log_proba(test), test_labels)
    assert (found.chosen, found.at_edge) == ({}, ())


def test_simclr_transfer_has_forty_five_strengths_even_in_their_logarithm() -> None:
    np.testing.assert_allclose(SIMCLR_TRANSFER.l2, np.logspace(-6, 5, 45), rtol=1e-12)
    assert (SIMCLR_TRANSFER.penalty, SIMCLR_TRANSFER.scaled) == ("sum", False)


def test_all_of_simclr_transfers_strengths_are_scored_and_the_weakest_may_be_told_to_have_stopped_short() -> None:
    with pytest.warns(NotConvergedWarning, match=r"stopped short of the optimum at l2 in \[1e-06, "):
        found = replace(SIMCLR_TRANSFER, max_iterations=40).evaluate(TASK)
    assert [one for one, _ in found.details["held_out_top1"]] == list(SIMCLR_TRANSFER.l2)
    slow = found.details["not_converged_l2"]
    assert slow == list(SIMCLR_TRANSFER.l2[: len(slow)])
    assert len(slow) < 35


def test_a_strength_at_the_grids_edge_is_told() -> None:
    assert replace(LINEAR, l2=(1e2, 1e3)).evaluate(TASK).at_edge == ("l2",)
    assert replace(RIDGE, l2=(1e-9, 1e-8)).evaluate(TASK).at_edge == ("l2",)
    assert replace(LINEAR, l2=(1e-2,)).evaluate(TASK).at_edge == ()


def test_what_stops_short_of_the_optimum_says_so() -> None:
    hasty = replace(LINEAR, l2=(1e-6, 1.0), max_iterations=5)
    with pytest.warns(NotConvergedWarning, match=r"stopped short of the optimum at l2 in \[1e-06\]"):
        found = hasty.evaluate(TASK)
    assert found.details["converged"] is False
    assert found.details["not_converged_l2"] == [1e-6]


@pytest.mark.parametrize("protocol", QUICK.values(), ids=QUICK)
def test_the_choice_does_not_look_at_the_test_images(protocol: EvaluationProtocol) -> None:
    assert TASK.val.labels is not None
    misleading = Features(-TASK.val.features, TASK.val.labels.roll(3), TASK.val.index)
    honest, misled = (protocol.evaluate(Stored(TASK.train, val)) for val in (TASK.val, misleading))
    assert (honest.chosen, honest.details) == (misled.chosen, misled.details)
    assert honest.num_test == misled.num_test
    assert honest.scores != misled.scores


@pytest.mark.parametrize("protocol", QUICK.values(), ids=QUICK)
def test_permuted_labels_give_chance(protocol: EvaluationProtocol) -> None:
    assert TASK.train.labels is not None
    order = torch.randperm(len(TASK.train), generator=torch.Generator().manual_seed(0))
    permuted = Features(TASK.train.features, TASK.train.labels[order], TASK.train.index)
    labels = TASK.val.labels
    assert labels is not None
    chance = float(torch.bincount(labels[labels >= 0]).max() / (labels >= 0).sum())
    assert protocol.evaluate(Stored(permuted, TASK.val)).scores["top1"] <= chance + 0.05
    assert protocol.evaluate(TASK).scores["top1"] > chance + 0.3


@pytest.mark.parametrize("protocol", QUICK.values(), ids=QUICK)
def test_a_test_label_that_the_task_does_not_count_is_refused(protocol: EvaluationProtocol) -> None:
    beyond = Features(TASK.val.features, TASK.val.index % 8, TASK.val.index)
    with pytest.raises(ValueError, match="The test images have label 7, but num_classes is 7"):
        protocol.evaluate(Stored(TASK.train, beyond))


def test_a_task_without_labels_is_refused() -> None:
    nothing = Features(TASK.train.features, None, TASK.train.index)
    for protocol in QUICK.values():
        with pytest.raises(ValueError, match="None of the 330 images has a label"):
            protocol.evaluate(Stored(nothing, TASK.val))


def test_a_class_without_training_images_is_never_predicted() -> None:
    labels = TASK.train.labels
    assert labels is not None
    without: Tensor = torch.where(labels == 4, -1, labels)
    for protocol in QUICK.values():
        found = protocol.evaluate(Stored(Features(TASK.train.features, without, TASK.train.index), TASK.val))
        assert found.confusion is not None
        assert int(found.confusion[:, 4].sum()) == 0
        assert int(found.confusion[4].sum()) > 0


@pytest.mark.parametrize("name", sorted(QUICK))
@pytest.mark.parametrize("split", ["train", "val"])
def test_features_that_are_not_finite_are_counted_and_refused(name: str, split: Split) -> None:
    def overflown(images: Features) -> Features:
        return replace(images, features=images.features.index_fill(0, torch.tensor([3]), torch.inf))

    task = replace(TASK, **{split: overflown(TASK.features(split))})
    with pytest.raises(ValueError, match=r"^1 (of \d+ )?feature vectors hold infinities or NaN"):
        QUICK[name].evaluate(task)
