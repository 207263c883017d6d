"""Linear classifiers fitted on the labelled training images, the bank, as the encoder sees them at the moment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive.evaluation import Features, lda
from contrastive.evaluation.linear import choose_logistic

L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # a curve over the epochs needs no finer choice


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
    """The classifier of ``linear_evaluation``, its strength chosen on a held-out tenth of the bank.

    Args:
        bank: Features of all ranks.
        num_classes: C.
        l2: The grid of strengths.

    Raises:
        ValueError: See ``linear_evaluation``.
    """
    found = choose_logistic(bank, num_classes, l2=l2)
    return Classifier(found.logits, num_classes, {"l2": found.l2, "l2_at_edge": found.l2_at_edge})
