"""How fast probes of frozen features are, how far from the optimum they stop, and what that costs in accuracy.

    python -m benchmarks.bench_probes
    python -m benchmarks.bench_probes --data-dir cifar10
    python -m benchmarks.bench_probes --features train.npz test.npz --parts sweep --without-slow

Features are those of an untrained ResNet-18 on the images of --data-dir; or stored ones, as ``contrastive embed``
writes them; or, by default, drawn from a seed, with classes and a spectrum as the ResNet's on CIFAR-10 have them, 512
wide. They are centred and divided by one number, for everybody, as linear evaluation does.

- sweep: logistic regression at --strengths L2 strengths from 1e-6 to 10 on --images images. Ours is ``LogisticSweep``,
  all strengths at once. Rivals solve one strength after the other: scikit-learn's LogisticRegression as it comes (at
  most 100 iterations) and with max_iter=1000, and SciPy's L-BFGS in float64, which ends where ours does, at the same
  certificate, or after 1000 iterations. How far each stops above the optimum, and how far its accuracy on the test
  images is from the optimum's, is measured in float64 against a solution of ours to a far stricter certificate. No row
  is written unless ours, and SciPy's where all have their certificate, lie within 1e-5 of the optimum and above it.
- large: --large-strengths from 1e-6 to 1e5 on --large-images images, ours alone.
- knn: the 200 nearest of --large-images images for --queries others, and their votes. Ours is ``KNNClassifier``, beside
  lightly's knn_predict in batches of 512 and faiss-cpu's exact search (IndexFlatIP) with our votes. No row is written
  unless all predict the same but for a thousandth of the images, whose neighbours tie.

Contenders take turns, in a new order each round. What takes minutes (scikit-learn with max_iter=1000, SciPy) takes
turns with ours in --slow-rounds rounds of its own. What is told is the median with the range, and ratios of the same
round; where ranges overlap there is no ratio. Rivals are installed with ``pip install -c constraints.txt -e
'.[benchmarks]'``; who is missing is left out. Set OMP_NUM_THREADS for the threads of all of them.

Appends a row for each part to ``benchmarks/results/bench_probes.jsonl``.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.probe_contenders import (
    EXCESS,
    FAST,
    KNN,
    RIVALS,
    SLOW,
    TEMPERATURE,
    Labelled,
    Problem,
    Solved,
    Solver,
    is_installed,
    ours,
)
from benchmarks.rows import RESULTS, append_row, libraries
from benchmarks.turns import figure, in_turns, times_as_much
from contrastive.augmentations import CIFAR10, simclr_views
from contrastive.data import ImageFolders
from contrastive.encoders import resnet18
from contrastive.evaluation import LogisticSweep, extract_features

PARTS = ("sweep", "large", "knn")
K = 200  # lightly's own
CERTIFIED = 1e-9  # of the optimum that all are measured against
SPECTRUM = -1.58  # slope of the log eigenvalues of an untrained ResNet-18's features of CIFAR-10, 6th to 300th
BETWEEN = 0.083  # share of their variance between classes
TIED = 1e-3  # of the images may be predicted differently


def objective(solved: Solved, problem: Problem) -> Tensor:
    """By definition, float64 [S]."""
    features, labels = problem.train.features.double(), problem.train.labels
    losses = []
    for weights, biases, l2 in zip(solved.weights.double(), solved.biases.double(), problem.l2, strict=True):
        penalty = l2 / 2 * weights.square().sum()
        losses.append(F.cross_entropy(torch.addmm(biases, features, weights.T), labels) + penalty)
    return torch.stack(losses)


def accuracies(solved: Solved, test: Labelled) -> Tensor:
    """Of each strength, float64 [S]."""
    hits = []
    for weights, biases in zip(solved.weights.float(), solved.biases.float(), strict=True):
        hits.append((torch.addmm(biases, test.features, weights.T).argmax(1) == test.labels).double().mean())
    return torch.stack(hits)


@dataclass
class Turn:
    """Solves, keeps the last solution, gives the seconds."""

    call: Callable[[], Any]
    found: Any = None

    def __call__(self) -> float:
        start = time.perf_counter()
        self.found = self.call()
        return time.perf_counter() - start


def sweep(problem: Problem, test: Labelled, *, slow: bool, rounds: int, slow_rounds: int, seed: int) -> dict[str, Any]:
    """All contenders' times, excess losses and accuracies.

    Raises:
        AssertionError: Who claims the optimum has not reached it.
    """
    best = ours(problem, CERTIFIED)
    minimum = objective(best, problem)
    best_accuracies = accuracies(best, test)
    contenders: dict[str, dict[str, Any]] = {}
    left_out = {}

    def measure(chosen: Mapping[str, tuple[Solver, str]], count: int) -> None:
        present = {name: solver for name, (solver, library) in chosen.items() if is_installed(library)}
        left_out.update(dict.fromkeys(chosen.keys() - present.keys(), "not installed"))
        turns = {name: Turn(partial(solver, problem)) for name, solver in present.items()}
        seconds = in_turns(turns, rounds=count, seed=seed)
        for name, turn in turns.items():
            if name in contenders:
                continue
            excess = objective(turn.found, problem) / minimum - 1
            if name == "ours" or (name == "SciPy L-BFGS" and turn.found.converged == len(problem.l2)):
                assert_optimum(name, excess)
            off_by = accuracies(turn.found, test) - best_accuracies
            contenders[name] = {
                "seconds": seconds[name],
                "beside_ours": seconds["ours"],
                "relative_excess_loss": excess.tolist(),
                "accuracy_off_by": off_by.tolist(),
                "converged": turn.found.converged,
            }

    assert_optimum("ours", objective(ours(problem), problem) / minimum - 1)
    measure(FAST, rounds)
    if slow:
        measure({"ours": FAST["ours"], **SLOW}, slow_rounds)
    else:
        left_out.update(dict.fromkeys(SLOW, "--without-slow"))
    return {
        "strengths": list(problem.l2),
        "test_images": len(test.labels),
        "optimum_accuracy": best_accuracies.tolist(),
        "contenders": contenders,
        "left_out": left_out,
    }


def assert_optimum(name: str, excess: Tensor) -> None:
    """Compare objectives with the optimum's.

    Raises:
        AssertionError: One is further above it than claimed, or below it by more than rounding.
    """
    if not (float(excess.max()) <= EXCESS and float(excess.min()) >= -1e-6):
        raise AssertionError(
            f"{name} claims the optimum to {EXCESS:g} of the loss, but its losses lie from {float(excess.min()):.2g} "
            f"to {float(excess.max()):.2g} above it. No row was written."
        )


def large(problem: Problem, *, rounds: int) -> dict[str, Any]:
    """Ours alone."""
    train = problem.train
    turn = Turn(lambda: LogisticSweep(problem.l2).fit(train.features, train.labels, problem.num_classes))
    seconds = [turn() for _ in range(rounds)]
    contender = {
        "seconds": seconds,
        "beside_ours": seconds,
        "relative_excess_loss": turn.found.relative_excess_loss.tolist(),  # as certified
        "iterations": turn.found.iterations.tolist(),
        "converged": int(turn.found.converged.sum()),
    }
    return {"strengths": list(problem.l2), "contenders": {"ours": contender}, "left_out": {}}


def knn(bank: Labelled, test: Labelled, num_classes: int, *, k: int, rounds: int, seed: int) -> dict[str, Any]:
    """All contenders' times and accuracies.

    Raises:
        AssertionError: They predict differently.
    """
    present = {name: solver for name, (solver, library) in KNN.items() if is_installed(library)}
    turns = {name: Turn(partial(solver, bank, test.features, num_classes, k)) for name, solver in present.items()}
    for turn in turns.values():
        turn()
    for name, turn in turns.items():
        differ = (turn.found != turns["ours"].found).double().mean().item()
        if differ > TIED:
            raise AssertionError(
                f"{name} predicts {differ:.2%} of the images differently than ours, where ties explain {TIED:.1%}. "
                "Nothing was timed."
            )
    seconds = in_turns(turns, rounds=rounds, seed=seed)
    contenders = {
        name: {
            "seconds": seconds[name],
            "beside_ours": seconds["ours"],
            "top1": (turn.found == test.labels).double().mean().item(),
        }
        for name, turn in turns.items()
    }
    left_out = dict.fromkeys(KNN.keys() - present.keys(), "not installed")
    return {
        "k": k,
        "temperature": TEMPERATURE,
        "queries": len(test.labels),
        "contenders": contenders,
        "left_out": left_out,
    }


def stored(train: Path, test: Path) -> tuple[Labelled, Labelled]:
    """As ``contrastive embed`` wrote them."""
    arrays = [np.load(file) for file in (train, test)]
    first, second = (Labelled(torch.tensor(one["features"]), torch.tensor(one["labels"])) for one in arrays)
    return first, second


def untrained(data_dir: Path, seed: int) -> tuple[Labelled, Labelled]:
    """Of a ResNet-18 with random weights, for images of 32 x 32 pixels as they are."""
    torch.manual_seed(seed)
    encoder, views = resnet18().eval(), simclr_views(32, normalize=CIFAR10)
    data = ImageFolders(train=data_dir / "train", val=data_dir / "test", image_size=32, batch_size=250, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    loaders = (data.bank_dataloader(), data.val_dataloader())
    sets = [extract_features(lambda x: encoder(views.evaluation_view(x)), loader, device="cpu") for loader in loaders]
    first, second = (Labelled(*one.labelled()) for one in sets)
    return first, second


def drawn(num_train: int, num_test: int, width: int, num_classes: int, seed: int) -> tuple[Labelled, Labelled]:
    """Gaussian classes, whose spectrum falls as a power, rotated."""
    random = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, width + 1) ** (SPECTRUM / 2)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=random)).Q
    centres = torch.randn(num_classes, width, generator=random) * math.sqrt(BETWEEN)
    labels = torch.randint(num_classes, (num_train + num_test,), generator=random)
    noise = torch.randn(num_train + num_test, width, generator=random) * math.sqrt(1 - BETWEEN)
    features = (centres[labels] + noise) * scales @ rotation
    return Labelled(features[:num_train], labels[:num_train]), Labelled(features[num_train:], labels[num_train:])


def scaled(train: Labelled, test: Labelled) -> tuple[Labelled, Labelled]:
    """Of mean 0 and mean square 1 over the training images."""
    mean = train.features.mean(0)
    scale = (train.features - mean).square().mean().sqrt()
    first, second = (Labelled((one.features - mean) / scale, one.labels) for one in (train, test))
    return first, second


def times_as_fast(contender: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """How many times as fast as a contender ours is, in the same rounds, for people."""
    seconds, beside = contender["seconds"], contender["beside_ours"]
    if seconds == beside:
        return ""
    rounds_of_their_own = "" if beside == ours["seconds"] else f", beside ours of {statistics.median(beside):.3g} s"
    return times_as_much(seconds, beside) + rounds_of_their_own


def told(contender: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, str, str]:
    """Of one contender, for people: the ratio, the largest excess loss, the largest difference in accuracy."""
    excess = f"{max(contender['relative_excess_loss']):.1e}" if "relative_excess_loss" in contender else ""
    off_by = f"{100 * max(contender['accuracy_off_by'], key=abs):+.2f} points" if "accuracy_off_by" in contender else ""
    return times_as_fast(contender, ours), excess, off_by


def show(row: Mapping[str, Any], console: Console) -> None:
    """For people: all contenders of a part."""
    title = f"{row['part']}: {row['images']:,} x {row['width']}, {row['classes']} classes, {row['threads']} threads"
    table = Table(
        "", "seconds", "ours is so many times as fast", "largest relative excess", "accuracy off", title=title
    )
    for name, one in row["contenders"].items():
        table.add_row(name, figure(one["seconds"], ".3g"), *told(one, row["contenders"]["ours"]))
    console.print(table)
    for name, reason in row["left_out"].items():
        console.print(f"{name} is left out: {reason}.", highlight=False)


def strengths(count: int, highest: float) -> list[float]:
    """From 1e-6 on, evenly in their logarithm."""
    return [10.0 ** (-6 + (highest + 6) * step / max(1, count - 1)) for step in range(count)]


def main(words: list[str] | None = None) -> int:
    """Measure, print and append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--features", type=Path, nargs=2, metavar=("TRAIN", "TEST"), help=".npz files")
    source.add_argument("--data-dir", type=Path, help="folder with the images, in train/ and test/")
    parser.add_argument("--described", help="what --features are of, for the row")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS, help="what to measure")
    parser.add_argument("--images", type=int, default=10_000, help="that the sweep is fitted on")
    parser.add_argument("--strengths", type=int, default=20, help="of the sweep")
    parser.add_argument("--large-images", type=int, default=50_000, help="of the large sweep and the bank")
    parser.add_argument("--large-strengths", type=int, default=45, help="of the large sweep")
    parser.add_argument("--queries", type=int, default=2_000, help="whose neighbours are looked up")
    parser.add_argument("--test-images", type=int, default=10_000, help="that accuracies are of")
    parser.add_argument("--width", type=int, default=512, help="of drawn features")
    parser.add_argument("--classes", type=int, default=10, help="of drawn features")
    parser.add_argument("--k", type=int, default=K, help="neighbours")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender is timed")
    parser.add_argument("--slow-rounds", type=int, default=1, help="the same of those that take minutes")
    parser.add_argument("--without-slow", action="store_true", help="leave them out")
    parser.add_argument("--seed", type=int, default=0, help="of weights, drawn features, which images, and order")
    parser.add_argument("--output", type=Path, default=RESULTS / "bench_probes.jsonl", help="file of rows to append to")
    options = parser.parse_args(words)
    seed = options.seed
    if options.features:
        sets, described = stored(*options.features), options.described or "stored features"
    elif options.data_dir:
        sets, described = untrained(options.data_dir, seed), f"untrained ResNet-18, {options.data_dir.name}"
    else:
        sets = drawn(options.large_images, options.test_images, options.width, options.classes, seed)
        described = "drawn"
    train, test = scaled(*sets)
    test = test.some(options.test_images, seed)
    num_classes = int(train.labels.max()) + 1
    whole, part = train.some(options.large_images, seed), train.some(options.images, seed)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "sweep": lambda: sweep(
            Problem(part, num_classes, strengths(options.strengths, 1)),
            test,
            slow=not options.without_slow,
            rounds=options.rounds,
            slow_rounds=options.slow_rounds,
            seed=seed,
        ),
        "large": lambda: large(
            Problem(whole, num_classes, strengths(options.large_strengths, 5)), rounds=options.rounds
        ),
        "knn": lambda: knn(
            whole, test.some(options.queries, seed), num_classes, k=options.k, rounds=options.rounds, seed=seed
        ),
    }
    console = Console(width=None if sys.stdout.isatty() else 140)
    for name in options.parts:
        row = {
            "benchmark": "bench_probes",
            "part": name,
            "features": described,
            "images": len((part if name == "sweep" else whole).labels),
            "width": train.features.shape[1],
            "classes": num_classes,
            "device": "cpu",
            "threads": torch.get_num_threads(),
            "environment": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")},
            "seed": seed,
            "libraries": libraries(list(RIVALS)),
            **measures[name](),
        }
        show(append_row(options.output, row), console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
