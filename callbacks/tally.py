"""Exact counting over ranks: every image of a validation loader once."""

from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int64
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from contrastive.callbacks.contract import Watched
from contrastive.callbacks.loops import log_epoch, validation_loaders
from contrastive.callbacks.places import Places
from contrastive.evaluation import check_unique, gather_rows, sum_over_ranks, top_hits


class Tally:
    """Hits among the labelled images of one validation loader.

    A sampler may pad the ranks' shares with images repeated. Where their ``index`` is known, repeats are dropped by it;
    where it is not, by their place in torch's DistributedSampler, the one that pads.

    Args:
        loader: The validation loader of this rank.
        device: Where the counts are kept.
    """

    def __init__(self, loader: Any, device: torch.device) -> None:
        self._places = Places(loader)
        self._rows = [torch.empty(0, 4, dtype=torch.int64, device=device)]  # index, top-1 hit, top-5 hit, counts
        self._has_index = False

    def add(self, hits: Int64[Tensor, "B 2"], labels: Int64[Tensor, " B"], index: Int64[Tensor, " B"] | None) -> None:
        """Count a batch, in the loader's order.

        Args:
            hits: 1 where the class came first, 1 where it was among the first five.
            labels: Images with a negative label do not count.
            index: The images' numbers, where known; on any device, the host for example.
        """
        place, is_repeat = self._places.next(len(hits), hits.device)
        self._has_index = index is not None
        counts = labels >= 0
        if index is None:
            counts &= ~is_repeat
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


def _count(rows: Tensor) -> Tensor:
    counts = rows[:, 3]
    return torch.stack([(rows[:, 1] * counts).sum(), (rows[:, 2] * counts).sum(), counts.sum()])


class Tallies:
    """A tally for each of the loaders being validated."""

    def __init__(self, trainer: pl.Trainer, device: torch.device) -> None:
        self._by_suffix = {suffix: Tally(loader, device) for suffix, loader in validation_loaders(trainer).items()}

    def add(self, dataloader_idx: int, logits: Float[Tensor, "B C"], watched: Watched) -> None:
        """Count a batch.

        Args:
            dataloader_idx: The loader's number.
            logits: Or votes: the largest is the prediction.
            watched: The batch's labels and index.
        """
        labels = watched.labels_of_rows
        list(self._by_suffix.values())[dataloader_idx].add(top_hits(logits, labels), labels, watched.index)

    def log(self, module: pl.LightningModule, name: str, num_classes: int) -> None:
        """Log ``name/top1`` and, with more than 5 classes, ``name/top5`` of every loader, its suffix behind."""
        for suffix, tally in self._by_suffix.items():
            top1, top5, images = tally.totals()
            if not int(images):
                rank_zero_warn(
                    f"{name} scored nothing on validation loader {suffix or '0'}: none of its images has a label."
                )
                continue
            log_epoch(module, {f"{name}/top1{suffix}": top1 / images}, prog_bar=True)
            if num_classes > 5:
                log_epoch(module, {f"{name}/top5{suffix}": top5 / images})
