"""An encoder through every wanted protocol on every wanted data set, its features extracted once for all of them."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from contrastive.data.duplicates import compare
from contrastive.data.manifest import Manifest, manifest
from contrastive.data.module import ImageData
from contrastive.evaluation.protocols import PROTOCOLS, EvaluationProtocol, Progress, SGDProtocol
from contrastive.recipes import did_you_mean
from contrastive.recipes.recipe import Precision
from contrastive.report.evaluation import customary_metric
from contrastive.runs.evaluation_record import (
    DataSet,
    EvaluatedEncoder,
    EvaluationRecord,
    ProtocolResult,
    Provenance,
    Trial,
)
from contrastive.runs.feature_cache import FeatureCache, weights_digest
from contrastive.runs.frozen import FrozenTask
from contrastive.runs.signature import UsageError
from contrastive.runs.targets import Target, view_in_words


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How encoders are to be evaluated.

    Attributes:
        protocols: By name.
        device: Where images are encoded and classifiers solved.
        seeds: Each protocol is run once for each.
        precision: Of the encoder's arithmetic.
        keep_duplicates: Whether training images that are validation images too are used.
        cache: Where features are kept; None keeps none.
        provenance: Written beside every number.
        progress: Told of what takes long.
    """

    protocols: Mapping[str, EvaluationProtocol]
    device: torch.device
    seeds: Sequence[int] = (0,)
    precision: Precision = "32-true"
    keep_duplicates: bool = False
    cache: FeatureCache | None = None
    provenance: Provenance
    progress: Progress | None = None


@dataclass(frozen=True)
class Images:
    """A labelled data set under its name.

    Attributes:
        name: As people call it.
        root: Its folder; None where images are drawn.
        data: Training and validation images.
    """

    name: str
    root: Path | None
    data: ImageData


def choose_protocols(names: Sequence[str], *, max_epochs: int | None = None) -> dict[str, EvaluationProtocol]:
    """The protocols of these names, in their order.

    Args:
        names: Of ``PROTOCOLS``.
        max_epochs: How many passes those that train on augmented images make, if not as many as published.

    Raises:
        UsageError: There is no protocol of a name, or ``max_epochs`` suits none of them.
    """
    for name in names:
        if name not in PROTOCOLS:
            raise UsageError(f"There is no protocol {name!r}. {did_you_mean(name, list(PROTOCOLS))}")
    chosen = {name: PROTOCOLS[name] for name in names}
    if max_epochs is None:
        return chosen
    trained = {name: protocol for name, protocol in chosen.items() if isinstance(protocol, SGDProtocol)}
    if max_epochs < 1:
        raise UsageError(f"--max-epochs takes 1 or more, got {max_epochs}.")
    if not trained:
        those = ", ".join(name for name, one in PROTOCOLS.items() if isinstance(one, SGDProtocol))
        raise UsageError(f"--max-epochs is for protocols that train, which are {those}.")
    return chosen | {name: replace(one, epochs=max_epochs) for name, one in trained.items()}


def named_folders(transfer: Sequence[str]) -> dict[str, Path]:
    """``NAME=FOLDER`` of each data set to transfer to.

    Raises:
        UsageError: It is no ``NAME=FOLDER``, or a name comes twice.
        ValueError: A data set of that name has no score here.
    """
    folders: dict[str, Path] = {}
    for words in transfer:
        name, _, folder = words.partition("=")
        if not name or not folder or name in folders:
            raise UsageError(f"--transfer takes NAME=FOLDER, each name once, got {words!r}.")
        customary_metric(name)
        folders[name] = Path(folder)
    return folders


def open_data_sets(target: Target, data_dir: Path | None, transfer: Mapping[str, Path]) -> list[Images]:
    """The target's own data set, or that of a folder, and others to transfer to.

    Args:
        target: Opens them.
        data_dir: The first one's folder; a run's own images where None.
        transfer: Folders of the others, by name.

    Raises:
        UsageError: There is nothing to evaluate on, or two data sets have one name.
        OSError: A folder cannot be read.
        ValueError: It holds no classes, or a data set of its name has no score here.
    """
    found = [Images(name, folder, target.open_data(folder)) for name, folder in transfer.items()]
    if data_dir is not None:
        found.insert(0, Images(data_dir.resolve().name, data_dir, target.open_data(data_dir)))
    elif target.data_name is not None or not transfer:
        data = target.open_data(None)
        found.insert(0, Images(target.data_name or type(data).__name__, None, data))
    customary_metric(found[0].name)
    if found[0].name in list(transfer) and len(found) > len(transfer):
        raise UsageError(f"Two data sets are called {found[0].name!r}. Give the one in --transfer another name.")
    return found


def evaluate(
    target: Target, data_sets: Sequence[Images], wanted: Wanted, *, baselines: Sequence[Target] = ()
) -> EvaluationRecord:
    """What the target's encoder reaches, and what there is without it.

    With several ranks, every rank calls this and gets the same.

    Args:
        target: Whose encoder.
        data_sets: On what.
        wanted: How.
        baselines: Scored in the same way, on the same images.

    Raises:
        ValueError: A data set has no labels, one class or no validation images, or does not suit a protocol.
    """
    seen = [_look_at(images, wanted) for images in data_sets]
    scored = [_record(one, seen, wanted) for one in (target, *baselines)]
    return replace(scored[0], baselines=tuple(scored[1:]))


@dataclass(frozen=True)
class _Seen:
    """A data set, and what a look at its files showed."""

    images: Images
    manifests: Mapping[str, Manifest]
    left_out: Int64[Tensor, " E"] | None  # None: nobody looked for duplicates


def _look_at(images: Images, wanted: Wanted) -> _Seen:
    if images.data.num_images("val") == 0:
        raise ValueError(f"{images.name} has no validation images to score features on. Give a folder val/ or test/.")
    if len(images.data.classes or ()) == 1:
        raise ValueError(f"All images of {images.name} are of one class, {images.data.classes}: nothing to tell apart.")
    manifests = {split: manifest(images.data, split) for split in ("train", "val")}
    if wanted.keep_duplicates or "times" in {one.by for one in manifests.values()}:  # too much to read each time
        return _Seen(images, manifests, None)
    return _Seen(images, manifests, compare(manifests["train"], manifests["val"]).train_in_test)


def _record(target: Target, seen: Sequence[_Seen], wanted: Wanted) -> EvaluationRecord:
    tasks = [_task(target, one, wanted) for one in seen]
    data_sets = tuple(_scored(target, one, task, wanted) for one, task in zip(seen, tasks, strict=True))
    described = EvaluatedEncoder(
        name=target.name,
        checkpoint=None if target.checkpoint is None else target.checkpoint.name,
        epochs=target.epochs,
        num_parameters=sum(parameter.numel() for parameter in target.encoder.parameters()),
        num_features=tasks[0].features("val").features.shape[1],
        weights_sha256=weights_digest(target.encoder),
    )
    return EvaluationRecord(described, data_sets)


def _task(target: Target, seen: _Seen, wanted: Wanted) -> FrozenTask:
    return FrozenTask(
        target.encoder,
        target.views,
        seen.images.data,
        device=wanted.device,
        precision=wanted.precision,
        exclude=seen.left_out,
        cache=wanted.cache,
        manifests=seen.manifests,
        progress=wanted.progress,
    )


def _scored(target: Target, seen: _Seen, task: FrozenTask, wanted: Wanted) -> DataSet:
    data = seen.images.data
    started = time.perf_counter()
    for split in ("train", "val"):
        task.features(split)
    extraction_s = time.perf_counter() - started
    results = []
    for name, protocol in wanted.protocols.items():
        trials = [_trial(protocol, task, seed, wanted.progress) for seed in wanted.seeds]
        results.append(ProtocolResult.of(name, protocol, trials, wanted.provenance))
    digests = "".join(one.digest for one in seen.manifests.values())
    return DataSet(
        name=seen.images.name,
        root="" if seen.images.root is None else str(seen.images.root.resolve()),
        num_train=data.num_images("train"),
        num_test=data.num_images("val"),
        classes=tuple(data.classes or ()),
        duplicates_removed=None if seen.left_out is None else len(seen.left_out),
        manifest_sha256=hashlib.sha256(digests.encode()).hexdigest(),
        transform=f"{view_in_words(target.views)}, {wanted.precision}",
        extraction_seconds=extraction_s if task.has_extracted else None,
        results=tuple(results),
    )


def _trial(protocol: EvaluationProtocol, task: FrozenTask, seed: int, progress: Progress | None) -> Trial:
    started = time.perf_counter()
    found = protocol.evaluate(task, seed=seed, progress=progress)
    return Trial.of(found, seed=seed, seconds=time.perf_counter() - started)
