"""Collapse measures, on features for which they are known."""

import math

import pytest
import torch
from torch import Tensor

from contrastive.evaluation import alignment, effective_rank, feature_std, uniformity


def test_feature_std_is_one_on_an_even_spread_and_zero_at_collapse() -> None:
    # Both directions of every axis: mean 0 and, per dimension, variance 1/D, by the unbiased formula 2D/(2D-1) of it.
    spread = torch.cat([torch.eye(16), -torch.eye(16)])
    assert float(feature_std(7 * spread)) == pytest.approx(math.sqrt(32 / 31), rel=1e-5)
    assert float(feature_std(torch.ones(20, 16))) == pytest.approx(0, abs=1e-6)


def test_alignment_is_the_mean_squared_distance_of_normalised_views() -> None:
    one, other = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 3.0], [0.0, 5.0]])
    assert float(alignment(torch.stack([one, other]))) == pytest.approx((2 + 0) / 2)
    third = torch.tensor([[-1.0, 0.0], [0.0, -1.0]])  # distances to one: 4, 4; to other: 2, 4
    assert float(alignment(torch.stack([one, other, third]))) == pytest.approx((1 + 4 + 3) / 3)


def test_alignment_needs_two_views() -> None:
    with pytest.raises(ValueError, match="Alignment compares views of the same image, and there is 1"):
        alignment(torch.ones(1, 4, 2))


def test_uniformity_is_zero_at_collapse_and_known_for_a_square() -> None:
    assert float(uniformity(torch.ones(9, 4))) == pytest.approx(0, abs=1e-6)
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])  # two neighbours at 2, one at 4
    assert float(uniformity(square)) == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3), rel=1e-5)
    assert float(uniformity(square, t=1.0)) == pytest.approx(math.log((2 * math.exp(-2) + math.exp(-4)) / 3), rel=1e-5)


def test_uniformity_in_blocks_is_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contrastive.evaluation.representation.ROWS_PER_BLOCK", 8)
    features = torch.randn(37, 5, generator=torch.Generator().manual_seed(0))
    distances = torch.pdist(torch.nn.functional.normalize(features.double(), dim=1)).square()
    assert float(uniformity(features)) == pytest.approx(float(distances.mul(-2).exp().mean().log()), rel=1e-5)


def test_uniformity_needs_two_images() -> None:
    with pytest.raises(ValueError, match="pairs of images, and there is 1"):
        uniformity(torch.ones(1, 3))


@pytest.mark.parametrize("transposed", [False, True], ids=["N > D", "N < D"])
def test_effective_rank_of_known_singular_values(transposed: bool) -> None:
    left, _ = torch.linalg.qr(torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    right, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))

    def with_singular_values(values: list[float]) -> Tensor:
        matrix = (left * torch.tensor(values)) @ right
        return (matrix.T if transposed else matrix).float().contiguous()

    assert float(effective_rank(with_singular_values([2.0] * 8))) == pytest.approx(8, rel=1e-4)
    assert float(effective_rank(with_singular_values([5.0] * 3 + [0.0] * 5))) == pytest.approx(3, rel=1e-3)
    two = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert float(effective_rank(with_singular_values([3.0, 1.0] + [0.0] * 6))) == pytest.approx(two, rel=1e-3)


def test_effective_rank_is_one_at_collapse_and_for_zeros() -> None:
    noise = 1e-6 * torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert float(effective_rank(1 + noise)) == pytest.approx(1, abs=1e-3)
    assert float(effective_rank(torch.zeros(50, 8))) == 1
