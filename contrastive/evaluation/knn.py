"""Weighted k-nearest-neighbour classification (Wu et al. 2018, "Unsupervised feature learning via non-parametric
instance discrimination", section 3.4): nothing is trained, the features are judged as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from contrastive.evaluation.features import Features

QUERIES_PER_BLOCK = 1024
BANK_PER_BLOCK = 16384  # 64 MiB of similarities at a time, in float32


@dataclass(frozen=True)
class KNNResult:
    """Accuracy at one setting.

    Attributes:
        k: Neighbours that vote.
        temperature: A neighbour of cosine similarity s casts exp(s / temperature) votes.
        top1: Fraction of the test images whose class wins.
        top5: Fraction whose class is among the first five; None where there are 5 classes or fewer.
        num_bank: Labelled images in the bank.
        num_test: Labelled test images.
    """

    k: int
    temperature: float
    top1: float
    top5: float | None
    num_bank: int
    num_test: int


class KNNClassifier:
    """A bank of labelled features, which vote on the class of a query.

    Args:
        bank: Labelled features; images with a negative label are left out.
        num_classes: C; by default the largest label of the bank + 1.

    Raises:
        ValueError: The bank has no labels, or labels outside of the classes.
    """

    def __init__(self, bank: Features, *, num_classes: int | None = None) -> None:
        features, self.labels = bank.labelled()
        self.features = F.normalize(features.float(), dim=1)  # [M, D]
        self.num_classes = int(self.labels.max()) + 1 if num_classes is None else num_classes
        if int(self.labels.max()) >= self.num_classes:
            raise ValueError(
                f"The bank has label {int(self.labels.max())}, but num_classes is {self.num_classes}, from 0."
            )

    def __len__(self) -> int:
        return len(self.features)

    def neighbours(
        self, queries: Float[Tensor, "N D"], k: int
    ) -> tuple[Float[Tensor, "N {k}"], Int64[Tensor, "N {k}"]]:
        """Cosine similarities of the k nearest of the bank, nearest first, and their labels.

        Raises:
            ValueError: k is less than 1 or more than the bank holds.
        """
        if not 1 <= k <= len(self):
            raise ValueError(
                f"k = {k} neighbours of a bank of {len(self)} labelled images. Choose k between 1 and {len(self)}."
            )
        similarities, labels = [], []
        for block in F.normalize(queries.float(), dim=1).split(QUERIES_PER_BLOCK):
            nearest = block.new_full((len(block), k), -torch.inf)
            nearest_labels = self.labels.new_zeros(len(block), k)
            for bank, bank_labels in zip(
                self.features.split(BANK_PER_BLOCK), self.labels.split(BANK_PER_BLOCK), strict=True
            ):
                best, where = (block @ bank.mT).topk(min(k, len(bank)), dim=1)
                candidates = torch.cat([nearest, best], dim=1)
                candidate_labels = torch.cat([nearest_labels, bank_labels[where]], dim=1)
                nearest, kept = candidates.topk(k, dim=1)
                nearest_labels = candidate_labels.gather(1, kept)
            similarities.append(nearest)
            labels.append(nearest_labels)
        return torch.cat(similarities), torch.cat(labels)

    def votes(self, queries: Float[Tensor, "N D"], *, k: int = 20, temperature: float = 0.07) -> Float[Tensor, "N C"]:
        """Votes for every class, scaled so that the nearest neighbour casts 1.

        Raises:
            ValueError: See ``neighbours``; or the temperature is not greater than 0.
        """
        return self._votes(*self.neighbours(queries, k), temperature)

    def _votes(self, similarities: Tensor, labels: Tensor, temperature: float) -> Tensor:
        if temperature <= 0:
            raise ValueError(f"temperature = {temperature} must be greater than 0; Wu et al. take 0.07.")
        # Relative to the nearest, which changes no ranking: exp(1 / 0.01) alone would leave float32.
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        return weights.new_zeros(len(weights), self.num_classes).scatter_add_(1, labels, weights)

    def evaluate(
        self, test: Features, *, k: Sequence[int] = (20,), temperature: Sequence[float] = (0.07,)
    ) -> list[KNNResult]:
        """Accuracy at every pair of k and temperature; the neighbours are looked up once, for the largest k.

        Args:
            test: Labelled features; images with a negative label are left out.
            k: Numbers of neighbours.
            temperature: Temperatures of the votes.

        Raises:
            ValueError: See ``votes``.
        """
        queries, labels = test.labelled()
        similarities, neighbour_labels = self.neighbours(queries, max(k))
        results = []
        for size in k:
            for heat in temperature:
                votes = self._votes(similarities[:, :size], neighbour_labels[:, :size], heat)
                hits = top_hits(votes, labels)
                top1, top5 = (hits.double().mean(0)).tolist()
                results.append(
                    KNNResult(size, heat, top1, top5 if self.num_classes > 5 else None, len(self), len(labels))
                )
        return results


def top_hits(scores: Float[Tensor, "N C"], labels: Int64[Tensor, " N"]) -> Int64[Tensor, "N 2"]:
    """For every image, 1 where its class has the highest score and 1 where it is among the five highest."""
    ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices  # [N, 5]
    hit = (ranked == labels[:, None]).long()
    return torch.stack([hit[:, 0], hit.amax(1)], dim=1)
