"""Fine-tuning: a run's encoder and a classifier trained on few or noisy labels, beside the same from scratch."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from torch import nn

from contrastive.augmentations import (
    CenterCrop,
    MakeViews,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from contrastive.augmentations import Views as ViewPipeline
from contrastive.data.module import ImageData
from contrastive.data.subsets import LabelledSubset, add_label_noise, balanced_fraction
from contrastive.encoders import ResNetEncoder
from contrastive.methods import SupervisedBaseline
from contrastive.optim import MakeOptimizer, adamw_cosine, sgd_cosine
from contrastive.recipes.recipe import Precision
from contrastive.runs.training import fit

LARGEST_BATCH = 256  # unless asked for; SimCLR has 4,096, and both its rate and ours are for 256 images
STEPS_PER_EPOCH = 3  # at least, where batches stay large enough: SimCLR's 1 % of ImageNet are three batches
SMALLEST_BATCH = 32  # for these steps; BatchNorm learns little from less


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a fine-tuning does with the labels it has; where not given, ``resolved`` fills in what is usual.

    ResNets are trained as in SimCLR, appendix B.5 (https://arxiv.org/abs/2002.05709): SGD with Nesterov's momentum of
    0.9, rate 0.05 for 256 images, no weight decay, no warm-up, 60 epochs on 1 % of the labels and 30 on 10 %. SimCLR v2
    has 30 for all labels too (https://arxiv.org/abs/2006.10029, section 3).

    Vision transformers are trained as MAE's ViT-B (``FINETUNE.md`` of facebookresearch/mae; its ``main_finetune.py``
    has the warm-up): AdamW, rate 5e-4 for 256 images, weight decay 0.05, layer-wise decay 0.65, 5 epochs of warm-up,
    100 epochs; without its mixup, erasing, smoothing and stochastic depth.

    Attributes:
        labels: Share of the training labels, the same of each class.
        label_noise: Probability that a label is wrong.
        freeze: How many of the encoder's stages stay as they are, counted from the images.
        max_epochs: Passes over the labelled images.
        batch_size: Images per device and step; never more than there are.
        lr: Learning rate.
        weight_decay: Of the weights.
        layer_decay: Each layer of a vision transformer has the rate of the layer above times this.
        warmup_epochs: Linear warm-up; at most a tenth of the training.
        crop_min: Smallest share of an image that a training crop keeps.
        devices: Number of GPUs, or of processes on a CPU.
        precision: Of the arithmetic.
    """

    labels: float
    label_noise: float = 0.0
    freeze: int = 0
    max_epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None
    warmup_epochs: float | None = None
    crop_min: float | None = None
    devices: int = 1
    precision: Precision = "32-true"

    def resolved(self, encoder: nn.Module, make_views: MakeViews, num_labelled: int) -> "Settings":
        """The same, with everything that was left open.

        Raises:
            ValueError: A layer decay for an encoder that is no vision transformer.
        """
        transformer = is_transformer(encoder)
        if self.layer_decay is not None and not transformer:
            raise ValueError(
                f"--layer-decay {self.layer_decay:g} is for vision transformers, and {type(encoder).__name__} is none: "
                "it is trained by SGD at one rate for all layers. Leave it out."
            )
        few = self.labels < 0.1
        usual_epochs = 100 if transformer else 60 if few else 30
        max_epochs = usual_epochs if self.max_epochs is None else self.max_epochs
        batch_size = self._batch_size(num_labelled)
        usual: dict[str, Any] = {
            "max_epochs": max_epochs,
            "lr": (5e-4 if transformer else 0.05) * batch_size * self.devices / 256,
            "weight_decay": 0.05 if transformer else 0.0,
            "layer_decay": 0.65 if transformer else None,
            "warmup_epochs": min(5, max_epochs / 10) if transformer else 0.0,
            "crop_min": _crop_of(make_views).scale[0],
        }
        open_ones = {name: value for name, value in usual.items() if getattr(self, name) is None}
        return dataclasses.replace(self, batch_size=batch_size, **open_ones)

    def make_optimizer(self) -> MakeOptimizer:
        """What trains, once everything is resolved: AdamW where there is a layer decay, else SGD."""
        assert self.lr is not None
        assert self.weight_decay is not None
        assert self.warmup_epochs is not None
        if self.layer_decay is None:
            return sgd_cosine(self.lr, weight_decay=self.weight_decay, nesterov=True, warmup_epochs=self.warmup_epochs)
        return adamw_cosine(
            self.lr,
            weight_decay=self.weight_decay,
            warmup_epochs=self.warmup_epochs,
            layer_decay=self.layer_decay,
        )

    def _batch_size(self, num_labelled: int) -> int:
        each = max(1, num_labelled // self.devices)  # images of a device
        if self.batch_size is not None:
            return min(self.batch_size, each)
        steps = max(math.ceil(each / LARGEST_BATCH), min(STEPS_PER_EPOCH, each // SMALLEST_BATCH), 1)
        return each // steps


@dataclass(frozen=True)
class Outcome:
    """What one training gave.

    Attributes:
        method: The trained encoder and classifier.
        top1: Accuracy on the validation images after the last epoch.
    """

    method: SupervisedBaseline
    top1: float


def labelled(data: ImageData, labels: float, label_noise: float, seed: int) -> tuple[LabelledSubset, int]:
    """A share of a data module's labels, some of them wrong, and how many are.

    The images come in one batch until a trainer is told better; see ``Settings.resolved``.

    Args:
        data: Training and validation images with labels.
        labels: Share of the training labels.
        label_noise: Probability that one of them is wrong; validation labels never are.
        seed: Of the choice, the noise and the order.

    Raises:
        ValueError: There are no labels, no validation images, or one of the numbers is impossible.
    """
    right = data.labels("train")
    if right is None or data.num_classes is None:
        raise ValueError("The data set has no labels to fine-tune on. Give class folders, train/CLASS/*.jpg.")
    if data.num_images("val") == 0:
        raise ValueError("The data set has no validation images to measure accuracy on. Give a folder val/ or test/.")
    right = right.cpu()
    chosen = balanced_fraction(right, labels, seed)
    given = add_label_noise(right, data.num_classes, label_noise, seed)
    subset = LabelledSubset(data, chosen, given, batch_size=len(chosen), seed=seed)
    return subset, int((given != right)[chosen].sum())


def train_classifier(
    encoder: nn.Module,
    make_views: MakeViews,
    data: LabelledSubset,
    settings: Settings,
    *,
    seed: int,
    callbacks: Sequence[pl.Callback] = (),
) -> Outcome:
    """Train an encoder and a linear classifier on labels, crops and flips alone.

    Args:
        encoder: Is trained itself, not a copy of it.
        make_views: Of the method that the encoder is of; says the images' size and normalisation.
        data: Labelled training images, and validation images.
        settings: Resolved.
        seed: Of the classifier, the augmentations, and anything random in the encoder.
        callbacks: Such as a progress bar.

    Raises:
        ValueError: The encoder has fewer stages than are to be frozen, or the views are not known to be cut so.
        KeyboardInterrupt: The user stopped it.
    """
    assert settings.batch_size is not None
    assert settings.crop_min is not None
    assert settings.max_epochs is not None
    assert data.num_classes is not None
    data.batch_size = settings.batch_size
    pl.seed_everything(seed, verbose=False)
    encoder.requires_grad_(True)  # also what the pretraining held fixed: MoCo v3's patches, all of DINO's teacher
    frozen = freeze(encoder, settings.freeze)
    method = SupervisedBaseline(
        encoder,
        crops_and_flips(make_views, settings.crop_min),
        settings.make_optimizer(),
        num_classes=data.num_classes,
        seed=seed,
    )
    trainer = pl.Trainer(
        max_epochs=settings.max_epochs,
        check_val_every_n_epoch=settings.max_epochs,  # once, at the end: no epoch is chosen by what it reached
        devices=settings.devices,
        precision=settings.precision,
        callbacks=[StayFrozen(frozen), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    fit(trainer, method.train(), data)
    return Outcome(method, trainer.callback_metrics["supervised/top1"].item())


def crops_and_flips(make_views: MakeViews, crop_min: float) -> ViewPipeline:
    """The view that supervised training sees (SimCLR, appendix B.5): the crop of the first view, flip, normalisation.

    Args:
        make_views: Of the pretraining, or ``evaluation_views``; size, interpolation, normalisation and what is
            evaluated are kept.
        crop_min: Smallest share of the image that a crop keeps.

    Raises:
        ValueError: ``make_views`` is none of our pipelines, or its first view has no crop.
    """
    crop = _crop_of(make_views)
    assert isinstance(make_views, ViewPipeline)
    last = make_views.views[0][-1]
    view = [
        dataclasses.replace(crop, scale=(crop_min, 1.0)),
        RandomHorizontalFlip(0.5),
        *([last] if isinstance(last, Normalize) else []),
    ]
    return dataclasses.replace(make_views, views=(view,))


def freeze(encoder: nn.Module, num_stages: int) -> list[nn.Module]:
    """Stop the encoder's first stages from training.

    Args:
        encoder: One of ``contrastive.encoders`` or of timm.
        num_stages: How many. A ResNet's are its stem and four more, a vision transformer's its patches and its blocks;
            with all of them, only the classifier is left to train.

    Returns:
        The modules all of whose parameters are frozen so; :class:`StayFrozen` keeps their BatchNorm still.

    Raises:
        ValueError: The encoder has fewer stages, or its stages are not known.
    """
    if num_stages == 0:
        return []
    stages = _stages(encoder)
    there_are = 1 + max(stages.values())
    if not 0 < num_stages <= there_are:
        raise ValueError(
            f"--freeze {num_stages} is not possible: {type(encoder).__name__} has {there_are} stages. Give 0 to "
            f"{there_are}; with {there_are}, only the classifier is trained."
        )
    frozen = {parameter for name, parameter in encoder.named_parameters() if stages[name] < num_stages}
    for parameter in frozen:
        parameter.requires_grad_(False)
    return [part for part in encoder.modules() if (own := set(part.parameters())) and own <= frozen]


class StayFrozen(pl.Callback):
    """Keeps modules in evaluation mode while the rest trains, so that BatchNorm's running statistics stay too.

    Before every batch, for whoever puts the whole module into training mode does not know of them.

    Args:
        modules: What stays.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Back into evaluation mode."""
        for module in self.modules:
            module.eval()


def is_transformer(encoder: nn.Module) -> bool:
    """Whether the encoder begins with patches, as timm's vision transformers do."""
    return hasattr(encoder, "patch_embed")


def _stages(encoder: nn.Module) -> dict[str, int]:
    """The stage of each parameter, from 0."""
    names = [name for name, _ in encoder.named_parameters()]
    if isinstance(encoder, ResNetEncoder):
        return {name: int(name[len("layer")]) if name.startswith("layer") else 0 for name in names}
    if not hasattr(encoder, "group_matcher"):
        raise ValueError(
            f"Which stages {type(encoder).__name__} has is not known, so none can be frozen. Leave --freeze out, or "
            "train an encoder of contrastive.encoders or timm."
        )
    from timm.models import group_parameters

    matcher: Any = encoder.group_matcher
    return dict(group_parameters(encoder, matcher(coarse=True), reverse=True))


def _crop_of(make_views: MakeViews) -> RandomResizedCrop:
    """The random crop of the first view; where that is cut from the middle, one of the same size and interpolation."""
    view = make_views.views[0] if isinstance(make_views, ViewPipeline) else ()
    found = {type(operation): operation for operation in view}
    crop, middle, resize = (found.get(kind) for kind in (RandomResizedCrop, CenterCrop, Resize))
    if isinstance(crop, RandomResizedCrop):
        return crop
    if isinstance(middle, CenterCrop):
        how = resize.interpolation if isinstance(resize, Resize) else "bilinear"
        return RandomResizedCrop(middle.size, interpolation=how)
    raise ValueError(
        f"The {type(make_views).__name__} do not say how large the encoder's images are and how they are normalised: "
        "their first view has no RandomResizedCrop or CenterCrop. Give views of contrastive.augmentations, or train "
        "in a script, with SupervisedBaseline."
    )
