"""Weighted k-nearest-neighbour classification (Wu et al. 2018, "Unsupervised feature learning via non-parametric
instance discrimination", section 3.4): nothing is trained, the features are judged as they are.

Which images are the nearest does not depend on how the bank is cut up, over blocks or over ranks. Matrix products find
candidates, a few more than are asked for, but their last bits depend on the matrices' shapes. So candidates are
compared by sums over each pair's products, in float64, and of equally similar images the one of the smaller number
comes first. Queries whose candidates might not be all that matter are looked up again with more of them.

Shape letters
    N  queries      M  images of the bank on this rank      K  candidates      C  classes
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from contrastive.distributed import gather, rank, world_size
from contrastive.evaluation.features import Features
from contrastive.evaluation.ranks import gather_rows, sum_over_ranks

QUERIES_PER_BLOCK = 256
BANK_PER_BLOCK = 2**16  # 64 MiB of similarities at a time, in float32; few long rows are ranked faster than many short
PRODUCTS_PER_BLOCK = 2**18  # held at a time where pairs are compared: what fits a core's cache
SPARE = 32  # candidates more than are asked for


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

    With ``over_ranks`` the bank is that of all ranks together, and stays where it is: each rank holds its own images
    (``extract_features(..., gather=False)``), has its own queries looked up by all ranks, and gets what one process
    with the whole bank would get. Every method is then called by all ranks, each with as many queries as it has, none
    included. Memory: the rank's part of the bank, normalised, and a block of similarities.

    Args:
        bank: Labelled features; images with a negative label are left out.
        num_classes: C; by default the largest label of the bank + 1.
        over_ranks: See above.

    Raises:
        ValueError: The bank has no labels, labels outside of the classes, or an image on several ranks.
    """

    def __init__(self, bank: Features, *, num_classes: int | None = None, over_ranks: bool = False) -> None:
        self.over_ranks = over_ranks
        shard = self._labelled(bank, "bank")
        shard = shard.rows(shard.index.argsort(stable=True))  # then the first of the shard has the smallest number
        assert shard.labels is not None  # _labelled has looked
        self.features = F.normalize(shard.features.float(), dim=1)  # [M, D]
        self.numbers = torch.stack([shard.index, shard.labels], dim=1)  # [M, 2]
        highest = int(self._of_all(shard.labels).max())
        self._size = int(self._sum(torch.tensor(len(shard), device=shard.index.device)))
        self.num_classes = highest + 1 if num_classes is None else num_classes
        if highest >= self.num_classes:
            raise ValueError(f"The bank has label {highest}, but num_classes is {self.num_classes}, from 0.")

    def __len__(self) -> int:
        """Images in the bank, of all ranks where it is theirs together."""
        return self._size

    @torch.no_grad()
    def neighbours(
        self, queries: Float[Tensor, "N D"], k: int
    ) -> tuple[Float[Tensor, "N {k}"], Int64[Tensor, "N {k}"]]:
        """Cosine similarities of the k nearest of the bank, nearest first, and their labels.

        Of equally similar images, that of the smaller number comes first.

        Raises:
            ValueError: k is less than 1 or more than the bank holds.
        """
        if not 1 <= k <= len(self):
            raise ValueError(
                f"k = {k} neighbours of a bank of {len(self)} labelled images. Choose k between 1 and {len(self)}."
            )
        rows = F.normalize(queries.float(), dim=1)
        if self.over_ranks:
            found = self._by_all_ranks(rows, k)
        else:
            found = [self._by_this_rank(block, k) for block in rows.split(QUERIES_PER_BLOCK)]
        similarities, numbers = (torch.cat(blocks) for blocks in zip(*found, strict=True))
        return similarities, numbers[..., 1]

    def votes(self, queries: Float[Tensor, "N D"], *, k: int = 20, temperature: float = 0.07) -> Float[Tensor, "N C"]:
        """Votes for every class, scaled so that the nearest neighbour casts 1.

        Raises:
            ValueError: See ``neighbours``; or the temperature is not greater than 0.
        """
        return self.count(*self.neighbours(queries, k), temperature=temperature)

    def count(
        self, similarities: Float[Tensor, "N k"], labels: Int64[Tensor, "N k"], *, temperature: float
    ) -> Float[Tensor, "N C"]:
        """The votes of neighbours that ``neighbours`` found, or of the first of them.

        Raises:
            ValueError: The temperature is not greater than 0.
        """
        if temperature <= 0:
            raise ValueError(f"temperature = {temperature} must be greater than 0; Wu et al. take 0.07.")
        # Relative to the nearest, which changes no ranking: exp(1 / 0.01) alone would leave float32. In float64, so
        # that classes with equal votes have equal sums, whichever vote was added first.
        weights = ((similarities - similarities[:, :1]).double() / temperature).exp()
        return weights.new_zeros(len(weights), self.num_classes).scatter_add_(1, labels, weights).float()

    def evaluate(
        self, test: Features, *, k: Sequence[int] = (20,), temperature: Sequence[float] = (0.07,)
    ) -> list[KNNResult]:
        """Accuracy at every pair of k and temperature; the neighbours are looked up once, for the largest k.

        With ``over_ranks`` each rank brings test images of its own, and all get the accuracy over those of all.

        Args:
            test: Labelled features; images with a negative label are left out.
            k: Numbers of neighbours.
            temperature: Temperatures of the votes.

        Raises:
            ValueError: See ``votes``; or the test images have no labels, or one is on several ranks.
        """
        queries = self._labelled(test, "test set")
        assert queries.labels is not None  # _labelled has looked
        num_test = int(self._sum(torch.tensor(len(queries), device=queries.index.device)))
        similarities, neighbour_labels = self.neighbours(queries.features, max(k))
        results = []
        for size in k:
            for heat in temperature:
                votes = self.count(similarities[:, :size], neighbour_labels[:, :size], temperature=heat)
                top1, top5 = (self._sum(top_hits(votes, queries.labels).sum(0)).double() / num_test).tolist()
                results.append(KNNResult(size, heat, top1, top5 if self.num_classes > 5 else None, len(self), num_test))
        return results

    def _by_all_ranks(self, rows: Tensor, k: int) -> list[tuple[Tensor, Tensor]]:
        """The k nearest of all ranks' images for this rank's rows, in blocks of all ranks' rows."""
        lengths = gather(torch.tensor([len(rows)], device=rows.device)).tolist()
        per_rank = max(1, QUERIES_PER_BLOCK // world_size())
        found = []
        for start in range(0, max(1, *lengths), per_rank):
            before = sum(min(per_rank, max(0, length - start)) for length in lengths[: rank()])
            block = rows[start : start + per_rank]
            candidates = self._by_this_rank(gather_rows(block), k)
            mine = slice(before, before + len(block))
            similarities, numbers = (gather(part[None])[:, mine].movedim(0, 1).flatten(1, 2) for part in candidates)
            order = _ranking(similarities, numbers[..., 0])[:, :k]
            found.append((similarities.gather(1, order), numbers.gather(1, order[..., None].expand(-1, -1, 2))))
        return found

    def _by_this_rank(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Similarities [N, k] and numbers [N, k, 2] of the k nearest of this rank's images; -inf where it has less."""
        here = min(k, len(self.features))
        similarities, places = self._search(rows, here, SPARE)
        numbers = F.pad(self.numbers[places], (0, 0, 0, k - here))
        return F.pad(similarities, (0, k - here), value=-torch.inf), numbers

    def _search(self, rows: Tensor, k: int, spare: int) -> tuple[Tensor, Tensor]:
        """Similarities and places, in the rank's bank, of the k nearest."""
        width = min(k + spare, len(self.features))
        rough, candidates = self._candidates(rows, width)
        exact = self._similarities(rows, candidates)
        order = _ranking(exact, candidates)[:, :k]
        similarities, places = exact.gather(1, order), candidates.gather(1, order)
        if width < len(self.features):
            # No other image is more similar than the last candidate, but for errors of the matrix product. Those of the
            # candidates tell of their size, be it that of float32 or of TensorFloat32.
            usual = math.sqrt(rows.shape[1]) * torch.finfo(torch.float32).eps
            error = 4 * (rough - exact).abs().amax(1).clamp(min=usual)
            doubtful = similarities[:, -1] <= rough[:, -1] + error
            if bool(doubtful.any()):
                similarities[doubtful], places[doubtful] = self._search(rows[doubtful], k, 4 * (k + spare))
        return similarities, places

    def _candidates(self, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The most similar by matrix products, and their places."""
        nearest, places = rows.new_full((len(rows), width), -torch.inf), self.numbers.new_zeros(len(rows), width)
        for start in range(0, len(self.features), BANK_PER_BLOCK):
            bank = self.features[start : start + BANK_PER_BLOCK]
            best, where = (rows @ bank.mT).topk(min(width, len(bank)), dim=1)
            nearest, kept = torch.cat([nearest, best], dim=1).topk(width, dim=1)
            places = torch.cat([places, where + start], dim=1).gather(1, kept)
        return nearest, places

    def _similarities(self, rows: Tensor, places: Tensor) -> Tensor:
        """Of each row and the images at its places, each pair by itself."""
        size = max(1, PRODUCTS_PER_BLOCK // max(1, places.shape[1] * rows.shape[1]))
        blocks = []
        for block, where in zip(rows.split(size), places.split(size), strict=True):
            parts = []
            for some in where.split(max(1, PRODUCTS_PER_BLOCK // rows.shape[1]), dim=1):
                images = self.features.index_select(0, some.flatten()).view(*some.shape, rows.shape[1])  # [n, K, D]
                parts.append(images.mul_(block[:, None]).sum(2, dtype=torch.float64).float())
            blocks.append(torch.cat(parts, dim=1))
        return torch.cat(blocks)

    def _labelled(self, images: Features, role: str) -> Features:
        """The images of known class."""
        known = images.rows(images.known)
        if int(self._sum(torch.tensor(len(known), device=known.index.device))) == 0:
            images.labelled()  # says what is missing
        numbers = self._of_all(known.index).sort().values
        repeated = numbers[1:][numbers[1:] == numbers[:-1]]
        if self.over_ranks and len(repeated):
            raise ValueError(
                f"Image {int(repeated[0])} of the {role} is on several ranks, and would count as often. Extract "
                "features with gather=False, which leaves each image on one, or leave over_ranks out."
            )
        return known if known.labels is not None else Features(known.features, known.index, known.index)

    def _of_all(self, local: Tensor) -> Tensor:
        return gather_rows(local) if self.over_ranks else local

    def _sum(self, local: Tensor) -> Tensor:
        return sum_over_ranks(local) if self.over_ranks else local


def _ranking(similarities: Tensor, numbers: Tensor) -> Tensor:
    """Columns by falling similarity, of equal ones that of the smaller number first, [N, K]."""
    by_number = numbers.argsort(dim=1)
    by_similarity = similarities.gather(1, by_number).argsort(dim=1, descending=True, stable=True)
    return by_number.gather(1, by_similarity)


def top_hits(scores: Float[Tensor, "N C"], labels: Int64[Tensor, " N"]) -> Int64[Tensor, "N 2"]:
    """For every image, 1 where its class has the highest score and 1 where it is among the five highest."""
    ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices  # [N, 5]
    hit = (ranked == labels[:, None]).long()
    return torch.stack([hit[:, 0], hit.amax(1)], dim=1)
