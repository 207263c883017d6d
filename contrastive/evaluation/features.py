"""Features of a data set: extracted once, each image exactly once, however many ranks share the work."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from contrastive.distributed import rank
from contrastive.evaluation.ranks import gather_rows, sum_over_ranks
from contrastive.modes import eval_mode as eval_mode


@dataclass(frozen=True)
class Features:
    """What a frozen encoder made of a data set, in the order of the images' numbers.

    Attributes:
        features: Encoder outputs, float32 [N, D].
        labels: Classes, int64 [N], negative where unknown; None if the data set has no labels.
        index: The images' numbers in their data set, int64 [N], ascending.
    """

    features: Float[Tensor, "N D"]
    labels: Int64[Tensor, " N"] | None
    index: Int64[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device | str) -> "Features":
        """The same on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return Features(self.features.to(device), labels, self.index.to(device))

    def rows(self, which: Tensor) -> "Features":
        """The rows that a mask or an index selects."""
        labels = None if self.labels is None else self.labels[which]
        return Features(self.features[which], labels, self.index[which])

    @property
    def known(self) -> Bool[Tensor, " N"]:
        """Which images have a class (a label of 0 or more)."""
        return torch.zeros_like(self.index, dtype=torch.bool) if self.labels is None else self.labels >= 0

    def labelled(self) -> tuple[Float[Tensor, "M D"], Int64[Tensor, " M"]]:
        """Features and labels of the images whose class is known (a label of 0 or more).

        Raises:
            ValueError: No image has a label.
        """
        known = self.known
        if self.labels is None or not bool(known.any()):
            raise ValueError(
                f"None of the {len(self)} images has a label, and this needs them. Use a data set with labels: its "
                "batches have a 'label' beside 'image' and 'index'."
            )
        return self.features[known], self.labels[known]


def extract_features(
    encode: Callable[[Any], Tensor],
    loader: Iterable[Mapping[str, Any]],
    *,
    device: torch.device | str,
    gather: bool = True,
) -> Features:
    """Encode every image of a loader, without gradients.

    With several ranks, each encodes what its loader yields, and every rank gets the features of all: sorted by the
    images' numbers, and each image once, though a sampler may have padded the shards or every rank read all of it.

    Args:
        encode: A batch's images on ``device`` to features [B, D], floating point. Put a module into evaluation mode
            around the call, with ``eval_mode(module)``.
        loader: Yields mappings with ``image`` (a tensor, or ragged images), ``index`` and, where known, ``label``.
        device: Where the images are encoded. The features stay there: N x D x 4 bytes.
        gather: False leaves features on the rank that encoded them, an image that several ranks encoded on one of
            them: together, the ranks have each image once.

    Raises:
        TypeError: A batch is no mapping with ``image`` and ``index``.
        ValueError: The loader is empty, labels come with some batches only, or one loader gives a number twice.
    """
    features, labels, index = [], [], []
    ahead = torch.device(device).type == "cuda"  # copies to the host must be waited for
    with torch.no_grad():
        for batch in loader:
            _check_batch(batch)
            features.append(encode(batch["image"].to(device, non_blocking=ahead)).float())
            index.append(batch["index"].to(device, non_blocking=ahead))
            if "label" in batch:
                labels.append(batch["label"].to(device, non_blocking=ahead))
    if labels and len(labels) < len(features):
        raise ValueError(
            f"{len(labels)} of {len(features)} batches have a 'label'. Give every batch one, negative where unknown."
        )
    shard = _shard(features, labels, index, device)
    return _gathered(shard) if gather else _once_each(shard)


def _shard(features: list[Tensor], labels: list[Tensor], index: list[Tensor], device: torch.device | str) -> Features:
    """What this rank encoded, sorted; of the width of the others and with labels as they have, if it is nothing."""
    shape = torch.tensor([[features[0].shape[1] if features else 0, bool(labels)]], device=device)
    width, has_labels = gather_rows(shape).amax(0).tolist()
    if width == 0:
        raise ValueError("The loader gave no batch: there is nothing to extract features from.")
    numbers = torch.empty(0, dtype=torch.int64, device=device)
    shard = Features(
        torch.cat([torch.empty(0, width, device=device), *features]),
        torch.cat([numbers, *labels]) if has_labels else None,
        torch.cat([numbers, *index]),
    )
    check_unique(shard.index)
    return shard.rows(shard.index.argsort())


def _gathered(shard: Features) -> Features:
    index, order = gather_rows(shard.index).sort(stable=True)
    first = torch.ones_like(index, dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    rows = order[first]
    labels = None if shard.labels is None else gather_rows(shard.labels)[rows]
    return Features(gather_rows(shard.features)[rows], labels, index[first])


def _once_each(shard: Features) -> Features:
    """The shard without images that another rank keeps; those that many have are shared out among them."""
    index, order = gather_rows(shard.index).sort(stable=True)
    owners = gather_rows(torch.full_like(shard.index, rank()))[order]
    images, counts = index.unique_consecutive(return_counts=True)
    keepers = owners[counts.cumsum(0) - counts + images % counts]
    return shard.rows(torch.isin(shard.index, images[keepers == rank()]))


def check_unique(index: Int64[Tensor, " N"]) -> None:
    """Numbers tell images apart; two loaders joined without renumbering would lose half of them silently.

    The check is about one rank's loader, and every rank takes part: all raise or none does.

    Raises:
        ValueError: A number comes twice.
    """
    ordered = index.sort().values
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if int(sum_over_ranks(torch.tensor(len(repeated), device=index.device))):
        example = f"{int(repeated[0])} comes twice" if len(repeated) else "another rank has one that comes twice"
        raise ValueError(
            f"'index' must number the images of a data set, each differently, but {example}. "
            "Number the images of joined data sets through."
        )


def check_finite(features: Float[Tensor, "N D"]) -> None:
    """Features that are not numbers would be scored like any others.

    Raises:
        ValueError: A feature is infinite or NaN.
    """
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite()).any(1).sum())
        raise ValueError(
            f"{bad} of {len(features)} feature vectors hold infinities or NaN, so they cannot be judged. The encoder "
            "has diverged (lower the learning rate), or its 16-bit outputs have overflowed (encode in float32)."
        )


def _check_batch(batch: Any) -> None:
    if not isinstance(batch, Mapping) or not {"image", "index"} <= batch.keys():
        got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise TypeError(
            f"A batch is a mapping with 'image' and 'index' (and 'label', where known), but the loader gave {got}. "
            "Use contrastive.data; contrastive.data.from_dataset adapts any map-style data set."
        )
