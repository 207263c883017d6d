"""Softmax-contrastive losses: pick an image's positive out among negatives.

Shape letters
    V  views of an image   B  images on this rank   M  images on all ranks   K  stored negatives   P  projection width

Every loss takes projections as the network makes them and normalises them itself, in float32 or better whatever
comes in and also under autocast: at temperature 0.01 a bfloat16 logit would move in steps of 1/2.

The rule for several ranks: a loss returns the mean over this rank's anchors, with candidates from all ranks.
Averaging the gradients over ranks, which is what DistributedDataParallel does, gives exactly the gradient of one
process on the joined batch.

The positive is kept out of the log-sum-exp over the negatives: with ``n = log sum_j exp(negative_j)`` the cross-entropy
``-log(e^p / (e^p + e^n))`` is ``softplus(n - p)``, which stays exact when the positive wins by far.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contrastive.distributed import gather, rank, world_size


def nt_xent(projections: Float[Tensor, "VB P"], *, temperature: float, num_views: int = 2) -> Float[Tensor, ""]:
    """Normalised-temperature cross entropy: tell an image's other view from all views of all other images.

    Chen et al. 2020, https://arxiv.org/abs/2002.05709, equation 1 and Algorithm 1. With more than two views, the mean
    over an anchor's V - 1 positives, each against the views of other images alone.

    Args:
        projections: The views stacked along the first axis: rows 0..B-1 are the first views of this rank's
            images, rows B..2B-1 their second views. Any floating dtype.
        temperature: Divides the cosine similarities. The official code: 0.1 on ImageNet, 0.5 on CIFAR-10.
        num_views: V.

    Returns:
        Mean over this rank's V*B anchors, in nats, float32 (float64 for float64 projections).

    Raises:
        ValueError: A temperature that is not positive, fewer than two views, or views that do not divide the rows.
    """
    check_temperature(temperature)
    num_rows = len(projections)
    if num_views < 2 or num_rows % num_views:
        raise ValueError(f"{num_rows} projections are not {num_views} >= 2 views of every image; set num_views.")
    num_images = num_rows // num_views
    with torch.autocast(projections.device.type, enabled=False):
        anchors = unit_rows(projections)  # [VB, P]
        candidates = gather(anchors)  # [VM, P]
        image = torch.arange(num_images, device=anchors.device).repeat(num_views)  # [VB]
        anchor_image = image + rank() * num_images
        candidate_image = torch.cat([image + r * num_images for r in range(world_size())])  # [VM]
        logits = anchors @ candidates.T / temperature  # [VB, VM]
        same_image = anchor_image[:, None] == candidate_image
        negatives = logits.masked_fill(same_image, -torch.inf).logsumexp(1)  # [VB]
        views = anchors.unflatten(0, (num_views, num_images))  # [V, B, P]
        losses = [
            F.softplus(
                negatives.unflatten(0, (num_views, num_images)) - (views * views.roll(k, 0)).sum(-1) / temperature
            )
            for k in range(1, num_views)
        ]
        return torch.stack(losses).mean()


def info_nce(
    queries: Float[Tensor, "B P"],
    keys: Float[Tensor, "B P"],
    negatives: Float[Tensor, "K P"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Pick out each query's own key among K negatives that all queries share: MoCo's loss.

    He et al. 2020, https://arxiv.org/abs/1911.05722, equation 1. Keys and negatives get a gradient only if the caller
    computed them with one; MoCo does not.

    Args:
        queries: One a row.
        keys: Row i is the positive of query i.
        negatives: The queue.
        temperature: Divides the cosine similarities. MoCo v1: 0.07, v2: 0.2.

    Returns:
        Mean over this rank's queries, in nats, float32 (float64 for float64 queries).

    Raises:
        ValueError: A temperature that is not positive.
    """
    check_temperature(temperature)
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys, negatives = unit_rows(queries), unit_rows(keys), unit_rows(negatives)
        positive = (queries * keys).sum(-1) / temperature  # [B]
        negative = (queries @ negatives.to(queries.dtype).T / temperature).logsumexp(1)  # [B]
        return F.softplus(negative - positive).mean()


def unit_rows(x: Float[Tensor, "N P"]) -> Float[Tensor, "N P"]:
    """Rows of length one, in float32 or better."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def check_temperature(temperature: float) -> None:
    """Raise a ValueError unless the temperature is positive."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; SimCLR uses 0.5 on CIFAR-10, MoCo v2 0.2.")
