"""Logistic regression at its optimum, against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from contrastive.evaluation import LogisticSweep
from contrastive.evaluation.lbfgs import minimise

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
        assert float(solutions.excess_loss[number]) <= 1e-4 * reached


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
