"""``contrastive evaluate``: an encoder's frozen features by the protocols papers report."""

import sys
from pathlib import Path

from lightning_fabric import Fabric
from pytorch_lightning.utilities import rank_zero_only

from contrastive.commands.console import console
from contrastive.commands.options import check_counts
from contrastive.recipes.recipe import Precision
from contrastive.report.evaluation import save, screen
from contrastive.report.screen import Told
from contrastive.runs.disk import check_writable
from contrastive.runs.evaluation import Wanted, choose_protocols, named_folders, open_data_sets
from contrastive.runs.evaluation import evaluate as score
from contrastive.runs.evaluation_record import EvaluationRecord, Provenance
from contrastive.runs.feature_cache import FeatureCache
from contrastive.runs.folder import RunFolder
from contrastive.runs.signature import UsageError
from contrastive.runs.targets import baselines as untrained
from contrastive.runs.targets import open_target

USUAL_PROTOCOLS = ("linear", "knn-lightly", "knn-dino")  # those that everybody reports


def evaluate(
    encoder: str,
    *,
    protocol: tuple[str, ...] = USUAL_PROTOCOLS,
    data_dir: Path | None = None,
    transfer: tuple[str, ...] = (),
    baselines: bool = False,
    pretrained: bool = True,
    image_size: int | None = None,
    max_epochs: int | None = None,
    num_seeds: int = 1,
    seed: int = 0,
    batch_size: int = 256,
    devices: int = 1,
    precision: Precision = "32-true",
    keep_duplicates: bool = False,
    no_cache: bool = False,
    output: Path | None = None,
) -> None:
    """Score an encoder's frozen features by protocols that papers report, on unseen images of one data set or several.

    ENCODER is a run's folder or a checkpoint, a file of weights that contrastive.load_encoder reads, or timm:NAME or
    torchvision:NAME. Writes evaluation.json, evaluation.md and pictures; earlier results of the same weights and
    images stay there. Features are kept, so that a second call is quick.

    Args:
        encoder: See above.
        protocol: One or more; contrastive protocols lists them.
        data_dir: A folder with train/CLASS/*.jpg and val/CLASS/*.jpg (or test/); the images a run was trained on unless
            given.
        transfer: Other data sets, NAME=FOLDER each; the metric is the one customary for the name.
        baselines: Also score the images' pixels, their colours, and the same network untrained.
        pretrained: Whether a model of timm or torchvision has its library's weights; false: drawn ones.
        image_size: Side in pixels of what the encoder sees, unless it is a run's; the library's, or 224, unless given.
        max_epochs: Passes over the images of protocols that train on augmented ones, if not as many as published.
        num_seeds: How often to do it, with seeds that follow one another; mean and standard deviation are reported; the
            weights of untrained baselines are not redrawn.
        seed: Of what protocols draw: held-out images, order, crops; and of untrained weights.
        batch_size: Images encoded at a time by a device, where no run says.
        devices: Number of GPUs, or of processes on a CPU.
        precision: Of the encoder; bf16-mixed is for GPUs.
        keep_duplicates: Keep training images that are test images too; they are left out otherwise.
        no_cache: Extract features anew, and keep none.
        output: The folder to write into; the run's, or one in runs/, unless given.
    """
    check_counts(num_seeds=num_seeds, devices=devices, batch_size=batch_size)
    if seed < 0:
        raise UsageError(f"--seed takes 0 or more, got {seed}.")
    protocols, folders = choose_protocols(protocol, max_epochs=max_epochs), named_folders(transfer)
    target = open_target(
        encoder, pretrained=pretrained, image_size=image_size, batch_size=batch_size, output=output, seed=seed
    )
    check_writable(target.folder.path, "--output")
    fabric = Fabric(devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    with Told(console) as told:
        wanted = Wanted(
            protocols=protocols,
            seeds=range(seed, seed + num_seeds),
            device=fabric.device,
            precision=precision,
            keep_duplicates=keep_duplicates,
            cache=None if no_cache else FeatureCache(target.feature_folder),
            provenance=Provenance.here(sys.argv),
            progress=told if fabric.is_global_zero else None,
        )
        data_sets = open_data_sets(target, data_dir, folders)
        record = score(target, data_sets, wanted, baselines=untrained(target) if baselines else ())
    write_scores(record, target.folder)


@rank_zero_only
def write_scores(record: EvaluationRecord, folder: RunFolder) -> None:
    saved = save(record, folder.path)
    console.print(screen(record))
    console.print(f"\nIn {folder.path}: {', '.join(file.name for file in saved.files[:2])}, pictures", soft_wrap=True)
    if saved.aside is not None:
        console.print(
            f"An earlier evaluation, of other weights or images or not readable, is {saved.aside.name} now",
            soft_wrap=True,
        )
