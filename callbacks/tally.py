"""Exact counting over ranks: every image of a validation loader once."""

from collections.abc import Mapping, Sized
from typing import Any, cast

import pytorch_lightning as pl
import torch
from jaxtyping import Int64
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from contrastive.callbacks.loops import log_epoch
from contrastive.evaluation import check_unique, gather_rows, sum_over_ranks


class Tally:
    """Hits among the labelled images of one validation loader.

    A sampler may pad the ranks' shares with images repeated. Where the module returns their ``index``, repeats are
    dropped by it; where it does not, by their place in torch's DistributedSampler, the one that pads.

    Args:
        loader: The validation loader of this rank.
        device: Where the counts are kept.
    """

    def __init__(self, loader: Any, device: torch.device) -> None:
        self._sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", getattr(loader, "sampler", None))
        self._rows = [torch.empty(0, 4, dtype=torch.int64, device=device)]  # index, top-1 hit, top-5 hit, counts
        self._num_seen = 0
        self._has_index = False

    def add(self, hits: Int64[Tensor, "B 2"], labels: Int64[Tensor, " B"], index: Int64[Tensor, " B"] | None) -> None:
        """Count a batch, in the loader's order.

        Args:
            hits: 1 where the class came first, 1 where it was among the first five.
            labels: Images with a negative label do not count.
            index: The images' numbers, where known; on any device, the host for example.
        """
        place = torch.arange(self._num_seen, self._num_seen + len(hits), device=hits.device)
        self._num_seen += len(hits)
        self._has_index = index is not None
        counts = labels >= 0
        if index is None:
            counts &= ~self._is_padding(place)
        number = place if index is None else index.to(hits.device, non_blocking=hits.is_cuda)
        self._rows.append(torch.stack([number, hits[:, 0], hits[:, 1], counts.long()], dim=1))

    def totals(self) -> Int64[Tensor, "3"]:
        """Top-1 hits, top-5 hits and images over all ranks, the same on each.

        Raises:
            ValueError: One rank's loader gave an index twice, so that it does not tell images apart.
        """
        rows = torch.cat(self._rows)
        if not int(sum_over_ranks(torch.tensor(self._has_index, device=rows.device, dtype=torch.int64))):
            return sum_over_ranks(_count(rows))
        check_unique(rows[:, 0])
        everything = gather_rows(rows)
        everything = everything[everything[:, 0].argsort(stable=True)]
        repeats = everything[1:, 0] == everything[:-1, 0]
        everything[1:, 3] *= ~repeats
        return _count(everything)

    def _is_padding(self, place: Tensor) -> Tensor:
        """DistributedSampler appends repeats to the data set's order, and deals it out to the ranks in turn."""
        sampler = self._sampler
        if not isinstance(sampler, DistributedSampler):
            return torch.zeros_like(place, dtype=torch.bool)
        num_images = len(cast(Sized, sampler.dataset))
        return torch.ge(place * sampler.num_replicas + sampler.rank, num_images)


def _count(rows: Tensor) -> Tensor:
    counts = rows[:, 3]
    return torch.stack([(rows[:, 1] * counts).sum(), (rows[:, 2] * counts).sum(), counts.sum()])


def log_accuracies(module: pl.LightningModule, tallies: Mapping[str, Tally], name: str, num_classes: int) -> None:
    """Log ``name/top1`` and, with more than 5 classes, ``name/top5`` of every loader, its suffix behind."""
    for suffix, tally in tallies.items():
        top1, top5, images = tally.totals()
        if not int(images):
            rank_zero_warn(
                f"{name} scored nothing on validation loader {suffix or '0'}: none of its images has a label."
            )
            continue
        log_epoch(module, {f"{name}/top1{suffix}": top1 / images}, prog_bar=True)
        if num_classes > 5:
            log_epoch(module, {f"{name}/top5{suffix}": top5 / images})
