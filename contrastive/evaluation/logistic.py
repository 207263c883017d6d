"""Multinomial logistic regression at its optimum, for a whole grid of L2 strengths at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastive.evaluation.closed_form import LinearClassifier
from contrastive.evaluation.features import check_finite
from contrastive.evaluation.lbfgs import Minimum, minimise

TOLERANCE = 1e-5  # of the loss, relative: far less than accuracies can tell
LEAST_CURVATURE = 1e-3  # of Boehning's bound; what images are right about beyond doubt has next to none
LOWEST_LOGIT = -64  # beside the largest; its exponential is nothing beside 1, and below -87 are denormals, slow on CPUs
LOGITS_PER_BLOCK = 2**22  # logits held at a time: 16 MiB in float32
WEIGHTS_AT_ONCE = 2**23  # of all strengths solved together; L-BFGS keeps some thirty such tensors: 1 GiB in float32


@dataclass(frozen=True)
class LogisticSolutions:
    """One fitted classifier a strength, S of them, each with the certificate of its optimum: the norm of the gradient,
    and how far the loss can at most lie above its minimum.

    Attributes:
        l2: The strengths.
        weights: [S, C, D].
        biases: [S, C]; they sum to zero over the classes, but for classes without an image, which get -inf: their
            optimum lies there, with weights of 0.
        loss: The minimised objective, penalty included, float64 [S].
        gradient_norm: Euclidean norm of the objective's gradient at the solution, [S].
        convexity: How much the objective curves in every direction, at least, [S]: ``l2``, or the rarest class's share
            of the images where that is less, as the intercepts are not penalised.
        iterations: Iterations taken, [S].
        converged: Whether ``excess_loss`` has come down to ``tolerance`` times the loss, [S].
    """

    l2: Float[Tensor, " S"]
    weights: Float[Tensor, "S C D"]
    biases: Float[Tensor, "S C"]
    loss: Float[Tensor, " S"]
    gradient_norm: Float[Tensor, " S"]
    convexity: Float[Tensor, " S"]
    iterations: Int64[Tensor, " S"]
    converged: Bool[Tensor, " S"]

    @property
    def excess_loss(self) -> Float[Tensor, " S"]:
        """The certificate: no ``loss`` lies further above its minimum, |gradient|^2 / (2 convexity), float64 [S].

        It follows from strong convexity (Boyd & Vandenberghe 2004, equation 9.9), which the penalty gives the weights;
        for the intercepts it presumes that the images curve the loss by at least ``convexity`` along them, as they do
        wherever the penalty leaves little but intercepts. For weak penalties it is far above the true excess.
        """
        return self.gradient_norm.double() ** 2 / (2 * self.convexity)

    @property
    def relative_excess_loss(self) -> Float[Tensor, " S"]:
        """``excess_loss`` as a fraction of ``loss``, float64 [S]; 0 where both are."""
        return torch.where(self.excess_loss > 0, self.excess_loss / self.loss, 0)

    def classifiers(self) -> list[LinearClassifier]:
        """Each strength's."""
        return [LinearClassifier(*parts) for parts in zip(self.weights, self.biases, strict=True)]

    def logits(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "S N C"]:
        """Every classifier's logits."""
        return torch.baddbmm(self.biases[:, None], features.float().expand(len(self.l2), -1, -1), self.weights.mT)


class LogisticSweep:
    """Multinomial logistic regression for a grid of strengths at once, without autograd.

    It minimises

        mean over n of CE(softmax(W x_n + b), y_n) + l2 / 2 * |W|^2,

    the intercept b free. It is scikit-learn's ``LogisticRegression(C=1 / (l2 * N))``; of two classes, for which that
    has one row of weights, the difference of these two, with C = 2 / (l2 * N).

    The features are centred and rotated into the eigenbasis of their covariance once: the penalty does not change
    under a rotation and the intercept absorbs the mean, so the problem is the same, and Boehning's bound on its
    Hessian, (I - 11'/C)/2 (x) X'X/N (Boehning 1992, "Multinomial logistic regression algorithm"), becomes nearly
    diagonal. Its diagonal preconditions L-BFGS, whose every iteration is two matrix products for the whole grid; after
    some iterations the Hessian's own diagonal does.

    Args:
        l2: The strengths, each > 0.
        tolerance: A strength has converged once its loss is certainly within this fraction of the minimum.
        max_iterations: Iterations in float32, and again in float64 for strengths that rounding keeps from the optimum;
            what has not converged after that is returned as it is, and says so.
    """

    def __init__(self, l2: Sequence[float], *, tolerance: float = TOLERANCE, max_iterations: int = 1000) -> None:
        if not l2 or min(l2) <= 0:
            raise ValueError(
                f"l2 strengths must be greater than 0, got {list(l2)}: without a penalty, separable classes have no "
                "optimum. For nearly none take 1e-8."
            )
        self.l2 = tuple(l2)
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    @torch.no_grad()
    def fit(
        self, features: Float[Tensor, "N D"], labels: Int64[Tensor, " N"], num_classes: int | None = None
    ) -> LogisticSolutions:
        """Solve on the features' device.

        Args:
            features: Any floating dtype.
            labels: From 0 to ``num_classes`` - 1; a class may be absent.
            num_classes: C; by default the largest label + 1.

        Raises:
            ValueError: Features are not finite, or labels are missing or outside of the classes.
        """
        if num_classes is None:
            num_classes = 1 + int(labels.max()) if len(labels) else 0
        _check(features, labels, num_classes)
        present, labels = labels.unique(return_inverse=True)  # an absent class would have no finite optimum
        num_weights = len(present) * (features.shape[1] + 1)
        l2 = torch.tensor(self.l2, dtype=torch.float64, device=features.device)
        with _full_precision():
            in_float32 = _Problem(features.float(), labels)
            in_float64 = cache(lambda: _Problem(features.double(), labels))  # made only if a strength needs it
            groups = [
                self._solutions(in_float32, in_float64, some, present, num_classes)
                for some in l2.split(max(1, WEIGHTS_AT_ONCE // num_weights))
            ]
        columns = ([getattr(group, field.name) for group in groups] for field in fields(LogisticSolutions))
        return LogisticSolutions(*map(torch.cat, columns))

    def _solutions(
        self,
        in_float32: "_Problem",
        in_float64: Callable[[], "_Problem"],
        l2: Tensor,
        present: Tensor,
        num_classes: int,
    ) -> LogisticSolutions:
        """Of strengths that are solved together; the problem has the classes that are present."""
        width = in_float32.design.shape[1] - 1
        found = self._solve(in_float32, l2, l2.new_zeros(len(l2), len(present), width + 1))
        if not bool(found.converged.all()):
            rest = ~found.converged
            refined = self._solve(in_float64(), l2[rest], found.point[rest])
            for name in ("point", "value", "gradient_norm", "converged"):
                getattr(found, name)[rest] = getattr(refined, name)
            found.iterations[rest] += refined.iterations
        slopes, intercepts = found.point[..., :-1].float(), found.point[..., -1].float()
        return LogisticSolutions(
            l2,
            slopes.new_zeros(len(l2), num_classes, width).index_copy_(1, present, slopes),
            slopes.new_full((len(l2), num_classes), -torch.inf).index_copy_(1, present, intercepts),
            found.value,
            found.gradient_norm,
            in_float32.convexity(l2),
            found.iterations,
            found.converged,
        )

    def _solve(self, problem: "_Problem", l2: Tensor, start: Tensor) -> Minimum:
        """Minimise from ``start``, float64 [S, C, D+1] for the features as they came, in the problem's precision."""
        l2 = l2.to(problem.design.dtype)
        minimum = minimise(
            lambda weights, active: problem.loss_and_gradient(weights, l2[active]),
            start=problem.rotated(start),
            curvature=problem.curvature_bound(l2),
            curvature_at=lambda weights, active: problem.curvature(weights, l2[active]),
            convexity=problem.convexity(l2),
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        return replace(minimum, point=problem.unrotated(minimum.point), gradient_norm=minimum.gradient_norm.double())


class _Problem:
    """Centred, rotated features with a column of ones; weights [S, C, D + 1] whose last column is the intercept."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.mean = features.mean(0)
        centred = features - self.mean
        covariance = (centred.mT @ centred).double() / len(features)
        spectrum, rotation = torch.linalg.eigh(covariance)
        self.rotation = rotation.to(features.dtype)
        self.spectrum = spectrum.clamp(min=0).to(features.dtype)  # [D]
        ones = features.new_ones(len(features), 1)
        self.design = torch.cat([centred @ self.rotation, ones], dim=1)  # [N, D+1]
        self.labels = labels

    def convexity(self, l2: Tensor) -> Tensor:
        """See ``LogisticSolutions``."""
        return l2.clamp(max=float(self.labels.bincount().min()) / len(self.labels))

    def curvature_bound(self, l2: Tensor) -> Tensor:
        """The diagonal of Boehning's bound, penalty included: [S, 1, D+1]."""
        penalised = self.spectrum / 2 + l2[:, None]
        intercept = torch.full_like(l2, 0.5)[:, None]
        return torch.cat([penalised, intercept], dim=1)[:, None]

    def curvature(self, weights: Tensor, l2: Tensor) -> Tensor:
        """The Hessian's own diagonal at weights [A, C, D+1], no less than a part of the bound: [A, 1, D+1].

        The mean over the classes: weights that sum to zero over them keep doing so, and only the penalty curves the
        objective where they do not.
        """
        num_active, num_classes, _ = weights.shape
        flat = weights.flatten(0, 1)
        bound = self.curvature_bound(l2)
        diagonal = torch.zeros_like(bound[:, 0])
        for rows, _ in self._blocks(len(flat)):
            logits = (flat @ rows.mT).view(num_active, num_classes, len(rows))
            shares = (logits - logits.amax(1, keepdim=True)).clamp_(min=LOWEST_LOGIT).softmax(1)
            diagonal.addmm_((shares * (1 - shares)).mean(1), rows.square())
        diagonal.div_(len(self.design))[:, :-1] += l2[:, None]
        return torch.maximum(diagonal[:, None], LEAST_CURVATURE * bound)

    def loss_and_gradient(self, weights: Tensor, l2: Tensor) -> tuple[Tensor, Tensor]:
        """The objectives, float64 [A], and their gradients [A, C, D+1], at weights [A, C, D+1]."""
        num_active, num_classes, _ = weights.shape
        flat = weights.flatten(0, 1)  # [AC, D+1]
        loss = torch.zeros(num_active, dtype=torch.float64, device=weights.device)
        gradient = torch.zeros_like(flat)
        for rows, labels in self._blocks(len(flat)):
            own = labels.expand(num_active, 1, -1)  # [A, 1, n]
            logits = (flat @ rows.mT).view(num_active, num_classes, len(rows))
            logits -= logits.amax(1, keepdim=True)
            own_logits = logits.gather(1, own)
            residuals = logits.clamp_(min=LOWEST_LOGIT).exp_()
            own_mass = residuals.gather(1, own)
            residuals.scatter_(1, own, 0)
            other_mass = residuals.sum(1, keepdim=True)
            loss += F.softplus(other_mass.log() - own_logits, threshold=40).sum((1, 2), dtype=torch.float64)
            # The own class's residual, p - 1, is minus the others' probability: that keeps a near-perfect fit's digits.
            total = own_mass + other_mass
            residuals.div_(total).scatter_(1, own, -other_mass / total)
            gradient.addmm_(residuals.view(-1, len(rows)), rows)
        penalty = weights * l2[:, None, None]
        penalty[..., -1] = 0
        loss = loss / len(self.design) + (weights * penalty).sum((1, 2), dtype=torch.float64) / 2
        return loss, gradient.view_as(weights).div_(len(self.design)).add_(penalty)

    def _blocks(self, num_logits: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the design and their labels, as many at a time as ``num_logits`` logits of each allow."""
        block = max(1, LOGITS_PER_BLOCK // num_logits)
        return zip(self.design.split(block), self.labels.split(block), strict=True)

    def rotated(self, weights: Tensor) -> Tensor:
        """Weights [S, C, D+1] on the features as they came, as weights on this design, in its dtype."""
        slopes, mean = weights[..., :-1], self.mean.double()
        intercepts = weights[..., -1:] + (slopes @ mean)[..., None]
        return torch.cat([slopes @ self.rotation.double(), intercepts], dim=-1).to(self.design.dtype)

    def unrotated(self, weights: Tensor) -> Tensor:
        """The way back, in float64."""
        slopes = weights[..., :-1].double() @ self.rotation.double().mT
        intercepts = weights[..., -1:].double() - (slopes @ self.mean.double())[..., None]
        return torch.cat([slopes, intercepts], dim=-1)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products in full float32 and outside of autocast: gradients rounded to TF32 stall far from the optimum."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _check(features: Tensor, labels: Tensor, num_classes: int) -> None:
    check_finite(features)
    if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        span = f"run from {int(labels.min())} to {int(labels.max())}" if len(labels) else "are missing"
        raise ValueError(
            f"Labels must run from 0 to num_classes - 1 = {num_classes - 1}, but they {span}. "
            "Set num_classes, and leave images without a label out."
        )
