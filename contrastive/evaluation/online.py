"""Linear classifiers trained beside an encoder that is still learning, several learning rates at once."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastive.evaluation.ranks import sum_over_ranks
from contrastive.evaluation.sgd import softmax_residuals

EPSILON = 1e-5  # torch.nn.BatchNorm1d's
STATISTICS_MOMENTUM = 0.1  # torch.nn.BatchNorm1d's
ACCURACY_DECAY = 0.99  # a head is judged by about its last hundred batches


class LinearHeads:
    """One linear classifier a learning rate, H of them, as one stacked tensor with gradients in closed form.

    Each head is ``BatchNorm1d(D, affine=False)`` and ``Linear(D, C)`` from zero, trained by ``torch.optim.SGD`` on the
    mean cross-entropy over the images of all ranks. Standardising makes a learning rate mean the same whatever the
    scale of the encoder's outputs (as MAE's linear probe does: He et al. 2022, "Masked autoencoders are scalable
    vision learners", appendix A.1). Everything is float32, outside of autocast, and the same on every rank.

    Rows with a negative label (unlabelled) or features that are not finite (16-bit overflow) take no part.

    Args:
        num_classes: C.
        learning_rates: One head each.
        momentum: SGD's.
        weight_decay: SGD's, on the weights and not on the intercept.
    """

    def __init__(
        self, num_classes: int, learning_rates: Sequence[float], *, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes = {num_classes}: a classifier tells at least 2 classes apart.")
        if not learning_rates or min(learning_rates) <= 0:
            raise ValueError(f"learning_rates = {tuple(learning_rates)}: give one or more, each greater than 0.")
        self.num_classes = num_classes
        self.learning_rates = torch.tensor(learning_rates, dtype=torch.float32)  # [H]
        self.momentum = momentum
        self.weight_decay = weight_decay
        self._state: dict[str, Tensor] = {}  # empty until the first batch tells the features' width

    @property
    def is_trained(self) -> bool:
        """Whether there has been a batch to learn from, here or before a restored checkpoint."""
        return bool(self._state)

    @property
    def chosen(self) -> Int64[Tensor, ""]:
        """The head with the best accuracy on recent training batches, each scored before it was learned from."""
        return self._state["accuracy"].argmax()

    @property
    def chosen_learning_rate(self) -> Float[Tensor, ""]:
        """The chosen head's learning rate."""
        return self.learning_rates[self.chosen]

    @property
    def weights(self) -> Float[Tensor, "H C K"]:
        """All heads on standardised features; the last column, K = D + 1, is the intercept."""
        return self._state["weights"]

    def to(self, device: torch.device) -> None:
        """Move in place."""
        self.learning_rates = self.learning_rates.to(device)
        self._state = {key: value.to(device) for key, value in self._state.items()}

    @torch.no_grad()
    def update(
        self, features: Float[Tensor, "N D"], labels: Int64[Tensor, " N"]
    ) -> tuple[Int64[Tensor, ""], Int64[Tensor, ""]]:
        """Predict, score, then learn: one SGD step of every head on the rows of all ranks.

        Returns:
            How many rows the chosen head had right before the step, and how many there were, over all ranks.

        Raises:
            ValueError: The features' width has changed.
        """
        if not self._state:
            self._start(features)
        self._check_width(features)
        with torch.autocast(features.device.type, enabled=False):
            features = features.detach().float()
            known = (labels >= 0) & features.isfinite().all(1)
            features = torch.where(known[:, None], features, 0)
            return self._learn(features, labels.clamp(min=0), known.float())

    @torch.no_grad()
    def logits(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """The chosen head's logits, features standardised by the running statistics.

        Raises:
            ValueError: The features' width is not that of training.
        """
        self._check_width(features)
        with torch.autocast(features.device.type, enabled=False):
            standard = self._standardise(features.detach().float(), self._state["mean"], self._state["variance"])
            head: Tensor = self.weights[self.chosen]
            return standard @ head.T

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all that training changes, on the CPU."""
        return {key: value.detach().cpu().clone() for key, value in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state_dict``.

        Raises:
            ValueError: It was saved with another number of heads or classes.
        """
        if state:
            saved, configured = tuple(state["weights"].shape[:2]), (len(self.learning_rates), self.num_classes)
            if saved != configured:
                raise ValueError(
                    f"The checkpoint holds {saved[0]} heads for {saved[1]} classes, but this probe has {configured[0]} "
                    f"learning rates and num_classes={configured[1]}. Configure it as before, or give it a new name."
                )
        device = self.learning_rates.device
        self._state = {key: value.detach().clone().to(device) for key, value in state.items()}

    def _start(self, features: Tensor) -> None:
        self.to(features.device)
        width = features.shape[1]
        heads = torch.zeros(len(self.learning_rates), self.num_classes, width + 1, device=features.device)
        self._state = {
            "weights": heads,
            "velocity": torch.zeros_like(heads),
            "mean": heads.new_zeros(width),
            "variance": heads.new_ones(width),
            "accuracy": heads.new_zeros(len(heads)),
        }

    def _check_width(self, features: Tensor) -> None:
        width = self.weights.shape[-1] - 1
        if features.shape[1] != width:
            raise ValueError(
                f"Features are {features.shape[1]} wide, but the probe was trained on {width}. Training and validation "
                "must return the same features, and a resumed run needs the encoder it was saved with."
            )

    def _learn(self, features: Tensor, labels: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """One step; ``known`` [N] is 1 for rows that count."""
        count, mean, variance = _moments(features, known)
        standard = self._standardise(features, mean, variance)  # [N, D+1]
        logits = (standard @ self.weights.flatten(0, 1).T).view(len(features), *self.weights.shape[:2])  # [N, H, C]
        hits = ((logits.argmax(-1) == labels[:, None]) * known[:, None]).sum(0)  # [H]

        residuals = softmax_residuals(logits, labels) * known[:, None, None]
        gradient = (residuals.flatten(1).T @ standard).view_as(self.weights)
        reduced = sum_over_ranks(torch.cat([gradient.flatten(), hits]))
        gradient, hits = reduced[: -len(hits)].view_as(gradient) / count.clamp(min=1), reduced[-len(hits) :]
        gradient[..., :-1] += self.weight_decay * self.weights[..., :-1]

        chosen = self.chosen
        old = self._state
        velocity = self.momentum * old["velocity"] + gradient
        unbiased = variance * count / (count - 1).clamp(min=1)
        new = {
            "weights": old["weights"] - self.learning_rates[:, None, None] * velocity,
            "velocity": velocity,
            "mean": torch.lerp(old["mean"], mean, STATISTICS_MOMENTUM),
            "variance": torch.lerp(old["variance"], unbiased, STATISTICS_MOMENTUM),
            "accuracy": torch.lerp(hits / count.clamp(min=1), old["accuracy"], ACCURACY_DECAY),
        }
        # A batch without a labelled row changes nothing; asking the device whether it is one would stall it.
        self._state = {key: torch.where(count > 0, new[key], old[key]) for key in old}
        return hits[chosen].long(), count.long()

    @staticmethod
    def _standardise(features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Standardised features with a column of ones for the intercept, [N, D+1]."""
        standard = (features - mean) * (variance + EPSILON).rsqrt()
        return torch.cat([standard, standard.new_ones(len(standard), 1)], dim=1)


def _moments(features: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean [D] and biased variance [D] of the known rows of all ranks; unknown rows are zeros."""
    sums = sum_over_ranks(torch.cat([known.sum()[None], features.sum(0)]))
    count, mean = sums[0], sums[1:] / sums[0].clamp(min=1)
    squares = ((features - mean).square() * known[:, None]).sum(0)
    return count, mean, sum_over_ranks(squares) / count.clamp(min=1)
