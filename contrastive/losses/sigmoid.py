"""The sigmoid loss: every pair of rows is a yes-or-no question of its own. Letters as in ``softmax``."""

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive.losses.core import softplus_sum_against
from contrastive.losses.rows import check_pairs, check_scale, full_precision, image_ids, softplus, unit_rows


def siglip(
    some: Float[Tensor, "B P"],
    others: Float[Tensor, "B P"],
    *,
    scale: float | Float[Tensor, ""],
    bias: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Do these two belong together? Asked of each of ``some`` with the others of all ranks.

    Zhai et al. 2023, https://arxiv.org/abs/2303.15343, Algorithm 1. Tile by tile in torch on every device.

    Args:
        some: One a row: images.
        others: Row i belongs to row i of ``some``: texts.
        scale: Multiplies the cosine similarities, > 0. A tensor gets its gradient; the paper learns its logarithm from
            log(10).
        bias: Added to the logits. A tensor gets its gradient; the paper learns it from -10.

    Returns:
        Sum over the candidates, mean over this rank's rows, in nats, float32 (float64 for float64 rows).

    Raises:
        ValueError: A scale that is not positive (a tensor is not looked at), rows that are no pairs, or ranks with
            different numbers of rows.
    """
    check_scale(scale)
    check_pairs(some, others)
    with full_precision(some):
        left, right = unit_rows(some) * scale, unit_rows(others)
        logits = (left * right).sum(-1) + bias  # [B], of those that belong together
        # One more column carries the bias, and its gradient, through the dot products.
        rows = torch.cat([left, torch.ones_like(left[:, :1]) * bias], dim=1)
        columns = torch.cat([right, torch.ones_like(right[:, :1])], dim=1)
        others_say = softplus_sum_against(rows, columns, image_ids(len(some), some.device))
        return (softplus(-logits) + others_say).mean()
