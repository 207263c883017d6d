"""What callbacks read from a module's steps, and what they say when it is not there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Watched:
    """What a step returned for callbacks.

    Attributes:
        features: [V*B, D], V views one after the other; detached.
        labels: [B], where returned; negative where an image has none.
        index: [B], where returned; on the host, if the module keeps it there.
        projections: What the loss compares, any number of rows, where returned; detached.
    """

    features: Float[Tensor, "VB D"]
    labels: Int64[Tensor, " B"] | None
    index: Int64[Tensor, " B"] | None
    projections: Float[Tensor, "M P"] | None

    @property
    def num_views(self) -> int:
        """V; 1 if neither labels nor index tell how many images there are."""
        per_image = self.labels if self.labels is not None else self.index
        return 1 if per_image is None else len(self.features) // len(per_image)

    @property
    def labels_of_rows(self) -> Int64[Tensor, " VB"]:
        """The label of every row of ``features``."""
        assert self.labels is not None  # asked for in read_step
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
    for key in ("labels", "index"):
        if key not in outputs:
            continue
        num_images = len(outputs[key])
        num_views = len(features) / max(1, num_images)
        if num_views < 1 or num_views % 1 or (hook == "validation_step" and num_views > 1):
            raise ValueError(
                f"{type(module).__name__}.{hook} returned {len(features)} features and {num_images} {key}. {reader} "
                f"takes features [V*B, D], the V views one after the other, and {key} [B]; V is 1 in validation."
            )
    projections = None if projections is None else projections.detach()
    return Watched(features, outputs.get("labels"), outputs.get("index"), projections)


def was_skipped(outputs: Any, module: pl.LightningModule) -> bool:
    """Whether ``training_step`` returned None, which tells Lightning's automatic optimization to skip the batch."""
    return module.automatic_optimization and outputs == {}


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
            "Return a mapping with 'features' [V*B, D], 'labels' [B] and 'index' [B], beside 'loss' in training; "
            "ContrastiveModule does."
        )
    return f"{reader} reads {wanted} from {step}, which returned {got}. {advice}"
