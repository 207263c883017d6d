"""Linear classifiers trained by SGD on a frozen encoder's features, many settings at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

TRUST_COEFFICIENT = 0.001  # LARS: util/lars.py of https://github.com/facebookresearch/mae
BATCH_NORM_EPSILON = 1e-6  # main_linprobe.py of the same
BATCH_NORM_MOMENTUM = 0.1  # torch.nn.BatchNorm1d's

Normalisation = Literal["none", "l2", "batch"]


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a share of its largest value, by how much of the training is done: the same for any length.

    Attributes:
        drops: Shares of the training after each of which the rate falls to a tenth.
        cosine: Whether it follows half a cosine down to 0.
        warmup: Share of the training over which it first rises linearly from 0.
        by_epoch: Whether it changes from epoch to epoch, or from step to step.
    """

    drops: tuple[float, ...] = ()
    cosine: bool = False
    warmup: float = 0.0
    by_epoch: bool = False

    def __call__(self, step: int, *, steps_per_epoch: int, epochs: int) -> float:
        """The share for step ``step``, from 0, of ``steps_per_epoch * epochs``."""
        done = step // steps_per_epoch / epochs if self.by_epoch else step / (steps_per_epoch * epochs)
        if done < self.warmup:
            return done / self.warmup
        share = 0.1 ** sum(done >= drop for drop in self.drops)
        if self.cosine:
            share *= (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup))) / 2
        return share


class SGDHeads:
    """One linear classifier a learning rate, H of them on the same features, as one stacked tensor; no autograd.

    Each head is ``torch.nn.Linear(D, C)``, trained by ``torch.optim.SGD`` on the mean cross-entropy, or by LARS in the
    form of MAE's official code. SGD decays the intercept like the weights, as torch does; LARS adapts and decays the
    weights alone. Everything is in the dtype of the starting weights, outside of autocast.

    Args:
        weights: Where the heads start, [H, C, D+1]; the last column is the intercept.
        learning_rates: Of each head.
        lars: Whether a head's step on its weights is proportional to their norm.
        momentum: Of the gradient.
        nesterov: Whether the momentum is Nesterov's, as torch has it.
        weight_decay: Added to the gradient, times the weight.
        normalisation: What is done to features first: ``"none"``, ``"l2"`` (to length 1), or ``"batch"``,
            ``BatchNorm1d(D, affine=False)`` with the batch's statistics in training and running ones for scoring.
    """

    def __init__(
        self,
        weights: Float[Tensor, "H C K"],
        learning_rates: Sequence[float],
        *,
        lars: bool = False,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        normalisation: Normalisation = "none",
    ) -> None:
        if len(learning_rates) != len(weights):
            raise ValueError(f"There are {len(weights)} heads and {len(learning_rates)} learning rates. Give one each.")
        self.weights = weights.clone()
        self.learning_rates = weights.new_tensor(learning_rates)[:, None, None]
        self.lars = lars
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.normalisation = normalisation
        self._velocity = torch.zeros_like(weights)
        width = weights.shape[-1] - 1
        self._mean, self._variance = weights.new_zeros(width), weights.new_ones(width)

    @torch.no_grad()
    def update(self, features: Float[Tensor, "N D"], labels: Int64[Tensor, " N"], share: float = 1.0) -> None:
        """One step of every head, on the rows whose label is not negative; where there are none, nothing changes.

        BatchNorm needs two.

        Args:
            features: The batch of all ranks.
            labels: Classes, negative where a row takes no part.
            share: Of the learning rates, see ``Schedule``.
        """
        counted = labels >= 0
        features, labels = features[counted], labels[counted]
        if len(labels) < (2 if self.normalisation == "batch" else 1):
            return
        with torch.autocast(features.device.type, enabled=False):
            rows = self._rows(features, training=True)
            residuals = softmax_residuals(self._logits(rows), labels).div_(len(labels))
            change = self._adapted((residuals.flatten(1).T @ rows).view_as(self.weights))
            self._velocity.mul_(self.momentum).add_(change)
            if self.nesterov:
                change.add_(self._velocity, alpha=self.momentum)
            else:
                change = self._velocity
            self.weights.addcmul_(self.learning_rates, change, value=-share)

    @torch.no_grad()
    def logits(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N H C"]:
        """Of every head; BatchNorm uses its running statistics."""
        with torch.autocast(features.device.type, enabled=False):
            return self._logits(self._rows(features, training=False))

    def _logits(self, rows: Tensor) -> Tensor:
        return (rows @ self.weights.flatten(0, 1).T).view(len(rows), *self.weights.shape[:2])

    def _rows(self, features: Tensor, *, training: bool) -> Tensor:
        """Normalised features with a column of ones for the intercept, [N, D+1]."""
        features = features.to(self.weights.dtype)
        if self.normalisation == "l2":
            features = F.normalize(features, dim=1)
        elif self.normalisation == "batch":
            features = F.batch_norm(
                features,
                self._mean,
                self._variance,
                training=training,
                momentum=BATCH_NORM_MOMENTUM,
                eps=BATCH_NORM_EPSILON,
            )
        return torch.cat([features, features.new_ones(len(features), 1)], dim=1)

    def _adapted(self, gradient: Tensor) -> Tensor:
        """The gradient [H, C, D+1], in place, with weight decay and, for LARS, each head's scaled by its norms."""
        last = -1 if self.lars else None  # the intercept's column
        weights, change = self.weights[..., :last], gradient[..., :last]
        if self.weight_decay > 0:
            change.add_(weights, alpha=self.weight_decay)
        if self.lars:
            lengths, changes = (torch.linalg.vector_norm(t, dim=(1, 2)) for t in (weights, change))  # [H]
            ratios = (TRUST_COEFFICIENT * lengths / changes).where((lengths > 0) & (changes > 0), 1.0)
            change.mul_(ratios[:, None, None])
        return gradient


def softmax_residuals(logits: Float[Tensor, "N H C"], labels: Int64[Tensor, " N"]) -> Float[Tensor, "N H C"]:
    """Each head's probabilities, less 1 at the label: the gradient of the cross-entropy with respect to its logits."""
    # exp(-64) is nothing beside the largest class's 1; below -87 would come denormals, slow on CPUs.
    residuals = (logits - logits.amax(-1, keepdim=True)).clamp_(min=-64).softmax(-1)
    residuals[torch.arange(len(labels), device=labels.device), :, labels] -= 1
    return residuals
