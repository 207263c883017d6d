"""Losses without negatives that compare statistics of the whole batch, over all ranks. Letters as in ``softmax``.

Means and covariances are sums over ranks through which exact gradients flow, so the rule of ``softmax`` holds here too.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contrastive.distributed import check_equal_batches, sum_over_ranks, world_size
from contrastive.losses.rows import check_pairs, full_precision


def barlow_twins(
    first: Float[Tensor, "B P"], second: Float[Tensor, "B P"], *, redundancy_weight: float = 0.0051
) -> Float[Tensor, ""]:
    """Make the cross-correlation of two views' features the identity.

    Zbontar et al. 2021, https://arxiv.org/abs/2103.03230, equations 1 and 2, with the batch statistics of the official
    code: variances over M (not M - 1) with 1e-5 added.

    Args:
        first: Projections of the first views.
        second: Of the second views of the same images.
        redundancy_weight: Of the off-diagonal terms, the paper's lambda: 0.0051.

    Returns:
        The loss of the batch of all ranks, float32 (float64 for float64 rows); the same on each.

    Raises:
        ValueError: Rows that are no pairs, fewer than two images, or ranks with different numbers of rows.
    """
    check_pairs(first, second)
    with full_precision(first):
        total = _total_images(first)
        correlation = sum_over_ranks(_standardised(first, total).T @ _standardised(second, total)) / total  # [P, P]
        on_diagonal = (correlation.diagonal() - 1).square().sum()
        return on_diagonal + redundancy_weight * _off_diagonal_squares(correlation)


def vicreg(
    first: Float[Tensor, "B P"],
    second: Float[Tensor, "B P"],
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Views alike, every feature varying by at least 1 over the batch, no two features correlated.

    Bardes et al. 2021, https://arxiv.org/abs/2105.04906, equations 1 to 6, scaled as in the official code: the mean and
    not the sum of the squared differences, and half of the two views' variance terms.

    Args:
        first: Projections of the first views.
        second: Of the second views of the same images.
        invariance_weight: The paper's lambda: 25.
        variance_weight: The paper's mu: 25.
        covariance_weight: The paper's nu: 1.

    Returns:
        The loss of the batch of all ranks, but for the invariance, which is this rank's mean; float32 (float64 for
        float64 rows).

    Raises:
        ValueError: Rows that are no pairs, fewer than two images, or ranks with different numbers of rows.
    """
    check_pairs(first, second)
    with full_precision(first):
        total = _total_images(first)
        views = _widened(first), _widened(second)
        invariance = F.mse_loss(views[0], views[1])
        variance, covariance = views[0].new_zeros(()), views[0].new_zeros(())
        for view in views:
            centred = view - sum_over_ranks(view.sum(0)) / total
            moments = sum_over_ranks(centred.T @ centred) / (total - 1)  # [P, P]
            variance = variance + F.relu(1 - (moments.diagonal() + 1e-4).sqrt()).mean() / 2
            covariance = covariance + _off_diagonal_squares(moments) / view.shape[1]
        return invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance


def negative_cosine(predictions: Float[Tensor, "B P"], targets: Float[Tensor, "B P"]) -> Float[Tensor, ""]:
    """Minus the mean cosine similarity to targets that get no gradient.

    SimSiam, Chen & He 2020, https://arxiv.org/abs/2011.10566, equations 1 and 3. BYOL's, Grill et al. 2020,
    https://arxiv.org/abs/2006.07733, equation 2, is ``2 + 2 * negative_cosine(...)``.

    Args:
        predictions: One a row.
        targets: Row i is what prediction i should be; detached here.

    Returns:
        Mean over this rank's rows in [-1, 1], float32 (float64 for float64 rows).

    Raises:
        ValueError: Rows that are no pairs.
    """
    check_pairs(predictions, targets)
    with full_precision(predictions):
        return -F.cosine_similarity(_widened(predictions), _widened(targets.detach()), dim=-1, eps=1e-6).mean()


def _standardised(rows: Tensor, total: int) -> Tensor:
    """Each feature with mean 0 and variance 1 over the batch of all ranks."""
    wide = _widened(rows)
    centred = wide - sum_over_ranks(wide.sum(0)) / total
    variance = sum_over_ranks(centred.square().sum(0)) / total
    return centred * (variance + 1e-5).rsqrt()


def _off_diagonal_squares(matrix: Tensor) -> Tensor:
    squares = matrix.square()
    return squares.sum() - squares.diagonal().sum()


def _widened(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _total_images(rows: Tensor) -> int:
    check_equal_batches(rows)
    total = len(rows) * world_size()
    if total < 2:
        raise ValueError("One image has no variance. Use a batch of at least two over all ranks.")
    return total
