"""Logistic regression at its optimum, against scikit-learn's."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from contrastive.evaluation import LogisticSweep
from contrastive.evaluation.lbfgs import Minimum, minimise
from contrastive.evaluation.logistic import _Problem

L2 = [1e-1, 1e-2, 1e-3, 1e-4]


def blobs(count: int = 300, width: int = 12, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    """Overlapping classes in correlated, off-centre, non-negative features, as pooled ReLUs give them."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % num_classes
    centres = torch.randn(num_classes, width, generator=generator)
    noise = torch.randn(count, width, generator=generator) @ torch.randn(width, width, generator=generator)
    return (centres[labels] + noise).relu() * torch.logspace(-1, 1, width), labels


def scikit_learn(features: Tensor, labels: Tensor, l2: float) -> LogisticRegression:
    model = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-10, max_iter=100_000, solver="newton-cg")
    return model.fit(features.double().numpy(), labels.numpy())


def objective(weights: Tensor, biases: Tensor, features: Tensor, labels: Tensor, l2: float) -> float:
    """The definition, image by image, in float64."""
    total = 0.0
    for row, label in zip(features.double(), labels, strict=True):
        logits = weights.double() @ row + biases.double()
        total += float(torch.logsumexp(logits, 0) - logits[label])
    return total / len(labels) + l2 / 2 * float(weights.double().square().sum())


def test_coefficients_at_a_tight_tolerance_are_those_of_scikit_learn() -> None:
    features, labels = blobs()
    solutions = LogisticSweep(L2, tolerance=1e-12).fit(features, labels, 4)
    assert bool(solutions.converged.all())
    for number, l2 in enumerate(L2):
        reference = scikit_learn(features, labels, l2)
        np.testing.assert_allclose(solutions.weights[number], reference.coef_, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(solutions.biases[number], reference.intercept_, rtol=1e-4, atol=1e-4)


def test_loss_is_the_definitions_and_within_its_certificate_of_scikit_learns() -> None:
    features, labels = blobs()
    solutions = LogisticSweep(L2).fit(features, labels, 4)
    assert bool(solutions.converged.all())
    for number, l2 in enumerate(L2):
        reference = scikit_learn(features, labels, l2)
        best = objective(torch.tensor(reference.coef_), torch.tensor(reference.intercept_), features, labels, l2)
        reached = objective(solutions.weights[number], solutions.biases[number], features, labels, l2)
        assert float(solutions.loss[number]) == pytest.approx(reached, rel=1e-5)
        rounding = 1e-6 * best
        assert best - rounding <= reached <= best + float(solutions.excess_loss[number]) + rounding
        assert float(solutions.excess_loss[number]) <= 1e-5 * reached


def data_set(name: str) -> tuple[Tensor, Tensor]:
    if name == "more features than images":
        return blobs(count=60, width=200)
    rows, labels = {"two classes": load_breast_cancer, "ten classes": load_digits}[name](return_X_y=True)
    return torch.tensor(StandardScaler().fit_transform(rows), dtype=torch.float32), torch.tensor(labels)


def scikit_learn_of_classes(features: Tensor, labels: Tensor, num_classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Weights [C, D] and intercepts [C] of scikit-learn run to convergence in float64."""
    halves = 2 if num_classes == 2 else 1  # of two classes it has one row, whose halves with either sign are both
    model = LogisticRegression(C=halves / (l2 * len(labels)), tol=1e-10, max_iter=100_000, solver="newton-cg")
    model.fit(features.double().numpy(), labels.numpy())
    weights, biases = torch.tensor(model.coef_), torch.tensor(model.intercept_)
    return (
        (weights, biases) if num_classes > 2 else (torch.cat([-weights, weights]) / 2, torch.cat([-biases, biases]) / 2)
    )


@pytest.mark.parametrize("name", ["two classes", "ten classes", "more features than images"])
def test_loss_and_predictions_are_those_of_scikit_learn_run_to_convergence(name: str) -> None:
    features, labels = data_set(name)
    num_classes = int(labels.max()) + 1
    solutions = LogisticSweep(L2).fit(features, labels, num_classes)
    assert bool(solutions.converged.all())
    for number, l2 in enumerate(L2):
        weights, biases = scikit_learn_of_classes(features, labels, num_classes, l2)
        best = objective(weights, biases, features, labels, l2)
        reached = objective(solutions.weights[number], solutions.biases[number], features, labels, l2)
        assert best * (1 - 1e-6) <= reached <= best * (1 + 1e-5)
        expected = features.double() @ weights.T + biases
        margin = expected.topk(2, dim=1).values.diff(dim=1)[:, 0].abs()
        differs = solutions.logits(features)[number].argmax(1) != expected.argmax(1)
        assert not (differs & (margin > 0.02)).any()
        assert int(differs.sum()) <= 1


def test_weights_are_those_of_newtons_method() -> None:
    """Plain NumPy in float64: the gradient and the full Hessian of the objective as it is defined, and nothing else."""
    features, labels = blobs(count=80, width=5, num_classes=3)
    l2, count, width = 1e-2, 80, 5
    design = np.column_stack([features.double().numpy(), np.ones(count)])
    penalty = np.kron(np.eye(3), np.diag([l2] * width + [0.0]))
    point = np.zeros(3 * (width + 1))
    for _ in range(30):
        logits = design @ point.reshape(3, -1).T
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        gradient = ((shares - np.eye(3)[labels.numpy()]).T @ design / count).ravel() + penalty @ point
        hessian = penalty.copy()
        for share, row in zip(shares, design, strict=True):
            hessian += np.kron(np.diag(share) - np.outer(share, share), np.outer(row, row)) / count
        point -= np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0]  # intercepts may move together: singular there
    assert np.abs(gradient).max() < 1e-12
    weights, biases = np.split(point.reshape(3, -1), [width], axis=1)
    solutions = LogisticSweep([l2], tolerance=1e-12).fit(features, labels, 3)
    np.testing.assert_allclose(solutions.weights[0], weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(solutions.biases[0], biases[:, 0] - biases.mean(), rtol=1e-4, atol=1e-5)


def test_the_certificate_is_the_gradient_and_the_excess_that_it_allows() -> None:
    features, labels = blobs()
    solutions = LogisticSweep([1e-1, 1e-4], max_iterations=3).fit(features, labels, 4)
    for number, l2 in enumerate([1e-1, 1e-4]):
        weights = solutions.weights[number].double().requires_grad_()
        biases = solutions.biases[number].double().requires_grad_()
        logits = features.double() @ weights.T + biases
        loss = torch.nn.functional.cross_entropy(logits, labels) + l2 / 2 * weights.square().sum()
        loss.backward()
        # Its gradient is by the weights of centred features, whose intercept is another.
        centred = weights.grad - biases.grad[:, None] * features.double().mean(0)
        norm = torch.cat([centred.ravel(), biases.grad]).norm()
        assert float(solutions.gradient_norm[number]) == pytest.approx(float(norm), rel=1e-3)
        excess = float(norm.square() / (2 * l2))
        loss = loss.detach()
        assert float(solutions.excess_loss[number]) == pytest.approx(excess, rel=1e-2)
        assert float(solutions.relative_excess_loss[number]) == pytest.approx(excess / float(loss), rel=1e-2)


def test_the_curvature_is_the_hessians_diagonal_and_never_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contrastive.evaluation.logistic.LOGITS_PER_BLOCK", 16 * 7)
    features, labels = blobs(count=50, width=4)
    problem = _Problem(features.double(), labels)
    weights = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 10
    l2 = torch.tensor([1e-1, 1e-3], dtype=torch.float64)

    def loss(flat: Tensor, number: int) -> Tensor:
        one = flat.view(4, 5)
        penalty = l2[number] / 2 * one[:, :-1].square().sum()
        return torch.nn.functional.cross_entropy(problem.design @ one.T, labels) + penalty

    found, bound = problem.curvature(weights, l2), problem.curvature_bound(l2)
    for number in range(2):
        hessian = torch.autograd.functional.hessian(partial(loss, number=number), weights[number].ravel())
        torch.testing.assert_close(found[number, 0], hessian.diagonal().view(4, 5).mean(0))
    assert bool((found <= bound + 1e-12).all())
    apart = problem.curvature(1e6 * weights, l2)
    torch.testing.assert_close(apart, torch.maximum(apart, 1e-3 * bound))


def test_a_loss_of_zero_is_exceeded_by_nothing() -> None:
    solutions = LogisticSweep([1e-2]).fit(blobs(20)[0], torch.zeros(20, dtype=torch.int64), 2)
    assert solutions.relative_excess_loss.tolist() == [0]
    assert solutions.converged.tolist() == [True]


def test_however_many_strengths_and_classes_no_more_weights_are_solved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs()
    whole = LogisticSweep(L2, tolerance=1e-10).fit(features, labels, 4)
    shapes = []

    def watched(evaluate: Any, *, start: Tensor, **others: Any) -> Minimum:
        shapes.append(tuple(start.shape))
        return minimise(evaluate, start=start, **others)

    monkeypatch.setattr("contrastive.evaluation.logistic.minimise", watched)
    monkeypatch.setattr("contrastive.evaluation.logistic.WEIGHTS_AT_ONCE", 3 * 4 * 13 + 5)
    groups = LogisticSweep(L2, tolerance=1e-10).fit(features, labels, 4)
    assert {shape for shape in shapes if shape[0] > 1} == {(3, 4, 13)}
    for name in ("l2", "loss", "gradient_norm", "iterations", "converged"):
        assert getattr(groups, name).shape == (4,)
    torch.testing.assert_close(groups.weights, whole.weights, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(groups.loss, whole.loss)


def test_strengths_over_eleven_decades_reach_their_optimum() -> None:
    features, labels = data_set("ten classes")
    features, labels = features[labels < 6], labels[labels < 6].clamp(min=2) - 2  # half of the images are of one class
    grid = [1e-6, 1e-1, 1e5]
    solutions = LogisticSweep(grid).fit(features, labels, 4)
    assert bool(solutions.converged.all())
    assert bool((solutions.relative_excess_loss <= 1e-5).all())
    shares = torch.bincount(labels) / len(labels)  # nothing but the intercepts is left at the strongest
    torch.testing.assert_close(solutions.logits(features[:1])[2, 0].softmax(0), shares, rtol=1e-2, atol=1e-3)


def test_each_classifier_is_a_row_of_the_solutions() -> None:
    features, labels = blobs()
    solutions = LogisticSweep([1e-2, 1e-3]).fit(features, labels, 5)
    for classifier, logits in zip(solutions.classifiers(), solutions.logits(features), strict=True):
        torch.testing.assert_close(classifier.logits(features), logits)


def test_logits_are_weights_times_features_plus_biases() -> None:
    features, labels = blobs()
    solutions = LogisticSweep([1e-2, 1e-3]).fit(features, labels, 4)
    for number in range(2):
        expected = features @ solutions.weights[number].T + solutions.biases[number]
        torch.testing.assert_close(solutions.logits(features)[number], expected, rtol=1e-4, atol=1e-4)


def test_a_strength_gives_the_same_solution_alone_and_in_a_grid() -> None:
    features, labels = blobs()
    sweep = LogisticSweep(L2, tolerance=1e-12).fit(features, labels, 4)
    for number, l2 in enumerate(L2):
        alone = LogisticSweep([l2], tolerance=1e-12).fit(features, labels, 4)
        torch.testing.assert_close(sweep.weights[number], alone.weights[0], rtol=1e-4, atol=1e-5)


def test_more_dimensions_than_images_and_a_class_without_images_are_solved_too() -> None:
    features, labels = blobs(count=30, width=50, num_classes=3)
    solutions = LogisticSweep([1e-2], tolerance=1e-10).fit(features, labels, 5)
    reference = scikit_learn(features, labels, 1e-2)
    assert bool(solutions.converged.all())
    np.testing.assert_allclose(solutions.weights[0, :3], reference.coef_, rtol=1e-4, atol=1e-5)
    assert solutions.logits(features)[0, :, 3:].max() == -torch.inf


def test_splitting_the_images_into_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs()
    whole = LogisticSweep(L2, tolerance=1e-10).fit(features, labels, 4)
    monkeypatch.setattr("contrastive.evaluation.logistic.LOGITS_PER_BLOCK", 16 * 7)
    blocks = LogisticSweep(L2, tolerance=1e-10).fit(features, labels, 4)
    torch.testing.assert_close(blocks.weights, whole.weights, rtol=1e-4, atol=1e-5)


def test_what_did_not_converge_says_so() -> None:
    features, labels = blobs()
    solutions = LogisticSweep([1.0, 1e-6], max_iterations=5).fit(features, labels, 4)
    assert solutions.converged.tolist() == [True, False]
    assert int(solutions.iterations[1]) == 10  # 5 in each precision
    assert float(solutions.excess_loss[1]) > 1e-4 * float(solutions.loss[1])


def test_constant_features_leave_the_class_frequencies() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    solutions = LogisticSweep([1e-2], tolerance=1e-10).fit(torch.ones(100, 3), labels, 3)
    shares = solutions.logits(torch.ones(1, 3))[0, 0].softmax(0)
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), rtol=1e-3, atol=1e-3)


def test_global_matmul_precision_is_left_as_found() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        LogisticSweep([1e-2]).fit(*blobs(60), 4)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_each_of_several_quadratics_ends_at_its_own_minimum() -> None:
    centres = torch.tensor([[[1.0, -2.0]], [[30.0, 4.0]]], dtype=torch.float64)
    stiffness = torch.tensor([[[1.0, 100.0]], [[0.01, 3.0]]], dtype=torch.float64)

    def evaluate(points: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        away = points - centres[active]
        return 1 + (stiffness[active] * away.square()).sum((1, 2)) / 2, stiffness[active] * away

    minimum = minimise(
        evaluate,
        start=torch.zeros(2, 1, 2, dtype=torch.float64),
        curvature=torch.ones(2, 1, 2, dtype=torch.float64),
        convexity=torch.tensor([1.0, 0.01], dtype=torch.float64),
        tolerance=1e-14,
        max_iterations=100,
    )
    assert bool(minimum.converged.all())
    torch.testing.assert_close(minimum.point, centres, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("l2", [[], [0.0], [1e-3, -1.0]])
def test_strengths_must_be_positive(l2: list[float]) -> None:
    with pytest.raises(ValueError, match="must be greater than 0"):
        LogisticSweep(l2)


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = blobs(20)
    features[3, 1] = torch.inf
    with pytest.raises(ValueError, match="1 of 20 feature vectors hold infinities or NaN"):
        LogisticSweep([1e-2]).fit(features, labels, 4)


@pytest.mark.parametrize(("label", "span"), [(-1, "run from -1 to 3"), (4, "run from 0 to 4")])
def test_labels_outside_of_the_classes_are_refused(label: int, span: str) -> None:
    features, labels = blobs(20)
    labels[5] = label
    with pytest.raises(ValueError, match=f"0 to num_classes - 1 = 3, but they {span}"):
        LogisticSweep([1e-2]).fit(features, labels, 4)


def test_classes_are_those_of_the_labels_unless_told() -> None:
    features, labels = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    sweep = LogisticSweep([0.1])
    assert torch.equal(sweep.fit(features, labels).weights, sweep.fit(features, labels, 3).weights)
    with pytest.raises(ValueError, match="but they are missing"):
        sweep.fit(features[:0], labels[:0])
