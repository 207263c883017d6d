"""Places of images in a loader, which tell them apart where batches have no index."""

from collections.abc import Sized
from typing import Any, cast

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler


class Places:
    """Counts a loader's images as they come, over all ranks where torch's ``DistributedSampler`` deals them out.

    It deals them out in turn, and appends the first images once more, until the ranks have as many each.

    Args:
        loader: This rank's.
    """

    def __init__(self, loader: Any) -> None:
        sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", getattr(loader, "sampler", None))
        self._num_seen, self._rank, self._num_ranks = 0, 0, 1
        self._num_images: int | None = None  # known where some are repeated
        self.are_over_ranks = isinstance(sampler, DistributedSampler)
        if isinstance(sampler, DistributedSampler):
            self._rank, self._num_ranks = sampler.rank, sampler.num_replicas
            num_images = len(cast(Sized, sampler.dataset))
            self._num_images = num_images if sampler.total_size > num_images else None

    def next(self, count: int, device: torch.device) -> tuple[Int64[Tensor, " B"], Bool[Tensor, " B"]]:
        """Places of the next ``count`` images, and whether each repeats the one that has its place already."""
        place = torch.arange(self._num_seen, self._num_seen + count, device=device) * self._num_ranks + self._rank
        self._num_seen += count
        if self._num_images is None:
            return place, torch.zeros_like(place, dtype=torch.bool)
        return place % self._num_images, place >= self._num_images
