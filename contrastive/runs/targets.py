"""What ``contrastive evaluate`` is pointed at: a run, a file of weights, or a model of timm or torchvision."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torchvision
from jaxtyping import Float
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchvision.models import list_models

from contrastive.augmentations import (
    CenterCrop,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    Views,
)
from contrastive.augmentations.normalize import IMAGENET
from contrastive.augmentations.operations import Operation
from contrastive.augmentations.views import MakeViews
from contrastive.data import ImageFolders
from contrastive.data.module import ImageData
from contrastive.encoders import timm_encoder, torchvision_encoder
from contrastive.recipes import did_you_mean
from contrastive.recipes.recipe import split_folders
from contrastive.runs.feature_cache import default_folder
from contrastive.runs.folder import RunFolder
from contrastive.runs.load import TrainedRun, build, load_run, names_a_recipe
from contrastive.runs.signature import JSON, UsageError, to_json
from contrastive.runs.weights import load_encoder

IMAGE_SIZE = 224  # ImageNet's; what a file of weights does not say
CROP_SHARE = 0.875  # of the shorter side: 224 of 256 pixels
SMALL = 64  # images up to this size have no margin to cut off
PIXELS_SIDE = 16  # larger images are averaged to this many pixels a side, or the regression takes minutes
BINS = 8  # a channel
TIMM, TORCHVISION = "timm", "torchvision"


@dataclass(frozen=True)
class Target:
    """An encoder, and how images come to it.

    Attributes:
        name: What it is, for people.
        encoder: Normalised float images [B, 3, H, W] to features [B, D], in evaluation mode.
        views: Their ``evaluation_view`` is what the encoder sees of an image.
        open_data: Gives the images of a folder with train/ and val/ (or test/); of None, those a run was trained on.
        folder: Where results go.
        feature_folder: Where its features are kept.
        data_name: What people call the images a run was trained on; None where there are none.
        checkpoint: The file that the weights are from, where they are from one.
        epochs: Finished epochs of training, where known.
        untrained: Builds the same network with drawn weights, where it is known how.
    """

    name: str
    encoder: nn.Module
    views: MakeViews
    open_data: Callable[[Path | None], ImageData]
    folder: RunFolder
    feature_folder: Path
    data_name: str | None = None
    checkpoint: Path | None = None
    epochs: int | None = None
    untrained: Callable[[], nn.Module] | None = None


def open_target(
    what: str,
    *,
    pretrained: bool = True,
    image_size: int | None = None,
    batch_size: int = 256,
    output: Path | None = None,
    seed: int = 0,
) -> Target:
    """The encoder that ``what`` means.

    Args:
        what: A run's folder or a checkpoint of one; any file that ``contrastive.load_encoder`` reads; ``timm:NAME`` or
            ``torchvision:NAME``.
        pretrained: Whether a library's model has the library's weights.
        image_size: Side in pixels of what an encoder of a file or a library sees; unless given, timm's for the model,
            and 224. A run's encoder sees what it was trained on.
        batch_size: Images encoded at a time, where no run says.
        output: Where results go, if not into the run's folder or ``runs/evaluate-...``.
        seed: Of the weights of an untrained model; a run's has the run's.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: The file holds no weights, or a library has no such model.
        OSError: A library's weights could not be fetched.
    """
    library, _, name = what.partition(":")
    if library in (TIMM, TORCHVISION):
        target = _of_library(library, name, pretrained, image_size, batch_size, seed)
    else:
        path = Path(what)
        if not path.exists():
            raise FileNotFoundError(
                f"There is no run, checkpoint or file of weights at {path}. Runs lie in runs/ unless --run-dir said "
                "else; timm:NAME and torchvision:NAME are models of those libraries."
            )
        is_run = path.is_dir() or names_a_recipe(path)
        target = _of_run(load_run(path)) if is_run else _of_file(path, image_size, batch_size)
    return target if output is None else replace(target, folder=RunFolder(output))


def baselines(target: Target) -> list[Target]:
    """What there is without training, on the same images: pixels, colours, and the same network with drawn weights.

    Colours are counted where it is known how images are normalised, and so how not to.
    """
    views = target.views
    found = []
    if isinstance(views, Views):
        plain = _without_normalisation(views)
        found = [
            replace(
                target, name=f"raw pixels, {PIXELS_SIDE} x {PIXELS_SIDE}", encoder=Pixels(PIXELS_SIDE), views=plain
            ),
            replace(target, name=f"histogram of {BINS**3} colours", encoder=ColourHistogram(BINS), views=plain),
        ]
    if target.untrained is not None:
        found.append(replace(target, name="untrained encoder", encoder=target.untrained()))
    return [replace(baseline, checkpoint=None, epochs=None, untrained=None) for baseline in found]


def view_in_words(views: MakeViews) -> str:
    """What an image goes through before the encoder sees it."""
    if not isinstance(views, Views):
        return type(views).__name__
    if views.evaluation is None:
        middle = next(operation for operation in views.views[0] if hasattr(operation, "size"))
        return f"the middle, as large as {middle} crops, then {views.views[0][-1]}"
    return ", ".join(map(str, views.evaluation))


class Pixels(nn.Module):
    """The images themselves as features, averaged to ``side`` x ``side``: what there is without an encoder."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.num_features = 3 * side * side

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """[B, 3 * side * side]."""
        return F.adaptive_avg_pool2d(images, self.side).flatten(1)


class ColourHistogram(nn.Module):
    """How often each of ``bins``^3 colours comes in an image, as roots of shares: what there is without shapes.

    With roots, the scalar product of two images is Bhattacharyya's coefficient of their histograms, 1 for equal ones.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.num_features = bins**3

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """[B, bins^3], of pixels in [0, 1]."""
        level = (images * self.bins).long().clamp(0, self.bins - 1).flatten(2)  # [B, 3, H * W]
        colour = (level[:, 0] * self.bins + level[:, 1]) * self.bins + level[:, 2]
        counts = images.new_zeros(len(images), self.num_features)
        counts.scatter_add_(1, colour, torch.ones_like(colour, dtype=counts.dtype))
        return (counts / colour.shape[1]).sqrt()


def _of_run(run: TrainedRun) -> Target:
    def open_data(data_dir: Path | None) -> ImageData:
        """As the run opens its own."""
        if data_dir is None:
            return run.recipe.open_data()
        if "data_dir" not in run.arguments:
            raise UsageError(f"Recipe {run.name} draws its images itself: it opens no folder of images.")
        moved: dict[str, JSON] = {**run.arguments, **to_json({"data_dir": data_dir})}
        return build(run.name, moved).open_data()

    return Target(
        name=f"{run.name}, {run.epochs} epochs",
        encoder=run.recipe.method.evaluated_encoder.eval(),
        views=run.recipe.method.make_views,
        open_data=open_data,
        folder=run.folder,
        feature_folder=run.folder.path / "features",
        data_name=Path(str(run.arguments.get("data_dir", run.name))).name,
        checkpoint=run.checkpoint,
        epochs=run.epochs,
        untrained=lambda: build(run.name, run.arguments).method.evaluated_encoder.eval(),
    )


def _of_file(path: Path, image_size: int | None, batch_size: int) -> Target:
    return Target(
        name=path.name,
        encoder=load_encoder(path),
        views=_views(image_size or IMAGE_SIZE),
        open_data=_folder_opener(batch_size),
        folder=RunFolder(Path("runs", f"evaluate-{path.stem}")),
        feature_folder=default_folder(),
        checkpoint=path,
    )


def _of_library(
    library: str, name: str, pretrained: bool, image_size: int | None, batch_size: int, seed: int
) -> Target:
    make, views = (_timm if library == TIMM else _torchvision)(name, image_size)

    def untrained() -> nn.Module:
        with isolate_rng():
            pl.seed_everything(seed, verbose=False)
            return make(False).eval()

    try:
        encoder = make(True).eval() if pretrained else untrained()
    except OSError as error:
        raise OSError(
            f"The weights of {library}'s {name} could not be fetched: {error}. Add --pretrained false to evaluate the "
            "untrained network, or give a file of weights instead of the model's name."
        ) from error
    how = "pretrained" if pretrained else "untrained"
    return Target(
        name=f"{library}:{name}, {how}",
        encoder=encoder,
        views=views,
        open_data=_folder_opener(batch_size),
        folder=RunFolder(Path("runs", f"evaluate-{library}-{name.replace('/', '-')}-{how}")),
        feature_folder=default_folder(),
        untrained=untrained if pretrained else None,
    )


def _timm(name: str, image_size: int | None) -> tuple[Callable[[bool], nn.Module], Views]:
    """What makes the model, and what it sees of an image: both as timm has published it."""
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}. {did_you_mean(name, timm.list_models())}")
    published = timm.get_pretrained_cfg(name, allow_unregistered=False) or timm.models.PretrainedCfg()
    built_for = image_size if published.fixed_input_size else None
    views = _views(
        image_size or min(published.input_size[1:]),
        share=published.crop_pct,
        interpolation="bicubic" if published.interpolation == "bicubic" else "bilinear",
        normalize=Normalize(tuple(published.mean), tuple(published.std)),
    )
    return lambda pretrained: timm_encoder(name, image_size=built_for, pretrained=pretrained), views


def _torchvision(name: str, image_size: int | None) -> tuple[Callable[[bool], nn.Module], Views]:
    known = list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}. {did_you_mean(name, known)}")
    return lambda pretrained: torchvision_encoder(name, pretrained=pretrained), _views(image_size or IMAGE_SIZE)


def _views(
    side: int,
    *,
    share: float = CROP_SHARE,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    normalize: Normalize = IMAGENET,
) -> Views:
    """Crop and flip for training heads; resize and the middle, ``share`` of the shorter side, for evaluation."""
    shorter = side if side <= SMALL else math.floor(side / share)
    return Views(
        ((RandomResizedCrop(side, interpolation=interpolation), RandomHorizontalFlip(0.5), normalize),),
        evaluation=(Resize(shorter, interpolation), CenterCrop(side), normalize),
    )


def _without_normalisation(views: Views) -> Views:
    def plain(view: Sequence[Operation]) -> tuple[Operation, ...]:
        return tuple(operation for operation in view if not isinstance(operation, Normalize))

    evaluation = None if views.evaluation is None else plain(views.evaluation)
    return replace(views, views=(plain(views.views[0]),), evaluation=evaluation, dtype=torch.float32)


def _folder_opener(batch_size: int) -> Callable[[Path | None], ImageData]:
    def open_data(data_dir: Path | None) -> ImageData:
        if data_dir is None:
            raise UsageError("Missing: --data-dir, a folder with train/CLASS/*.jpg and val/CLASS/*.jpg (or test/).")
        return ImageFolders(*split_folders(data_dir), batch_size=batch_size, labelled=True)

    return open_data
