"""Linear classifiers that need no iteration: linear discriminant analysis and ridge regression on one-hot targets.

Both follow from the classes' counts, means and scatter, which are sums over images: ranks that hold a share of the
images each need only add theirs up. All sums are in float64. Absent classes get weights of 0 and a bias of -inf.

Shape letters
    N  images      D  feature width      C  classes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastive.evaluation.moments import ROWS_PER_BLOCK, scatter
from contrastive.evaluation.ranks import sum_over_ranks


@dataclass(frozen=True)
class LinearClassifier:
    """The class with the largest logit is predicted.

    Attributes:
        weights: [C, D].
        biases: [C]; -inf for classes that had no image.
    """

    weights: Float[Tensor, "C D"]
    biases: Float[Tensor, " C"]

    def logits(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """The features' products with the weights, plus the biases."""
        return torch.addmm(self.biases, features.float(), self.weights.mT)

    def predict(self, features: Float[Tensor, "N D"]) -> Int64[Tensor, " N"]:
        """The likeliest class of each."""
        return self.logits(features).argmax(1)

    def accuracy(
        self, features: Float[Tensor, "N D"], labels: Int64[Tensor, " N"], *, k: int = 1, over_ranks: bool = False
    ) -> float:
        """Fraction of the images whose class is among the k first; negative labels are left out.

        Args:
            features: Of test images.
            labels: Their classes.
            k: At most C.
            over_ranks: Each rank passes images of its own, and all get the accuracy on all.

        Raises:
            ValueError: No image has a label.
        """
        counts = torch.zeros(2, dtype=torch.int64, device=features.device)  # hits, labelled images
        for rows, targets in zip(features.split(ROWS_PER_BLOCK), labels.split(ROWS_PER_BLOCK), strict=True):
            first = self.logits(rows).topk(k, dim=1).indices
            counts += torch.stack([(first == targets[:, None]).sum(), (targets >= 0).sum()])
        hits, total = _total(counts, over_ranks).tolist()
        if total == 0:
            raise ValueError("No test image has a label of 0 or more, and accuracy needs one. Pass labelled images.")
        return float(hits / total)


@torch.no_grad()
def lda(
    features: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    num_classes: int,
    *,
    shrinkage: float | Literal["auto"] = "auto",
    over_ranks: bool = False,
) -> LinearClassifier:
    """Linear discriminant analysis: Gaussian classes of one covariance, each as likely as it is frequent.

    It is scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=...)``, with the same posteriors; logits
    are about the mean of all images, which takes one number off all logits of an image, and cancellation with it.

    The covariance is the mean of the classes', each over n, not n - 1, weighted by frequency. A number s shrinks it to
    (1 - s) S + s (tr S / D) I, which takes two passes over the features: means, then scatter. ``"auto"`` shrinks the
    *correlations* of each class by an s of its own, Ledoit & Wolf's (2004, "A well-conditioned estimator for
    large-dimensional covariance matrices", section 3), and gives the scales back; that is scikit-learn's convention,
    and the value does not change with the scale of any feature. Its s takes fourth moments of the standardised
    features, a third pass, and over ranks one D x D sum for each class instead of one for all.

    Args:
        features: Any floating dtype.
        labels: Below ``num_classes``; images with a negative one are left out, and a class may be absent.
        num_classes: C.
        shrinkage: From 0 to 1, or "auto". At 0 a singular covariance is inverted on the directions it has.
        over_ranks: Each rank passes images of its own, and all get the classifier of all. Features that
            ``extract_features`` has gathered are complete on every rank: leave it False.

    Raises:
        ValueError: Features are not finite, labels are outside of the classes or all negative, or shrinkage is outside
            of [0, 1]. Where any rank is at fault about its rows, all raise.
    """
    if shrinkage != "auto" and not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage = {shrinkage} must be 'auto' or lie from 0 (none) to 1 (a multiple of I).")
    classes = _Classes(features, labels, num_classes, over_ranks)
    covariance = classes.ledoit_wolf() if shrinkage == "auto" else _shrunk(classes.covariance(), shrinkage)
    slopes = classes.offsets @ torch.linalg.pinv(covariance, hermitian=True)
    intercepts = classes.shares.log() - (slopes * (classes.means + classes.mean)).sum(1) / 2
    return classes.classifier(slopes, intercepts)


@torch.no_grad()
def ridge(
    features: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    num_classes: int,
    l2: Sequence[float],
    *,
    over_ranks: bool = False,
) -> list[LinearClassifier]:
    """Least squares to one-hot targets, one classifier for each strength, from one eigendecomposition.

    It minimises

        mean over n of |W x_n + b - onehot(y_n)|^2 + l2 |W|^2,

    the intercept b free: scikit-learn's ``Ridge(alpha=l2 * N)`` on one-hot targets, and the predictions of its
    ``RidgeClassifier``, whose targets are -1 and 1.

    Args:
        features: Any floating dtype.
        labels: Below ``num_classes``; images with a negative one are left out, and a class may be absent.
        num_classes: C.
        l2: The strengths, each > 0.
        over_ranks: See ``lda``.

    Raises:
        ValueError: A strength is not greater than 0; or see ``lda``.
    """
    if not l2 or min(l2) <= 0:
        raise ValueError(
            f"l2 strengths must be greater than 0, got {list(l2)}: without a penalty, fewer images than dimensions "
            "have no single optimum. For nearly none take 1e-8."
        )
    classes = _Classes(features, labels, num_classes, over_ranks)
    weighted = classes.shares[:, None] * classes.offsets  # [C, D]; the targets' covariance with the features
    spectrum, rotation = torch.linalg.eigh(classes.covariance() + weighted.mT @ classes.offsets)
    projected = weighted @ rotation
    found = []
    for strength in l2:
        slopes = projected / (spectrum.clamp(min=0) + strength) @ rotation.mT
        found.append(classes.classifier(slopes, classes.shares - slopes @ classes.mean))
    return found


class _Classes:
    """Counts, means and covariances of the classes that have images, in float64, K of them."""

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int, over_ranks: bool) -> None:
        _check(features, labels, num_classes, over_ranks)
        self.num_classes, self.over_ranks = num_classes, over_ranks
        local = torch.bincount(labels[labels >= 0], minlength=num_classes)
        by_class = labels.argsort(stable=True)[len(labels) - int(local.sum()) :].split(local.tolist())
        counts = _total(local, over_ranks)
        self.present = counts.nonzero()[:, 0]  # [K], the same on every rank
        self.members = [by_class[label] for label in self.present.tolist()]
        self.features = features
        self.counts = counts[self.present].double()
        sums = torch.stack([features[rows].sum(0, dtype=torch.float64) for rows in self.members])
        self.means = _total(sums, over_ranks) / self.counts[:, None]  # [K, D]
        self.shares = self.counts / self.counts.sum()
        self.mean = self.shares @ self.means
        self.offsets = self.means - self.mean

    def covariance(self) -> Tensor:
        """Within the classes, [D, D]."""
        within = self.means.new_zeros(self.features.shape[1], self.features.shape[1])
        for rows, mean in zip(self.members, self.means, strict=True):
            within += scatter(self.features[rows], mean[None])
        return _total(within, self.over_ranks) / self.counts.sum()

    def ledoit_wolf(self) -> Tensor:
        """The same, the correlations of each class shrunk by as much as its images leave in doubt."""
        width = self.features.shape[1]
        within = self.means.new_zeros(width, width)
        for rows, mean, count, share in zip(self.members, self.means, self.counts, self.shares, strict=True):
            own = self.features[rows]
            covariance = _total(scatter(own, mean[None]), self.over_ranks) / count
            variance = covariance.diagonal()
            # What rounding of the mean leaves of a constant feature is no variance to standardise.
            constant = variance <= (torch.finfo(torch.float64).eps * count * mean).square()
            scale = torch.where(constant, 1, variance.sqrt())
            correlation = covariance / scale.outer(scale)
            fourth = self.means.new_zeros(())
            for block in own.split(ROWS_PER_BLOCK):
                fourth += ((block.double() - mean) / scale).square().sum(1).square().sum()
            in_doubt = (_total(fourth, self.over_ranks) / count - correlation.square().sum()) / count  # D b^2 there
            spread = correlation.square().sum() - correlation.diagonal().mean().square() * width  # D d^2
            amount = torch.where(spread > 0, (in_doubt / spread).clamp(0, 1), 0)
            within += share * _shrunk(correlation, amount) * scale.outer(scale)
        return within

    def classifier(self, slopes: Tensor, intercepts: Tensor) -> LinearClassifier:
        """Slopes [K, D] and intercepts [K] among those of all classes."""
        weights = slopes.new_zeros(self.num_classes, slopes.shape[1]).index_copy_(0, self.present, slopes)
        biases = slopes.new_full((self.num_classes,), -torch.inf).index_copy_(0, self.present, intercepts)
        return LinearClassifier(weights.float(), biases.float())


def _shrunk(covariance: Tensor, amount: Tensor | float) -> Tensor:
    target = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device) * covariance.diagonal().mean()
    return (1 - amount) * covariance + amount * target


def _total(local: Tensor, over_ranks: bool) -> Tensor:
    return sum_over_ranks(local) if over_ranks else local


def _check(features: Tensor, labels: Tensor, num_classes: int, over_ranks: bool) -> None:
    faults = [(~features.isfinite()).any(1).sum(), (labels >= num_classes).sum(), (labels >= 0).sum()]
    broken, outside, labelled = _total(torch.stack(faults), over_ranks).tolist()
    if broken:
        raise ValueError(
            f"{broken} feature vectors hold infinities or NaN, so no classifier can be fitted. "
            "The encoder has diverged, or its 16-bit outputs have overflowed."
        )
    if outside:
        raise ValueError(f"{outside} labels exceed num_classes - 1 = {num_classes - 1}. Set num_classes to cover them.")
    if labelled == 0:
        raise ValueError(
            "No training image has a label of 0 or more, and a classifier needs some. Pass labelled images."
        )
