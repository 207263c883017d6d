"""Linear evaluation: how much of the classes a linear classifier reads from frozen features."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastive.evaluation.closed_form import LinearClassifier, ridge
from contrastive.evaluation.features import Features, check_finite
from contrastive.evaluation.knn import top_hits
from contrastive.evaluation.logistic import TOLERANCE, LogisticSweep

L2_GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 3))  # 1e-6 to 10, two a decade
HELD_OUT = 0.1
Penalty = Literal["mean", "sum"]


@dataclass(frozen=True)
class LinearEvaluation:
    """What linear evaluation found.

    Attributes:
        top1: Fraction of the test images whose class comes first.
        top5: Fraction whose class is among the first five; None where there are 5 classes or fewer.
        l2: The strength chosen on the held-out training images.
        l2_at_edge: The chosen strength is the grid's first or last: a wider grid might do better.
        held_out_top1: Held-out accuracy of every strength of the grid.
        num_train: Labelled training images, held-out ones included.
        num_test: Labelled test images.
        excess_loss: Bound on how far the final training loss lies above its minimum (``LogisticSolutions``).
        converged: The final classifier and the held-out choice's candidates all reached their optimum.
    """

    top1: float
    top5: float | None
    l2: float
    l2_at_edge: bool
    held_out_top1: dict[float, float]
    num_train: int
    num_test: int
    excess_loss: float
    converged: bool


class NotConvergedWarning(UserWarning):
    """A classifier was scored before it had reached its optimum."""


@dataclass(frozen=True)
class Solved:
    """A classifier at one strength, with the certificate of its optimum (``LogisticSolutions``)."""

    classifier: LinearClassifier
    excess_loss: float
    relative_excess_loss: float
    converged: bool


@dataclass(frozen=True)
class Chosen:
    """A classifier fitted on all training images, at the strength that did best on the held-out tenth.

    Attributes:
        solved: The classifier, of features less ``mean`` over ``scale``, and its certificate.
        mean: Of the training features, [D].
        scale: One number, [].
        l2: The strength, as in the grid.
        l2_at_edge: It is the grid's first or last.
        held_out_top1: Held-out accuracy of every strength of the grid.
        num_train: Labelled training images, held-out ones included.
        slow: Strengths whose candidates stopped short of their optimum.
    """

    solved: Solved
    mean: Float[Tensor, " D"]
    scale: Float[Tensor, ""]
    l2: float
    l2_at_edge: bool
    held_out_top1: dict[float, float]
    num_train: int
    slow: tuple[float, ...]

    @property
    def converged(self) -> bool:
        """The classifier and all candidates reached their optimum."""
        return self.solved.converged and not self.slow

    def logits(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Of features as the encoder gives them."""
        return self.solved.classifier.logits((features - self.mean) / self.scale)


Solve = Callable[[Tensor, Tensor, Sequence[float]], list[Solved]]


def linear_evaluation(
    train: Features,
    test: Features,
    *,
    num_classes: int | None = None,
    l2: Sequence[float] = L2_GRID,
    tolerance: float = TOLERANCE,
    max_iterations: int = 1000,
    seed: int = 0,
) -> LinearEvaluation:
    """Multinomial logistic regression on frozen features, its strength chosen without a look at the test images.

    See ``choose_logistic`` for how; the test images are scored once. Images with a negative label are left out.

    Args:
        train: Labelled training features.
        test: Labelled test features.
        num_classes: C; by default the largest training label + 1.
        l2: The grid of strengths.
        tolerance: See ``LogisticSweep``.
        max_iterations: See ``LogisticSweep``; a strength it stops short gives a ``NotConvergedWarning``.
        seed: Draws the held-out images.

    Raises:
        ValueError: Labels are missing or outside of the classes, features are not finite, or no class has the two
            training images that holding one out takes.
    """
    num_classes = _num_classes(train, num_classes)
    queries, labels = labelled_test(test, num_classes)
    chosen = choose_logistic(train, num_classes, l2=l2, tolerance=tolerance, max_iterations=max_iterations, seed=seed)
    return _evaluation(chosen, queries, labels)


def ridge_evaluation(
    train: Features,
    test: Features,
    *,
    num_classes: int | None = None,
    l2: Sequence[float] = L2_GRID,
    seed: int = 0,
) -> LinearEvaluation:
    """``linear_evaluation`` with ridge regression: the same split, scaling and choice of a strength.

    The result's ``excess_loss`` is 0: the optimum is exact.

    Raises:
        ValueError: See ``linear_evaluation``.
    """
    num_classes = _num_classes(train, num_classes)
    queries, labels = labelled_test(test, num_classes)
    return _evaluation(choose_ridge(train, num_classes, l2=l2, seed=seed), queries, labels)


def choose_logistic(
    train: Features,
    num_classes: int,
    *,
    l2: Sequence[float] = L2_GRID,
    penalty: Penalty = "mean",
    scaled: bool = True,
    tolerance: float = TOLERANCE,
    max_iterations: int = 1000,
    seed: int = 0,
) -> Chosen:
    """Multinomial logistic regression at the strength that does best on held-out training images.

    Every strength of the grid is solved to its optimum on 90 % of the training images, stratified; the one that does
    best on the other 10 % (the stronger, where several do) is solved again on all of them.

    Args:
        train: Images with a negative label are left out.
        num_classes: C.
        l2: The grid of strengths.
        penalty: What a strength s stands for, on n images with losses CE. "mean": mean CE + s / 2 |W|^2, which is
            scikit-learn's C = 1 / (s n). "sum": sum CE + s |W|^2, in which the images outweigh the penalty as they
            become more; that is "mean" at 2 s / n.
        scaled: Divide the centred features by one number, the root mean square of their entries over the training
            images. So a strength means the same for every encoder, whatever the scale of its outputs, and no direction
            gains on another, as it would by standardising each. Without it features are only centred, which changes
            nothing, as the intercept is free.
        tolerance: See ``LogisticSweep``.
        max_iterations: See ``LogisticSweep``; a strength it stops short gives a ``NotConvergedWarning``.
        seed: Draws the held-out images.

    Raises:
        ValueError: See ``linear_evaluation``.
    """

    def solve(features: Tensor, labels: Tensor, strengths: Sequence[float]) -> list[Solved]:
        factor = 1 if penalty == "mean" else 2 / len(features)
        sweep = LogisticSweep(
            [factor * strength for strength in strengths], tolerance=tolerance, max_iterations=max_iterations
        )
        found = sweep.fit(features, labels, num_classes)
        certificates = (found.excess_loss.tolist(), found.relative_excess_loss.tolist(), found.converged.tolist())
        return [Solved(*parts) for parts in zip(found.classifiers(), *certificates, strict=True)]

    chosen = _choose(train, l2, solve, scaled, seed)
    if not chosen.converged:
        warnings.warn(
            f"Linear evaluation stopped short of the optimum at l2 in {list(chosen.slow) or [chosen.l2]} (final excess "
            f"loss up to {chosen.solved.excess_loss:.1g}). Raise max_iterations={max_iterations}, or leave weaker "
            "strengths out.",
            NotConvergedWarning,
            stacklevel=3,
        )
    return chosen


def choose_ridge(train: Features, num_classes: int, *, l2: Sequence[float] = L2_GRID, seed: int = 0) -> Chosen:
    """``choose_logistic`` with ridge regression on one-hot targets, whose optimum is exact."""

    def solve(features: Tensor, labels: Tensor, strengths: Sequence[float]) -> list[Solved]:
        found = ridge(features, labels, num_classes, strengths)
        return [Solved(classifier, 0.0, 0.0, converged=True) for classifier in found]

    return _choose(train, l2, solve, True, seed)


def labelled_test(test: Features, num_classes: int) -> tuple[Float[Tensor, "N D"], Int64[Tensor, " N"]]:
    """Features and labels of the labelled test images.

    Raises:
        ValueError: There are none, they have classes that the training images do not count, or are not finite.
    """
    features, labels = test.labelled()
    check_finite(features)
    if int(labels.max()) >= num_classes:
        raise ValueError(
            f"The test images have label {int(labels.max())}, but num_classes is {num_classes}. "
            "Train and test must number the classes alike."
        )
    return features, labels


def stratified_split(labels: Int64[Tensor, " N"], fraction: float, *, seed: int) -> Bool[Tensor, " N"]:
    """Which images to hold out: ``fraction`` of each class, rounded, at least one where a class has two or more.

    Raises:
        ValueError: No class has two images.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    order = order[labels[order].argsort(stable=True)]  # by class, shuffled within
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(labels), device=labels.device) - starts[labels[order]]  # within its class
    quota = (fraction * counts).round().clamp(min=1).minimum((counts - 1).clamp(min=0))
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    held_out[order] = place < quota[labels[order]]
    if not bool(held_out.any()):
        raise ValueError(
            f"Each of the {len(labels)} labelled training images is alone in its class; choosing by "
            "held-out images takes two of some class. Give more images, or take what chooses nothing, such as lda."
        )
    return held_out


def _choose(train: Features, l2: Sequence[float], solve: Solve, scaled: bool, seed: int) -> Chosen:
    features, labels = train.labelled()
    check_finite(features)  # before they are centred: one that is not would make all others so
    mean = features.mean(0)
    features = features - mean
    scale = features.square().mean().sqrt()
    if not scaled or not bool(scale > 0):  # constant features stay zeros, and score as the largest class
        scale = torch.ones_like(scale)
    features = features / scale
    held_out = stratified_split(labels, HELD_OUT, seed=seed)
    candidates = solve(features[~held_out], labels[~held_out], l2)
    accuracies = [one.classifier.accuracy(features[held_out], labels[held_out]) for one in candidates]
    best = max(zip(accuracies, l2, strict=True))[1]
    (final,) = solve(features, labels, [best])
    return Chosen(
        solved=final,
        mean=mean,
        scale=scale,
        l2=best,
        l2_at_edge=len(l2) > 1 and best in (min(l2), max(l2)),
        held_out_top1=dict(zip(l2, accuracies, strict=True)),
        num_train=len(labels),
        slow=tuple(strength for strength, one in zip(l2, candidates, strict=True) if not one.converged),
    )


def _evaluation(chosen: Chosen, features: Tensor, labels: Tensor) -> LinearEvaluation:
    logits = chosen.logits(features)
    top1, top5 = top_hits(logits, labels).double().mean(0).tolist()
    return LinearEvaluation(
        top1=top1,
        top5=top5 if logits.shape[1] > 5 else None,
        l2=chosen.l2,
        l2_at_edge=chosen.l2_at_edge,
        held_out_top1=chosen.held_out_top1,
        num_train=chosen.num_train,
        num_test=len(labels),
        excess_loss=chosen.solved.excess_loss,
        converged=chosen.converged,
    )


def _num_classes(train: Features, num_classes: int | None) -> int:
    return int(train.labelled()[1].max()) + 1 if num_classes is None else num_classes
