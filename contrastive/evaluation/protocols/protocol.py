"""What a protocol is: a frozen encoder and a labelled data set in, scores out; hyper-parameters fixed, or chosen by a
stated rule.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import getdoc
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastive.evaluation.features import Features

Split = Literal["train", "val"]
Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it has been, and how much there is: ``progress("epochs", 3, 100)``."""


@dataclass(frozen=True)
class AugmentedBatch:
    """Features of augmented training images, on the device the heads are trained on.

    Attributes:
        features: [B, D].
        labels: [B], negative where unknown.
        index: [B], the images' numbers.
    """

    features: Float[Tensor, "B D"]
    labels: Int64[Tensor, " B"]
    index: Int64[Tensor, " B"]


@runtime_checkable
class Task(Protocol):
    """A labelled data set through a frozen encoder: all that a protocol sees of either.

    Features are those of all ranks, the same on each, extracted when first asked for and then kept. ``blocks=True``
    asks for more than the encoder's output, where the encoder has more to give: a vision transformer's class tokens of
    the last four blocks and its mean patch token, side by side; ``inputs`` says which columns make which input of a
    head. Any other encoder gives its output both ways.
    """

    @property
    def num_classes(self) -> int:
        """C; labels are below it."""

    @property
    def inputs(self) -> Mapping[str, slice]:
        """Columns of the features with ``blocks=True`` that make an input, by the input's name."""

    def features(self, split: Split, *, blocks: bool = False) -> Features:
        """Features of the unaugmented images of a split, none left out."""

    def augmented(
        self, epoch: int, *, batch_size: int, crop_min: float, seed: int, blocks: bool = False
    ) -> Iterator[AugmentedBatch]:
        """One epoch over the training images in a random order, each cropped (an area of ``crop_min`` to 1 of the
        image's, ImageNet's aspect ratios) and flipped; the ragged end is dropped, as in training.

        With several ranks every rank gets the whole batch: images are encoded where they lie and features gathered.

        Args:
            epoch: From 0; another epoch is another order and other crops.
            batch_size: Images a step over all ranks; at most as many as there are.
            crop_min: Smallest area of a crop, as a share of the image's.
            seed: Of the order and the crops.
            blocks: See above.
        """

    def num_batches(self, batch_size: int) -> int:
        """Batches that one epoch of ``augmented`` gives."""


@dataclass(frozen=True)
class Evaluation:
    """What a protocol found.

    Attributes:
        scores: By name, the protocol's headline first: ``top1``, ``top5`` (with more than 5 classes),
            ``mean_per_class`` (mean of the classes' accuracies), ...; accuracies as fractions.
        chosen: Hyper-parameters that were chosen on training images, by name.
        at_edge: Names of those that lie at the edge of their grid: a wider grid might do better.
        num_train: Labelled training images that were used.
        num_test: Labelled test images that were scored, each once.
        details: What else a reader of the record should know (held-out accuracies, certificates), in plain values.
        confusion: Test images of class i that were taken for class j, [C, C]; None where nothing is classified.
        spread: Standard deviation of each score over draws or seeds, where there were several.
    """

    scores: Mapping[str, float]
    num_train: int
    num_test: int
    chosen: Mapping[str, Any] = field(default_factory=dict)
    at_edge: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    confusion: Int64[Tensor, "C C"] | None = None
    spread: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol(ABC):
    """Base of the protocols: frozen dataclasses, whose fields are the fixed hyper-parameters.

    Attributes:
        source: Where the hyper-parameters come from.
    """

    source: str

    @property
    def description(self) -> str:
        """What it does: its class's docstring up to the first blank line, on one line."""
        return " ".join((getdoc(type(self)) or "").partition("\n\n")[0].split())

    @abstractmethod
    def evaluate(self, task: Task, *, seed: int = 0, progress: Progress | None = None) -> Evaluation:
        """Score the task's encoder. The test images are looked at once, after everything has been chosen.

        Args:
            task: The encoder and the data.
            seed: Of whatever is drawn: held-out images, order, crops, restarts.
            progress: Told of what takes long.

        Raises:
            ValueError: The data or the features do not suit the protocol.
        """


def classification(logits: Float[Tensor, "N C"], labels: Int64[Tensor, " N"]) -> tuple[dict[str, float], Tensor]:
    """The scores ``top1``, ``top5`` with more than 5 classes, ``mean_per_class``, and the confusion matrix [C, C].

    Args:
        logits: Or votes, or anything whose largest is the prediction.
        labels: From 0 to C - 1.
    """
    num_classes = logits.shape[1]
    ranked = logits.topk(min(5, num_classes), dim=1).indices
    hits = ranked == labels[:, None]
    confusion = torch.bincount(labels * num_classes + ranked[:, 0], minlength=num_classes**2).view(num_classes, -1)
    present = confusion.sum(1) > 0
    per_class = confusion.diagonal()[present].double() / confusion.sum(1)[present]
    scores = {"top1": float(hits[:, 0].double().mean())}
    if num_classes > 5:
        scores["top5"] = float(hits.any(1).double().mean())
    return scores | {"mean_per_class": float(per_class.mean())}, confusion
