"""Few labels: logistic regression on a share of the training images, or on some of each class, drawn several times."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from contrastive.evaluation.features import Features
from contrastive.evaluation.linear import L2_GRID, choose_logistic, labelled_test
from contrastive.evaluation.logistic import LogisticSweep
from contrastive.evaluation.protocols.protocol import Evaluation, EvaluationProtocol, Progress, Task, classification

PER_CLASS_TO_CHOOSE = 10  # images a class, on average, of which a tenth can be held out


@dataclass(frozen=True, kw_only=True)
class FewLabelProtocol(EvaluationProtocol):
    """Logistic regression at its optimum on few labelled images; mean and standard deviation over several draws.

    Which images are labelled depends on the seed and the labels alone: they are the same for every encoder. Of one
    draw, fewer images are among more.

    With 10 images a class or more, on average, the L2 strength is chosen on a held-out tenth of the labelled images, as
    by the protocol ``linear``. With fewer it is fixed, ``few_l2`` over their number, on features of which each image's
    own mean is subtracted and which are then divided by their length.

    Attributes:
        shares: Of each class's images, at least one of each.
        shots: Images of each class; all there are, where there are fewer.
        draws: How often images are drawn.
        l2: Strengths that compete where one is chosen; see ``choose_logistic``.
        few_l2: See above.
    """

    shares: tuple[float, ...] = (0.01, 0.1)
    shots: tuple[int, ...] = (1, 2, 5)
    draws: int = 3
    l2: tuple[float, ...] = L2_GRID
    few_l2: float = 0.0025

    def evaluate(self, task: Task, *, seed: int = 0, progress: Progress | None = None) -> Evaluation:
        """See ``EvaluationProtocol``.

        The scores are ``top1 at 1 %``, ``top1 at 10 %``, ``top1 at 1 a class`` and so on. ``num_train`` counts the
        labelled images of the largest amount.
        """
        train = task.features("train")
        train = train.rows(train.known)
        _, labels = train.labelled()
        queries, test_labels = labelled_test(task.features("val"), task.num_classes)
        amounts: list[int | float] = [*self.shares, *self.shots]
        scores, spread, chosen = {}, {}, {}
        details: dict[str, Any] = {"converged": True}
        at_edge, num_train = [], 0
        for number, amount in enumerate(amounts):
            found, picked = [], []
            for draw in range(self.draws):
                if progress is not None:
                    progress("draws", number * self.draws + draw, len(amounts) * self.draws)
                own_seed = seed * self.draws + draw
                labelled = train.rows(draw_labels(labels, amount, seed=own_seed))
                num_train = max(num_train, len(labelled))
                logits, facts = self._fit(labelled, queries, task.num_classes, own_seed)
                found.append(classification(logits, test_labels)[0]["top1"])
                picked.append(facts)
            name = f"top1 at {amount:.3g} a class" if isinstance(amount, int) else f"top1 at {100 * amount:.3g} %"
            values = torch.tensor(found, dtype=torch.float64)
            scores[name] = float(values.mean())
            if self.draws > 1:
                spread[name] = float(values.std())
            details[name] = {"draws": found, "fits": picked}
            details["converged"] &= all(facts["converged"] for facts in picked)
            if any(facts["chosen"] for facts in picked):
                chosen[f"l2 for {name}"] = [facts["l2"] for facts in picked]
                if any(facts["at_edge"] for facts in picked):
                    at_edge.append(f"l2 for {name}")
        if progress is not None:
            progress("draws", len(amounts) * self.draws, len(amounts) * self.draws)
        return Evaluation(
            scores=scores,
            num_train=num_train,
            num_test=len(test_labels),
            chosen=chosen,
            at_edge=tuple(at_edge),
            details=details,
            spread=spread,
        )

    def _fit(self, train: Features, queries: Tensor, num_classes: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
        """Logits of the queries, and what is to be known of the classifier."""
        features, labels = train.labelled()
        if len(labels) >= PER_CLASS_TO_CHOOSE * len(labels.unique()):
            found = choose_logistic(train, num_classes, l2=self.l2, seed=seed)
            facts = {"l2": found.l2, "chosen": True, "at_edge": found.l2_at_edge, "converged": found.converged}
            return found.logits(queries), {"num_labelled": len(labels), **facts}
        l2 = self.few_l2 / len(labels)
        solved = LogisticSweep([l2]).fit(_unit(features), labels, num_classes)
        facts = {"l2": l2, "chosen": False, "at_edge": False, "converged": bool(solved.converged.all())}
        return solved.logits(_unit(queries))[0], {"num_labelled": len(labels), **facts}


def draw_labels(labels: Int64[Tensor, " N"], amount: int | float, *, seed: int) -> Int64[Tensor, " M"]:
    """Places, ascending, of the images that are labelled: so many of each class, or this share, but at least one.

    Args:
        labels: All >= 0.
        amount: An int is a number of images of each class, a float the share of each class's images, rounded.
        seed: Of the draw; with one seed fewer images are among more.

    Raises:
        ValueError: The number is below 1, or the share not in (0, 1].
    """
    if amount < 1 if isinstance(amount, int) else not 0 < amount <= 1:
        raise ValueError(
            f"{amount} of each class's images cannot be labelled. Take an int of 1 or more as their number, or a float "
            "in (0, 1] as their share."
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    order = order[labels[order].argsort(stable=True)]  # by class, shuffled within
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(labels), device=labels.device) - starts[labels[order]]  # within its class
    quota = counts.clamp(max=amount) if isinstance(amount, int) else (amount * counts).round().clamp(min=1)
    return order[place < quota[labels[order]]].sort().values


def _unit(features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    return F.normalize(features - features.mean(1, keepdim=True), dim=1)


FEW_LABEL = FewLabelProtocol(
    source="1 % and 10 % of each class's labels: Chen et al. 2020, SimCLR, section 4.2. 1, 2 and 5 labels a class, "
    "three draws, regularization 0.0025 over the number of images on centred rows of length 1: Assran et al. 2022, "
    "MSN; logistic_eval.py and the command in the README of facebookresearch/msn, where the intercept is left out and "
    "the solver stops after 300 epochs. Strengths chosen on held-out labelled images: this project's own choice."
)
