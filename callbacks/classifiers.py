"""Linear classifiers fitted on the labelled training images, the bank, as the encoder sees them at the moment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from contrastive.evaluation import (
    Features,
    LogisticSweep,
    NotConvergedWarning,
    from_rank_zero,
    lda,
    stratified_split,
)
from contrastive.evaluation.linear import HELD_OUT

L2_GRID, TOLERANCE = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1), 1e-3  # a curve over the epochs needs no finer choice


@dataclass(frozen=True)
class Classifier:
    """What scores validation images.

    Attributes:
        logits: Features [B, D] to logits [B, C], or votes: the largest is the prediction.
        num_classes: C.
        chosen: Hyper-parameters chosen on training images, by the name they are logged under.
    """

    logits: Callable[[Float[Tensor, "B D"]], Float[Tensor, "B C"]]
    num_classes: int
    chosen: Mapping[str, float] = field(default_factory=dict)


def fit_lda(bank: Features, num_classes: int) -> Classifier:
    """Linear discriminant analysis of features that may lie on the ranks that encoded them, each image on one.

    Raises:
        ValueError: See ``lda``.
    """
    labels = torch.full_like(bank.index, -1) if bank.labels is None else bank.labels
    return Classifier(lda(bank.features, labels, num_classes, over_ranks=True).logits, num_classes)


def fit_logistic(bank: Features, num_classes: int, l2: Sequence[float]) -> Classifier:
    """``linear_evaluation``'s classifier: on features of one scale, its strength chosen on a held-out tenth.

    Args:
        bank: Features of all ranks.
        num_classes: C.
        l2: The grid of strengths.

    Raises:
        ValueError: See ``linear_evaluation``.
    """
    features, labels = bank.labelled()
    mean = features.mean(0)
    scale = (features - mean).square().mean().sqrt().clamp(min=torch.finfo(features.dtype).tiny)
    features = (features - mean) / scale
    held_out = stratified_split(labels, HELD_OUT, seed=0)
    candidates = LogisticSweep(l2, tolerance=TOLERANCE).fit(features[~held_out], labels[~held_out], num_classes)
    right = (candidates.logits(features[held_out]).argmax(-1) == labels[held_out]).sum(1)
    best = max(zip(right.tolist(), l2, range(len(l2)), strict=True))[2]
    chosen = l2[int(from_rank_zero(right.new_tensor(best)))]
    final = LogisticSweep([chosen], tolerance=TOLERANCE).fit(features, labels, num_classes)
    if not bool(candidates.converged.all() & final.converged.all()):
        rank_zero_warn(
            f"Logistic regression stopped short of its optimum at some of l2 = {list(l2)}: leave weaker strengths out.",
            category=NotConvergedWarning,
        )
    at_edge = len(l2) > 1 and chosen in (min(l2), max(l2))
    return Classifier(
        lambda rows: final.logits((rows.float() - mean) / scale)[0], num_classes, {"l2": chosen, "l2_at_edge": at_edge}
    )
