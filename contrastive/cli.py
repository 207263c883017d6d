"""Contrastive learning from the shell.

    contrastive fit [RECIPE] [--option VALUE ...]   train; without a recipe, a demo of a few minutes
    contrastive recipes                             what there is to train
    contrastive views --out FILE.png                images, their views, and what was drawn for each
    contrastive evaluate ENCODER                    an encoder's frozen features by the protocols papers report
    contrastive protocols                           which protocols there are
    contrastive finetune RUN                        the whole network on few or noisy labels, beside one from scratch
    contrastive embed RUN --output FILE.npz         features, labels and file names
    contrastive export RUN                          the encoder as plain weights, and as ONNX

RUN is a run's folder or a checkpoint. Add --help to any of them.
"""

import copy
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contrastive import recipes
from contrastive.data.module import ImageData
from contrastive.evaluation.protocols import PROTOCOLS
from contrastive.methods import SupervisedBaseline
from contrastive.module import ContrastiveModule
from contrastive.recipes.recipe import Precision, Recipe
from contrastive.report.contact_sheet import first_originals, originals_in, save_contact_sheet
from contrastive.report.evaluation import save, screen
from contrastive.report.pictures import save_curves, save_pairs
from contrastive.report.screen import RunProgress, Told, top1_table, without_noise
from contrastive.runs.environment import commit, hardware, processor, versions
from contrastive.runs.evaluation import Images, Wanted, choose_protocols, named_folders, open_data_sets
from contrastive.runs.evaluation import evaluate as score
from contrastive.runs.evaluation_record import EvaluationRecord, Provenance
from contrastive.runs.export import save_classifier, save_encoder, save_onnx
from contrastive.runs.feature_cache import FeatureCache
from contrastive.runs.finetuning import Outcome, Settings, labelled, train_classifier
from contrastive.runs.folder import RunFolder, check_writable, create, now
from contrastive.runs.frozen import FrozenTask
from contrastive.runs.load import TrainedRun, build, load_run
from contrastive.runs.signature import DEBUG, JSON, SEE_HELP, CommandLine, UsageError, to_json
from contrastive.runs.targets import baselines as untrained
from contrastive.runs.targets import open_target
from contrastive.runs.training import train

FAILED, MISUSED, INTERRUPTED = 1, 2, 130  # as argparse and shells have them
USUAL_PROTOCOLS = ("linear", "knn-lightly", "knn-dino")  # those that everybody reports
FINETUNED, FROM_SCRATCH = "fine-tuned", "from scratch"
LONGEST_CAUSE = 1000  # characters; some libraries put whole models into their messages

console = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 not understood, 130 interrupted.

    Args:
        arguments: The words after the program's name; those of the process unless given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with without_noise():
            _run(words)
    except UsageError as error:
        return _complain(str(error), MISUSED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except Exception as error:  # the outermost border: whatever it is, one line for the user, and all with --debug
        if DEBUG in words:
            traceback.print_exc()
        return _complain(_cause(error), FAILED)
    return 0


def fit(name: str, words: Sequence[str]) -> None:
    """Train a recipe in a folder of its own, and say what came out."""
    function = recipes.load(name)
    prog, description = f"contrastive fit {name}", sys.modules[function.__module__].__doc__
    values = CommandLine(function, run_options, prog=prog, description=description).parse(words)
    run_dir = values.pop("run_dir")
    arguments = to_json(values)
    recipe = build(name, arguments)
    _announce(name, recipe)
    data = recipe.open_data()
    # Only the first rank has a folder to make; the others write nothing.
    folder = _make_folder(name, arguments, run_dir) or RunFolder(run_dir or Path("runs", name))
    trainer = train(recipe, data, folder, name=name, arguments=arguments, callbacks=[RunProgress(console)])
    if trainer.is_global_zero:
        _finish(name, recipe, data, folder)


def run_options(*, run_dir: Path | None = None) -> None:
    """Options of ``contrastive fit`` that are no recipe's.

    Args:
        run_dir: The run's folder, new or empty; runs/RECIPE-YYYYmmdd-HHMMSS unless given.
    """


def list_recipes() -> None:
    """List the recipes, a line each."""
    table = Table(box=None, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it trains")
    for name in recipes.names():
        table.add_row(name, recipes.summary(name))
    console.print(table)
    console.print(f"\nNext: {_program()} fit RECIPE --help")


def views(
    *, out: Path, data_dir: Path | None = None, recipe: str = recipes.DEMO, num_images: int = 6, seed: int = 0
) -> None:
    """Draw images beside the views that a recipe trains on, with what was drawn for each: crop, flip, colours, blur.

    Args:
        out: The PNG file to write.
        data_dir: A folder of images, or one with a folder train/ of images, each drawn at its original size; the
            recipe's own images unless given.
        recipe: Whose views; see contrastive recipes.
        num_images: How many images: the first that a run with this seed trains on.
        seed: Of the choice of images and of what is drawn.
    """
    if num_images < 1:
        raise UsageError(f"--num-images takes 1 or more, got {num_images}.")
    arguments: dict[str, JSON] = {"seed": seed}
    if "data_dir" in CommandLine(_recipe(recipe)).parameters:
        if data_dir is None:
            raise UsageError(f"Missing: --data-dir, for recipe {recipe} has no images of its own. {SEE_HELP}")
        arguments |= to_json({"data_dir": data_dir})
    chosen = build(recipe, arguments)
    if data_dir is None:
        originals = first_originals(chosen.open_data(), num_images)
    else:
        train = data_dir / "train"
        originals = originals_in(train if train.is_dir() else data_dir, num_images, seed)
    title = f"{recipe}: images and their views in the first epoch, seed {seed}"
    save_contact_sheet(originals, chosen.method.make_views, out, seed, title=title)
    console.print(f"Wrote {out}: {len(originals.names)} images and their views", soft_wrap=True)


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
        num_seeds: How often to do it, with seeds that follow one another; mean and standard deviation are reported.
        seed: Of what protocols draw: held-out images, order, crops; and of untrained weights.
        batch_size: Images encoded at a time by a device, where no run says.
        devices: Number of GPUs, or of processes on a CPU.
        precision: Of the encoder; bf16-mixed is for GPUs.
        keep_duplicates: Keep training images that are test images too; they are left out otherwise.
        no_cache: Extract features anew, and keep none.
        output: The folder to write into; the run's, or one in runs/, unless given.
    """
    for option, count in {"num-seeds": num_seeds, "devices": devices, "batch-size": batch_size}.items():
        if count < 1:
            raise UsageError(f"--{option} takes 1 or more, got {count}.")
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
    _write_scores(record, target.folder)


def list_protocols() -> None:
    """List the evaluation protocols, with what each does and where it comes from."""
    for name, one in PROTOCOLS.items():
        console.print(Text.assemble((name, "bold"), f": {one.description}\n  Source: {one.source}\n"), soft_wrap=True)
    console.print(f"Next: {_program()} evaluate ENCODER --protocol NAME NAME ...", soft_wrap=True)


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
    counts = {"num-seeds": num_seeds, "max-epochs": max_epochs, "batch-size": batch_size, "devices": devices}
    for option, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"--{option} takes 1 or more, got {count}.")
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
    trained = load_run(run, overrides=_moved(data_dir))
    trained.folder.finetunings()  # complain now, not after the training
    data = trained.recipe.open_data()
    rows: dict[str, list[float]] = {}
    for number in range(seed, seed + num_seeds):
        for name, top1 in _finetune_once(trained, data, wanted, number).items():
            rows.setdefault(name, []).append(top1)
    _show_finetuning(trained, data, wanted, rows)


def embed(run: Path, *, output: Path, data_dir: Path | None = None, split: Literal["train", "val"] = "val") -> None:
    """Write a run's frozen features of unaugmented images to an .npz file.

    Its arrays: features float32 [N, D], index int64 [N], labels int64 [N] and classes where labels are known, files
    where the images come from files.

    Args:
        run: A run's folder or a checkpoint.
        output: The .npz file to write.
        data_dir: Where the images lie now, if not where the run was trained.
        split: Which images.
    """
    trained = load_run(run, overrides=_moved(data_dir))
    arrays = _embeddings(trained.recipe.method, trained.recipe.open_data(), split)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as file:  # as named: numpy would add .npz to a bare name
        np.savez(file, allow_pickle=False, **arrays)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    console.print(f"Wrote {output}: {shapes}", soft_wrap=True)


def export(run: Path, *, output: Path | None = None, onnx: Path | None = None) -> None:
    """Write a run's encoder as safetensors that the plain torchvision or timm model loads, and as ONNX.

    Args:
        run: A run's folder or a checkpoint.
        output: The safetensors file to write; encoder.safetensors in the run's folder unless given.
        onnx: An ONNX file to write as well; it takes normalised float images.
    """
    trained = load_run(run)
    file = output or trained.folder.path / "encoder.safetensors"
    code = save_encoder(trained.recipe.method.evaluated_encoder, file)
    console.print(f"Wrote {file}. To load it:\n", soft_wrap=True)
    console.print(code, soft_wrap=True, markup=False)
    if onnx is not None:
        save_onnx(trained.recipe.method, onnx)
        console.print(f"\nWrote {onnx}.", soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "recipes": list_recipes,
    "protocols": list_protocols,
    "views": views,
    "evaluate": evaluate,
    "finetune": finetune,
    "embed": embed,
    "export": export,
}


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return
    command, rest = words[0], words[1:]
    if command == "fit":
        name, options = (rest[0], rest[1:]) if rest and not rest[0].startswith("-") else (recipes.DEMO, rest)
        _recipe(name)
        fit(name, options)
    elif command in COMMANDS:
        function = COMMANDS[command]
        prog, description = f"contrastive {command}", (function.__doc__ or "").partition("Args:")[0]
        function(**CommandLine(function, prog=prog, description=description).parse(rest))
    else:
        raise UsageError(f"There is no command {command!r}. {recipes.did_you_mean(command, ['fit', *COMMANDS])}")


def _recipe(name: str) -> Callable[..., Recipe]:
    """A recipe that was named on the command line."""
    if name not in recipes.names():
        raise UsageError(f"There is no recipe {name!r}. {recipes.did_you_mean(name, recipes.names())}")
    return recipes.load(name)


@rank_zero_only
def _announce(name: str, recipe: Recipe) -> None:
    precision = recipe.trainer.get("precision", "32-true")
    console.print(f"[bold]{name}[/]: {recipes.summary(name)}", soft_wrap=True)
    console.print(f"On {processor()}, precision {precision}, seed {recipe.seed}", soft_wrap=True)


@rank_zero_only
def _make_folder(name: str, arguments: dict[str, JSON], run_dir: Path | None) -> RunFolder:
    folder = create(name, arguments, at=run_dir)
    console.print(f"Everything goes to {folder.path}\n", soft_wrap=True)
    return folder


def _finish(name: str, recipe: Recipe, data: ImageData, folder: RunFolder) -> None:
    """Pictures, the table where it is cheap, where things lie, and what to try next."""
    save_curves(folder.metrics_file, folder.curves_picture, title=f"{name}: training")
    title = f"{name}: images, and the views of them that it trains on"
    batch = next(iter(data.train_dataloader()))
    save_pairs(batch["image"], batch["index"], recipe.method.make_views, folder.pairs_picture, recipe.seed, title=title)
    following = f"evaluate {folder.path} --baselines"
    if recipe.evaluate:
        with Told(console) as told:
            target = open_target(str(folder.path))
            wanted = Wanted(
                protocols=choose_protocols(USUAL_PROTOCOLS),
                device=_device(),
                provenance=Provenance.here(sys.argv),
                progress=told,
            )
            images = Images(target.data_name or name, None, data)
            record = score(target, [images], wanted, baselines=untrained(target))
        _write_scores(record, folder)
        following = f"export {folder.path}"
    pictures = f"{folder.pairs_picture.name} and {folder.curves_picture.name}"
    console.print(f"\nIn {folder.path}: {pictures}, metrics.csv, run.json, checkpoints", soft_wrap=True)
    console.print(f"Next: [bold]{_program()} {following}[/]", soft_wrap=True)


def _program() -> str:
    """How to call this program again: by name where the shell finds it, else as it was called now."""
    called = Path(sys.argv[0])
    if shutil.which("contrastive") or called.name not in ("contrastive", "__main__.py"):
        return "contrastive"
    return str(called) if called.name == "contrastive" else "python -m contrastive"


def _moved(data_dir: Path | None) -> dict[str, JSON]:
    return {} if data_dir is None else to_json({"data_dir": data_dir})


def _device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _embeddings(method: ContrastiveModule, data: ImageData, split: Literal["train", "val"]) -> dict[str, NDArray[Any]]:
    """Frozen features with all that says which image each is of."""
    found = FrozenTask(method.evaluated_encoder, method.make_views, data, device=_device()).features(split)
    arrays = {"features": found.features.cpu().numpy(), "index": found.index.cpu().numpy()}
    if found.labels is not None:
        arrays["labels"] = found.labels.cpu().numpy()
    if data.classes is not None:
        arrays["classes"] = np.array(data.classes)
    files = getattr(data, f"{split}_files", None)
    if files is not None:
        arrays["files"] = np.array([files[i] for i in found.index.tolist()])
    return arrays


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


@rank_zero_only
def _write_scores(record: EvaluationRecord, folder: RunFolder) -> None:
    saved = save(record, folder.path)
    console.print(screen(record))
    console.print(f"\nIn {folder.path}: {', '.join(file.name for file in saved.files[:2])}, pictures", soft_wrap=True)
    if saved.aside is not None:
        console.print(
            f"An earlier evaluation, of other weights or images or not readable, is {saved.aside.name} now",
            soft_wrap=True,
        )


def _cause(error: Exception) -> str:
    """One line. Errors that are not made for users to read keep their type, and point at the traceback."""
    words = " ".join(str(error).split())
    if isinstance(error, ValueError | TypeError | OSError | ModuleNotFoundError | MisconfigurationException) and words:
        return words if len(words) <= LONGEST_CAUSE else f"{words[:LONGEST_CAUSE]} ... (add {DEBUG} to see all)"
    return f"{type(error).__name__}: {words} (add {DEBUG} to see where)"


def _complain(cause: str, code: int) -> int:
    print(f"error: {cause}", file=sys.stderr)
    return code
