"""What anybody's batches hold: images, labels and the images' numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Int64
from torch import Tensor

IMAGES, LABELS, INDEX = ("image", "images"), ("label", "labels"), ("index",)


def images_of(batch: Any) -> Any:
    """What the batch's encoder takes: its "image" or "images"; of a tuple or list the first.

    Raises:
        TypeError: There are none.
    """
    images = _under(batch, IMAGES)
    if images is None and isinstance(batch, tuple | list) and batch:
        images = batch[0]
    if not hasattr(images, "to"):  # a tensor, or ragged images
        raise TypeError(
            f"No images in a batch of {_described(batch)}: a bank's batches are mappings with 'image' or 'images', or "
            "(images, labels), the images one tensor of a row each. Pass bank=, a loader of such."
        )
    return images


def labels_of(batch: Any) -> Int64[Tensor, " B"]:
    """The batch's classes: its "label" or "labels"; of a tuple or list the second.

    Raises:
        TypeError: There are none, or what stands there is no class an image.
    """
    labels = _under(batch, LABELS)
    if labels is None and isinstance(batch, tuple | list) and len(batch) > 1:
        labels = batch[1]
    return check_labels(labels, f"a batch of {_described(batch)}")


def check_labels(labels: Any, source: str) -> Int64[Tensor, " B"]:
    """Labels as they are compared.

    Args:
        labels: Of a batch, or given by ``labels=``.
        source: Where they come from, for the message.

    Raises:
        TypeError: They are no integers [B].
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 1:
        raise TypeError(
            f"No labels in {source}: they are integers [B], under 'label' or 'labels', or the second of (images, "
            f"labels), but there is {_described(labels)}. Pass labels=, a function of the batch that returns them."
        )
    return labels.long()


def index_of(batch: Any) -> Int64[Tensor, " B"] | None:
    """The images' numbers in their data set, where the batch is a mapping with "index"."""
    index: Tensor | None = _under(batch, INDEX)
    return index


def num_images_in(batch: Any) -> int | None:
    """Rows of the first tensor that is found; None where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((count for count in map(num_images_in, parts) if count is not None), None)


def _under(batch: Any, keys: Sequence[str]) -> Any:
    return next((batch[key] for key in keys if key in batch), None) if isinstance(batch, Mapping) else None


def _described(thing: Any) -> str:
    if isinstance(thing, Mapping):
        return ", ".join(map(repr, thing)) or "nothing"
    if isinstance(thing, Tensor):
        return f"{str(thing.dtype).removeprefix('torch.')} {list(thing.shape)}"
    if isinstance(thing, tuple | list) and thing:
        return f"({', '.join(map(_described, thing))})"
    return "nothing" if thing is None else f"a {type(thing).__name__}"
