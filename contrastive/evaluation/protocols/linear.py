"""Linear classifiers solved to their optimum on unaugmented images: logistic regression, least squares, LDA."""

from dataclasses import dataclass
from typing import Literal

from contrastive.evaluation.closed_form import lda
from contrastive.evaluation.linear import (
    HELD_OUT,
    L2_GRID,
    Chosen,
    Penalty,
    choose_logistic,
    choose_ridge,
    labelled_test,
)
from contrastive.evaluation.logistic import TOLERANCE
from contrastive.evaluation.protocols.protocol import Evaluation, EvaluationProtocol, Progress, Task, classification


@dataclass(frozen=True, kw_only=True)
class LogisticProtocol(EvaluationProtocol):
    """Multinomial logistic regression, its L2 strength chosen on a held-out tenth of the training images.

    Attributes:
        l2: The strengths that compete.
        penalty: What they stand for; see ``choose_logistic``.
        scaled: Whether features are divided by one number first; see ``choose_logistic``.
        tolerance: See ``LogisticSweep``.
        max_iterations: See ``LogisticSweep``; what it stops short gives a ``NotConvergedWarning``, and says so.
    """

    l2: tuple[float, ...] = L2_GRID
    penalty: Penalty = "mean"
    scaled: bool = True
    tolerance: float = TOLERANCE
    max_iterations: int = 1000

    def evaluate(self, task: Task, *, seed: int = 0, progress: Progress | None = None) -> Evaluation:
        """See ``EvaluationProtocol``."""
        chosen = choose_logistic(
            task.features("train"),
            task.num_classes,
            l2=self.l2,
            penalty=self.penalty,
            scaled=self.scaled,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            seed=seed,
        )
        return _evaluation(chosen, task)


@dataclass(frozen=True, kw_only=True)
class RidgeProtocol(EvaluationProtocol):
    """Least squares to one-hot targets, its L2 strength chosen on a held-out tenth of the training images.

    Attributes:
        l2: The strengths that compete, of features of mean square 1; see ``ridge``.
    """

    l2: tuple[float, ...] = L2_GRID

    def evaluate(self, task: Task, *, seed: int = 0, progress: Progress | None = None) -> Evaluation:
        """See ``EvaluationProtocol``."""
        return _evaluation(choose_ridge(task.features("train"), task.num_classes, l2=self.l2, seed=seed), task)


@dataclass(frozen=True, kw_only=True)
class LDAProtocol(EvaluationProtocol):
    """Linear discriminant analysis, in which nothing is chosen.

    Attributes:
        shrinkage: Of the covariance; see ``lda``.
    """

    shrinkage: float | Literal["auto"] = "auto"

    def evaluate(self, task: Task, *, seed: int = 0, progress: Progress | None = None) -> Evaluation:
        """See ``EvaluationProtocol``."""
        features, labels = task.features("train").labelled()
        classifier = lda(features, labels, task.num_classes, shrinkage=self.shrinkage)
        test, test_labels = labelled_test(task.features("val"), task.num_classes)
        scores, confusion = classification(classifier.logits(test), test_labels)
        return Evaluation(scores=scores, num_train=len(labels), num_test=len(test_labels), confusion=confusion)


def _evaluation(chosen: Chosen, task: Task) -> Evaluation:
    features, labels = labelled_test(task.features("val"), task.num_classes)
    scores, confusion = classification(chosen.logits(features), labels)
    return Evaluation(
        scores=scores,
        num_train=chosen.num_train,
        num_test=len(labels),
        chosen={"l2": chosen.l2},
        at_edge=("l2",) if chosen.l2_at_edge else (),
        details={
            "held_out": HELD_OUT,
            "held_out_top1": [list(pair) for pair in chosen.held_out_top1.items()],
            "relative_excess_loss": chosen.solved.relative_excess_loss,
            "converged": chosen.converged,
            "not_converged_l2": list(chosen.slow),
            "feature_scale": float(chosen.scale),
        },
        confusion=confusion,
    )


LINEAR = LogisticProtocol(
    source="Logistic regression at its optimum; features of mean square 1, which makes the grid, two strengths a "
    "decade, fit any encoder. This project's own choice."
)

SIMCLR_TRANSFER = LogisticProtocol(
    source="Chen et al. 2020, SimCLR, appendix B.8, as Kornblith et al. 2019: 45 strengths of the penalty, spaced "
    "evenly in their logarithm from 1e-6 to 1e5; features as the encoder gives them; the best strength on held-out "
    "training images, fitted again on all. That the penalty stands beside the sum of the images' losses, without a "
    "half, and the 1000 iterations are from linear_eval/linear_eval.py of google-research/google-research. Published "
    "numbers take the validation images that some data sets have; here a tenth of the training images is held out.",
    l2=tuple(10.0 ** (-6 + 11 * step / 44) for step in range(45)),
    penalty="sum",
    scaled=False,
)

RIDGE = RidgeProtocol(source="Least squares at its optimum, in closed form; the grid of `linear`. This project's own.")

LDA = LDAProtocol(
    source="Covariance shrunk as by Ledoit & Wolf 2004, class by class; scikit-learn's LinearDiscriminantAnalysis with "
    "solver lsqr and shrinkage auto."
)
