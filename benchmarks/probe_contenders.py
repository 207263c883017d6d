"""Who solves what ``bench_probes`` measures: our probes and our rivals', each a function of the same features."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive.evaluation import Features, KNNClassifier, LogisticSweep

TEMPERATURE = 0.1  # lightly's own
EXCESS = 1e-5  # relative, of who is called converged
MOST_ITERATIONS = 1000  # of rivals that are to converge; weak penalties would take hours
RIVALS = {"scikit-learn": "sklearn", "scipy": "scipy", "lightly": "lightly", "faiss-cpu": "faiss"}


@dataclass(frozen=True)
class Labelled:
    """Features of mean 0 and mean square 1 over the training images, float32 [N, D], and labels, int64 [N]."""

    features: Tensor
    labels: Tensor

    def some(self, count: int, seed: int) -> "Labelled":
        """So many of them at random, or all."""
        which = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))[:count]
        return Labelled(self.features[which], self.labels[which])


@dataclass(frozen=True)
class Problem:
    """What is solved: training images, a class for each label, strengths."""

    train: Labelled
    num_classes: int
    l2: Sequence[float]


@dataclass(frozen=True)
class Solved:
    """Weights [S, C, D] and biases [S, C], and how many strengths the solver itself calls converged."""

    weights: Tensor
    biases: Tensor
    converged: int


Solver = Callable[[Problem], Solved]


def ours(problem: Problem, tolerance: float = EXCESS) -> Solved:
    """All strengths at once."""
    train = problem.train
    found = LogisticSweep(problem.l2, tolerance=tolerance).fit(train.features, train.labels, problem.num_classes)
    return Solved(found.weights, found.biases, int(found.converged.sum()))


def scikit_learn(problem: Problem, max_iter: int = 100) -> Solved:
    """scikit-learn's LogisticRegression with its own tolerance."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    features, labels = problem.train.features.numpy(), problem.train.labels.numpy()
    models = [LogisticRegression(C=1 / (l2 * len(labels)), max_iter=max_iter) for l2 in problem.l2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
        for model in models:
            model.fit(features, labels)
    weights, biases = ([torch.tensor(getattr(model, name)) for model in models] for name in ("coef_", "intercept_"))
    return Solved(torch.stack(weights), torch.stack(biases), sum(int(model.n_iter_[0]) < max_iter for model in models))


def scipy_lbfgs(problem: Problem) -> Solved:
    """SciPy's L-BFGS in float64 from zero, each strength until it has our certificate or ``MOST_ITERATIONS``."""
    from scipy.optimize import minimize

    labels = problem.train.labels.numpy()
    design = np.column_stack([problem.train.features.double().numpy(), np.ones(len(labels))])
    shape = problem.num_classes, design.shape[1]
    rows = np.arange(len(labels))
    least_share = np.bincount(labels).min() / len(labels)
    points, converged = [], 0
    for l2 in problem.l2:
        reached = {"gradient": math.inf, "loss": 0.0}

        def loss_and_gradient(flat: Any, l2: float = l2, reached: dict[str, float] = reached) -> tuple[float, Any]:
            weights = flat.reshape(shape)
            penalised = np.where(np.arange(shape[1]) < shape[1] - 1, weights, 0)
            shares = design @ weights.T
            shares -= shares.max(1, keepdims=True)
            own = shares[rows, labels].copy()
            np.exp(shares, out=shares)
            total = shares.sum(1)
            loss = float(np.mean(np.log(total) - own) + l2 / 2 * np.square(penalised).sum())
            shares /= total[:, None]
            shares[rows, labels] -= 1
            gradient = (shares.T @ design / len(labels) + l2 * penalised).ravel()
            reached.update(loss=loss, gradient=float(np.linalg.norm(gradient)))
            return loss, gradient

        def certified(l2: float = l2, reached: dict[str, float] = reached) -> bool:
            return reached["gradient"] ** 2 / (2 * min(l2, least_share)) <= EXCESS * reached["loss"]

        def stop(intermediate_result: Any, certified: Callable[[], bool] = certified) -> None:
            if certified():
                raise StopIteration

        options = {"maxiter": MOST_ITERATIONS, "maxfun": 10**6, "ftol": 0.0, "gtol": 0.0}
        start = np.zeros(shape).ravel()
        found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", callback=stop, options=options)
        loss_and_gradient(found.x)
        converged += int(certified())
        points.append(torch.tensor(found.x.reshape(shape)))
    stacked = torch.stack(points)
    return Solved(stacked[..., :-1], stacked[..., -1], converged)


FAST: dict[str, tuple[Solver, str]] = {
    "ours": (ours, ""),
    "scikit-learn, default": (scikit_learn, "scikit-learn"),
}
SLOW: dict[str, tuple[Solver, str]] = {
    f"scikit-learn, max_iter={MOST_ITERATIONS}": (partial(scikit_learn, max_iter=MOST_ITERATIONS), "scikit-learn"),
    "SciPy L-BFGS": (scipy_lbfgs, "scipy"),
}


def knn_ours(bank: Labelled, queries: Tensor, num_classes: int, k: int) -> Tensor:
    """Predictions [N] by ``KNNClassifier``."""
    features = Features(bank.features, bank.labels, torch.arange(len(bank.labels)))
    return KNNClassifier(features, num_classes=num_classes).votes(queries, k=k, temperature=TEMPERATURE).argmax(1)


def knn_lightly(bank: Labelled, queries: Tensor, num_classes: int, k: int) -> Tensor:
    """Predictions [N] by lightly, in batches."""
    from lightly.utils.benchmarking import knn_predict

    rows, labels = F.normalize(bank.features, dim=1).T.contiguous(), bank.labels
    found = [
        knn_predict(batch, rows, labels, num_classes, knn_k=k, knn_t=TEMPERATURE)[:, 0]
        for batch in F.normalize(queries, dim=1).split(512)
    ]
    return torch.cat(found)


def knn_faiss(bank: Labelled, queries: Tensor, num_classes: int, k: int) -> Tensor:
    """Predictions [N] by faiss's exact search and the votes of their definition."""
    import faiss

    index = faiss.IndexFlatIP(bank.features.shape[1])
    index.add(F.normalize(bank.features, dim=1).numpy())
    similarities, places = index.search(F.normalize(queries, dim=1).numpy(), k)
    weights = torch.from_numpy(np.exp((similarities - similarities[:, :1]) / TEMPERATURE))
    labels = bank.labels[torch.from_numpy(places)]
    return torch.zeros(len(queries), num_classes).scatter_add_(1, labels, weights).argmax(1)


KNN = {"ours": (knn_ours, ""), "lightly": (knn_lightly, "lightly"), "faiss-cpu": (knn_faiss, "faiss-cpu")}


def is_installed(library: str) -> bool:
    """Whether a contender's library is there, and every contender's that needs none."""
    return not library or find_spec(RIVALS[library]) is not None
