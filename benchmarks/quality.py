"""How good a recipe's features get, and how soon.

    python -m benchmarks.quality simclr_resnet18_cifar10 --data-dir cifar10 --seeds 0 1 2
    python -m benchmarks.quality simclr_resnet18_cifar10 --data-dir cifar10 --max-epochs 2 --limit 100 --width 16

Trains a recipe once a seed, scores its frozen features by kNN every few epochs (k 200, T 0.1 and k 20, T 0.07) and by
linear evaluation at the end, and appends a row for each score to ``benchmarks/results/quality.jsonl``: accuracy against
minutes, with images per second and peak memory. Options that are not listed here are the recipe's.

The recipe's own probes are left out; its images are held in memory, on the GPU where there is one. There the
arithmetic is bf16-mixed unless --precision says else, the encoder channels-last, and compiled with --compile. --views
makes the recipe's views by one backend of ours, or by Kornia: equally good features are what makes speeds comparable.

The mark to beat on CIFAR-10: 84.7 % kNN in 97.7 minutes with 1.5 GB (SimCLR, ResNet-18, batch 128, 200 epochs), the
table in ``docs/source/getting_started/benchmarks/cifar10_benchmark.py`` of https://github.com/lightly-ai/lightly.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from benchmarks.kornia_pipeline import kornia_transform
from benchmarks.rows import RESULTS, append_row
from contrastive import recipes
from contrastive.augmentations import MakeViews, Normalize, Views, views_from
from contrastive.augmentations.operations import Operation
from contrastive.data import ImageFolders
from contrastive.data.module import ImageData
from contrastive.evaluation import KNNClassifier
from contrastive.evaluation.protocols import PROTOCOLS
from contrastive.module import ContrastiveModule
from contrastive.report.screen import without_noise
from contrastive.runs.frozen import FrozenTask
from contrastive.runs.load import build
from contrastive.runs.signature import JSON, CommandLine, UsageError, to_json

# (k, temperature): Wu et al. 2018, https://arxiv.org/abs/1805.01978, and MoCo's CIFAR-10 notebook have the first; Caron
# et al. 2021, https://arxiv.org/abs/2104.14294, the second.
KNN_SETTINGS = ((200, 0.1), (20, 0.07))

Write = Callable[[Mapping[str, Any]], None]


class Scorer(pl.Callback):
    """Scores frozen features after every ``every_n_epochs`` epochs and after the last, and writes a row each time.

    Two clocks start with training: one that always runs, and one that stands still while features are scored.

    Args:
        data: Training and validation images with labels.
        every_n_epochs: How often to score.
        write: Takes what was measured.
    """

    def __init__(self, data: ImageData, every_n_epochs: int, write: Write) -> None:
        self.data, self.every_n_epochs, self.write = data, every_n_epochs, write
        self.images = 0
        self.scoring_s = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clocks start."""
        self.started = _clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count what was trained on."""
        self.images += len(batch["image"])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score, where it is time to."""
        assert isinstance(pl_module, ContrastiveModule)
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs
        if epoch % self.every_n_epochs and not last:
            return
        stopped = _clock()
        train_s = stopped - self.started - self.scoring_s
        speed = self.images / train_s
        task = FrozenTask(pl_module.evaluated_encoder, pl_module.make_views, self.data, device=pl_module.device)
        knn, linear = score_knn(task), score_linearly(task) if last else None
        self.scoring_s += _clock() - stopped
        self.write(
            {
                "epoch": epoch,
                "train_minutes": train_s / 60,
                "minutes": (_clock() - self.started) / 60,
                "images_per_s": speed,
                "peak_memory_mib": peak_memory_mib(pl_module.device),
                "knn": knn,
                "linear_evaluation": linear,
            }
        )


def score_knn(task: FrozenTask) -> list[dict[str, float]]:
    """Top-1 accuracy at each of ``KNN_SETTINGS``; k is at most the number of training images."""
    bank = KNNClassifier(task.features("train"), num_classes=task.num_classes)
    settings = [(min(k, len(bank)), temperature) for k, temperature in KNN_SETTINGS]
    found = [bank.evaluate(task.features("val"), k=[k], temperature=[temperature])[0] for k, temperature in settings]
    return [{"k": one.k, "temperature": one.temperature, "top1": one.top1} for one in found]


def score_linearly(task: FrozenTask) -> dict[str, Any]:
    """Linear evaluation at its optimum, with what was chosen and how far from the optimum it may be."""
    found = PROTOCOLS["linear"].evaluate(task)
    return {**found.scores, **found.chosen, **found.details}


def measure(
    name: str,
    arguments: Mapping[str, JSON],
    *,
    every_n_epochs: int,
    compile_encoder: bool,
    views: str = "auto",
    write: Write,
) -> None:
    """Train a recipe once.

    Args:
        name: The recipe's name.
        arguments: All its arguments.
        every_n_epochs: How often to score the features.
        compile_encoder: Whether to run the encoder through torch.compile.
        views: What makes the recipe's views: a backend of ours, or "kornia".
        write: Takes what was measured at each score.
    """
    recipe = build(name, arguments)
    recipe.method.make_views = views_by(views, recipe.method.make_views)
    data = recipe.open_data()
    if isinstance(data, ImageFolders):
        data = data.as_tensors()
    for encoder in encoders(recipe.method):
        if torch.cuda.is_available():
            encoder.to(memory_format=torch.channels_last)
        if compile_encoder:
            encoder.compile()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        torch.cuda.reset_peak_memory_stats()
    trainer = pl.Trainer(
        **recipe.trainer,
        callbacks=[Scorer(data, every_n_epochs, write)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        benchmark=True,
    )
    trainer.fit(recipe.method, data)


def views_by(name: str, recipe_views: MakeViews) -> MakeViews:
    """A recipe's views, made by somebody in particular.

    Args:
        name: A backend of ours, "auto" included, or "kornia".
        recipe_views: The recipe's.

    Raises:
        ValueError: Kornia is to make views that differ from each other.
    """
    assert isinstance(recipe_views, Views)
    if name != "kornia":
        return replace(recipe_views, backend=name)
    if len({tuple(view) for view in recipe_views.views}) > 1:
        raise ValueError("Kornia's stand-in makes equal views, but this recipe's views differ. Choose another recipe.")
    view = recipe_views.views[0]
    return views_from(kornia_transform(view), num_views=len(recipe_views.views), evaluation=last_of(view))


def last_of(view: Sequence[Operation]) -> Normalize | None:
    """What normalises a view; None where nothing does."""
    return view[-1] if isinstance(view[-1], Normalize) else None


def encoders(method: ContrastiveModule) -> list[nn.Module]:
    """The encoder, and its momentum copy where the method has one."""
    momentum_encoder = getattr(method, "momentum_encoder", None)
    return [method.encoder] if momentum_encoder is None else [method.encoder, momentum_encoder]


def peak_memory_mib(device: torch.device) -> float:
    """The most memory in use so far: allocated on the GPU, or resident for a process on the CPU. Linux's units."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main(words: list[str] | None = None) -> int:
    """Train a recipe once for each seed; every score becomes a row, and a line on the screen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", choices=recipes.names())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each")
    parser.add_argument("--every-n-epochs", type=int, default=10, help="how often kNN scores the features")
    parser.add_argument("--views", choices=["auto", "torch", "native", "triton", "kornia"], default="auto")
    parser.add_argument("--compile", action="store_true", help="run the encoder through torch.compile")
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.jsonl", help="file of rows to append to")
    options, recipe_words = parser.parse_known_args(words)
    if torch.cuda.is_available() and "--precision" not in recipe_words:
        recipe_words += ["--precision", "bf16-mixed"]
    try:
        values = CommandLine(recipes.load(options.recipe)).parse(recipe_words)
    except UsageError as error:
        parser.error(str(error))
    for seed in options.seeds:
        arguments = to_json({**values, "seed": seed})
        told = {name: value for name, value in arguments.items() if name != "data_dir"}  # a path of this machine alone
        fixed = {"benchmark": "quality", "recipe": options.recipe, "arguments": told, "compile": options.compile}
        fixed["views"] = options.views

        def write(measured: Mapping[str, Any], fixed: Mapping[str, Any] = fixed, seed: int = seed) -> None:
            row = append_row(options.output, {**fixed, "seed": seed, **measured})
            print(line_of(row), flush=True)

        with without_noise():
            measure(
                options.recipe,
                arguments,
                every_n_epochs=options.every_n_epochs,
                compile_encoder=options.compile,
                views=options.views,
                write=write,
            )
    return 0


def line_of(row: Mapping[str, Any]) -> str:
    """A row for people."""
    knn = ", ".join(f"kNN(k {one['k']}, T {one['temperature']:g}) {100 * one['top1']:.2f} %" for one in row["knn"])
    linear = f", linear {100 * row['linear_evaluation']['top1']:.2f} %" if row["linear_evaluation"] else ""
    return (
        f"seed {row['seed']} epoch {row['epoch']}: {knn}{linear} after {row['train_minutes']:.2f} minutes of training, "
        f"{row['images_per_s']:.0f} images/s, {row['peak_memory_mib']:.0f} MiB"
    )


def _clock() -> float:
    """Seconds, once the GPU has done what it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
