"""``contrastive finetune``: few or noisy labels, beside the same network from scratch."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from contrastive.commands.console import console
from contrastive.commands.options import check_counts, moved
from contrastive.data.module import ImageData
from contrastive.methods import SupervisedBaseline
from contrastive.recipes.recipe import Precision
from contrastive.report.screen import RunProgress, top1_table
from contrastive.runs.environment import commit, hardware, versions
from contrastive.runs.export import save_classifier
from contrastive.runs.finetuning import Outcome, Settings, labelled, train_classifier
from contrastive.runs.folder import RunFolder, now
from contrastive.runs.load import TrainedRun, build, load_run

FINETUNED, FROM_SCRATCH = "fine-tuned", "from scratch"


def finetune(
    run: Path,
    *,
    data_dir: Path | None = None,
    labels: float = 0.1,
    label_noise: float = 0.0,
    freeze: int = 0,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    crop_min: float | None = None,
    num_seeds: int = 1,
    seed: int = 0,
    devices: int = 1,
    precision: Precision = "32-true",
) -> None:
    """Train a run's encoder and a classifier on few or noisy labels, and the same network from scratch beside it.

    Both see the same images, labels, crops and flips, in the same order and as often. Top-1 accuracy is that of all
    validation images after the last epoch; their labels are never changed. Adds to finetune.json in the run's folder,
    where the fine-tuned weights go too.

    Args:
        run: A run's folder or a checkpoint.
        data_dir: Where the images lie now, if not where the run was trained.
        labels: Share of the training labels, the same of each class and at least one image: 0.01, 0.1, 1.
        label_noise: Probability that a training label is wrong: one of the other classes, all equally likely.
        freeze: Keep this many of the pretrained encoder's stages as they are, counted from the images: a ResNet has 5,
            a vision transformer one more than its blocks. From scratch, all is trained.
        max_epochs: Passes over the labelled images; 60 with less than a tenth of the labels and else 30, for vision
            transformers 100, unless given.
        batch_size: Images per device and step; 256 unless given, fewer for three steps an epoch of at least 32 images.
        lr: Learning rate; for 256 images per step over all devices 0.05, for vision transformers 0.0005, and scaled
            linearly to their true number, unless given.
        weight_decay: Of the weights; 0, for vision transformers 0.05, unless given.
        layer_decay: Each layer of a vision transformer has the rate of the layer above times this; 0.65 unless given.
        crop_min: Smallest share of an image that a training crop keeps; that of the run's own views unless given.
        num_seeds: How often to do all of it, with seeds that follow one another.
        seed: Of the labelled images, wrong labels, order, crops, classifier, and the weights from scratch.
        devices: Number of GPUs, or of processes on a CPU.
        precision: Of the arithmetic; bf16-mixed is for GPUs.
    """
    check_counts(num_seeds=num_seeds, max_epochs=max_epochs, batch_size=batch_size, devices=devices)
    wanted = Settings(
        labels=labels,
        label_noise=label_noise,
        freeze=freeze,
        max_epochs=max_epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        crop_min=crop_min,
        devices=devices,
        precision=precision,
    )
    trained = load_run(run, overrides=moved(data_dir))
    trained.folder.finetunings()  # complain now, not after the training
    data = trained.recipe.open_data()
    rows: dict[str, list[float]] = {}
    for number in range(seed, seed + num_seeds):
        for name, top1 in _finetune_once(trained, data, wanted, number).items():
            rows.setdefault(name, []).append(top1)
    _show_finetuning(trained, data, wanted, rows)


def _finetune_once(trained: TrainedRun, data: ImageData, wanted: Settings, seed: int) -> dict[str, float]:
    """Top-1 accuracies of the pretrained encoder fine-tuned and of the same network from scratch, which it writes."""
    subset, num_wrong = labelled(data, wanted.labels, wanted.label_noise, seed)
    encoder, views = copy.deepcopy(trained.recipe.method.evaluated_encoder), trained.recipe.method.make_views
    settings = wanted.resolved(encoder, views, len(subset.chosen))
    untrained = build(trained.name, {**trained.arguments, "seed": seed}).method.evaluated_encoder
    _announce_finetuning(len(subset.chosen), data.num_images("train"), num_wrong, settings, seed)
    outcomes: dict[str, Outcome] = {}
    for name, network, how in (
        (FINETUNED, encoder, settings),
        (FROM_SCRATCH, untrained, replace(settings, freeze=0)),
    ):
        rank_zero_only(console.print)(f"\n[bold]{name}[/]")
        outcomes[name] = train_classifier(network, views, subset, how, seed=seed, callbacks=[RunProgress(console)])
    top1 = {name: outcome.top1 for name, outcome in outcomes.items()}
    result = {
        "checkpoint": trained.checkpoint.name,
        "epochs_pretrained": trained.epochs,
        "seed": seed,
        "settings": asdict(settings),
        "num_labelled": len(subset.chosen),
        "num_wrong": num_wrong,
        "num_train": data.num_images("train"),
        "num_val": data.num_images("val"),
        "top1": top1,
    }
    _write_finetuning(trained.folder, outcomes[FINETUNED].method, result)
    return top1


@rank_zero_only
def _write_finetuning(folder: RunFolder, method: SupervisedBaseline, result: dict[str, Any]) -> None:
    number = 1 + len(folder.finetunings())
    weights = folder.finetuned_weights(number)
    save_classifier(method, weights)
    traced = {"commit": commit(), "versions": versions(), "hardware": hardware()}
    folder.add_finetuning(number=number, when=now(), **result, weights=weights.name, **traced)


@rank_zero_only
def _announce_finetuning(num_labelled: int, num_train: int, num_wrong: int, settings: Settings, seed: int) -> None:
    wrong = f", {num_wrong:,} of them wrong" if settings.label_noise else ""
    optimizer = "SGD" if settings.layer_decay is None else f"AdamW, layer decay {settings.layer_decay:g}"
    frozen = f", {settings.freeze} stages frozen" if settings.freeze else ""
    console.print(
        f"{num_labelled:,} of {num_train:,} training images have labels{wrong}; seed {seed}\n{optimizer}, lr "
        f"{settings.lr:.3g}, {settings.max_epochs} epochs in batches of {settings.batch_size} a device{frozen}",
        soft_wrap=True,
    )


@rank_zero_only
def _show_finetuning(trained: TrainedRun, data: ImageData, wanted: Settings, rows: Mapping[str, list[float]]) -> None:
    noise = f", each wrong with probability {wanted.label_noise:g}" if wanted.label_noise else ""
    title = f"{trained.name} after {trained.epochs} epochs, then {100 * wanted.labels:g} % of the labels{noise}"
    console.print(f"\n[bold]{title}[/]", soft_wrap=True)
    console.print(top1_table(rows, num_images=data.num_images("val")))
    console.print(f"Added to {trained.folder.finetune_file}, with the weights beside it", soft_wrap=True)
