"""What callbacks read from a module's steps, and what they say when it is not there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from jaxtyping import Float, Int64
from torch import Tensor

from contrastive.callbacks.batches import index_of, num_images_in
from contrastive.callbacks.layer import Layer


@dataclass(frozen=True)
class Watched:
    """What a step showed to callbacks.

    Attributes:
        features: [V*B, D], V views one after the other; detached.
        num_views: V; 1 if nothing tells how many images there are.
        labels: [B], where known; negative where an image has none.
        index: [B], where known; on the host, if the module keeps it there.
        projections: What the loss compares, any number of rows, where returned; detached.
    """

    features: Float[Tensor, "VB D"]
    num_views: int
    labels: Int64[Tensor, " B"] | None
    index: Int64[Tensor, " B"] | None
    projections: Float[Tensor, "M P"] | None = None

    @property
    def labels_of_rows(self) -> Int64[Tensor, " VB"]:
        """The label of every row of ``features``."""
        assert self.labels is not None  # asked for by whoever reads them
        return self.labels.repeat(self.num_views)


def read_step(outputs: Any, needs: Sequence[str], *, reader: str, hook: str, module: pl.LightningModule) -> Watched:
    """Features, labels and index out of what a step returned.

    Args:
        outputs: What Lightning hands to ``on_train_batch_end`` or ``on_validation_batch_end``.
        needs: Keys without which the reader cannot work.
        reader: The callback's name.
        hook: ``training_step`` or ``validation_step``.
        module: Whose step it was.

    Raises:
        TypeError: A needed key is missing.
        ValueError: Features are no vectors, or labels or index do not fit them.
    """
    if not isinstance(outputs, Mapping) or not set(needs) <= outputs.keys():
        raise TypeError(_what_is_missing(outputs, needs, reader, f"{type(module).__name__}.{hook}"))
    features, projections = outputs["features"].detach(), outputs.get("projections")
    if features.ndim != 2:
        raise ValueError(
            f"{type(module).__name__}.{hook} returned features of shape {list(features.shape)}. {reader} takes "
            "vectors, [V*B, D]: pool feature maps first."
        )
    num_views = 1
    for key in ("index", "labels"):
        if key in outputs:
            num_views = _num_views(features, len(outputs[key]), hook)
            if num_views == 0:
                raise ValueError(
                    f"{type(module).__name__}.{hook} returned {len(features)} features and {len(outputs[key])} {key}. "
                    f"{reader} takes features [V*B, D], the V views one after the other, and {key} [B]; V is 1 in "
                    "validation."
                )
    projections = None if projections is None else projections.detach()
    return Watched(features, num_views, outputs.get("labels"), outputs.get("index"), projections)


def read_layer(
    layer: Layer, batch: Any, needs: Sequence[str], *, reader: str, hook: str, module: pl.LightningModule
) -> Watched:
    """The same out of what a submodule returned while the step ran, and of the step's batch.

    Args:
        layer: The submodule, which this step's outputs are taken from.
        batch: What the step was given.
        needs: "labels" among them, if the reader cannot work without.
        reader: The callback's name.
        hook: ``training_step`` or ``validation_step``.
        module: Whose step it was.

    Raises:
        TypeError: The submodule was not called, or the batch has no labels.
        ValueError: Its rows are no whole number of views of the batch.
    """
    features, step = layer.take(), f"{type(module).__name__}.{hook}"
    if features is None:
        raise TypeError(
            f"{reader} reads what {layer.name!r} returns, but {step} did not call it. Name a submodule that the step "
            "calls, as a function: its .forward() is not seen, nor is a network that torch.compile compiled before."
        )
    labels = layer.labels_of(batch).to(features.device) if "labels" in needs else None
    num_images = num_images_in(batch) if labels is None else len(labels)
    num_views = 1 if num_images is None else _num_views(features, num_images, hook)
    if num_views == 0:
        raise ValueError(
            f"{layer.name!r} returned {len(features)} rows in {step}, for {num_images} images. {reader} takes features "
            "[V*B, D], the V views one after the other; V is 1 in validation."
        )
    return Watched(features, num_views, labels, index_of(batch))


def was_skipped(outputs: Any, module: pl.LightningModule) -> bool:
    """Whether ``training_step`` returned None, which tells Lightning's automatic optimization to skip the batch."""
    return module.automatic_optimization and outputs == {}


def _num_views(features: Tensor, num_images: int, hook: str) -> int:
    """V; 0 where the features are no whole number of views."""
    num_views, rest = divmod(len(features), max(1, num_images))
    return 0 if rest or (hook == "validation_step" and num_views > 1) else num_views


def _what_is_missing(outputs: Any, needs: Sequence[str], reader: str, step: str) -> str:
    if isinstance(outputs, Mapping):
        got = ", ".join(repr(key) for key in outputs) or "nothing"
    else:
        got = "nothing" if outputs is None else f"a {type(outputs).__name__}"
    wanted = " and ".join(repr(key) for key in needs)
    if isinstance(outputs, Mapping) and "features" in outputs:
        advice = (
            "If the module is a ContrastiveModule, its batches have no 'label': train on a labelled data set, or "
            f"remove {reader}; LinearProbe(data=...) measures another, labelled, data set."
        )
    else:
        advice = (
            "Return a mapping with 'features' [V*B, D], 'labels' [B] and 'index' [B], beside 'loss' in training, as "
            f"ContrastiveModule does; or leave the module as it is and name a submodule, {reader}(layer='backbone')."
        )
    return f"{reader} reads {wanted} from {step}, which returned {got}. {advice}"
