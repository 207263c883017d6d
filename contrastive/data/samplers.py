"""Which image comes when, on which rank: pure functions of (seed, epoch), without duplicates."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler


class TrainSampler(DistributedSampler[int]):
    """Every image at most once per epoch over all ranks, in an order that only (seed, epoch) decide.

    One permutation of all images is cut into global batches, and each rank takes its own part of every global
    batch. So the global batches of an epoch stay the same when the number of ranks changes and the global batch
    size does not. The ragged end, less than one global batch, is dropped; which images that hits changes from
    epoch to epoch.

    The class derives from torch's ``DistributedSampler`` because Lightning replaces every other sampler under DDP
    (``Trainer(use_distributed_sampler=True)``, its default) and tells this one the epoch.

    Args:
        num_images: How many images there are.
        batch_size: Images per rank and step.
        seed: Seed of the order, >= 0; together with the epoch it seeds a private generator.
        rank: This process's rank.
        world_size: Number of ranks.
        shuffle: False keeps the images in their stored order, the same in every epoch.
        numbers: The images' numbers, int64 [num_images], for a part of a data set; 0, 1, 2, ... unless given.

    Raises:
        ValueError: There are fewer images than one global batch, or the seed is negative.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        numbers: NDArray[np.int64] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {batch_size}.")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, but is {seed}.")
        super().__init__(
            cast("Dataset[int]", range(num_images)),
            num_replicas=world_size,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
            drop_last=True,
        )
        self.num_images = num_images
        self.numbers = numbers
        self.batch_size = batch_size
        self.global_batch_size = batch_size * world_size
        self.num_batches = num_images // self.global_batch_size
        if num_images == 0:
            raise ValueError("There are no training images at all, so there is nothing to train on. Give some.")
        if self.num_batches == 0:
            ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
            raise ValueError(
                f"There are {num_images} training images, fewer than one global batch of {self.global_batch_size} "
                f"({ranks} x batch_size={batch_size}), so an epoch would have no step at all. "
                f"Set batch_size to {max(1, num_images // world_size)} or less, or give more images."
            )
        self.num_samples = self.num_batches * batch_size
        self.total_size = self.num_batches * self.global_batch_size
        self._served = 0  # images of this epoch given to the training so far, over all ranks
        self._resume = {"epoch": -1, "images": 0}

    def __iter__(self) -> Iterator[int]:
        """This rank's images of the epoch, without those that ``begin`` found already served."""
        if self.shuffle:
            # numpy mixes the pair well: seed 1 in epoch 0 is not seed 0 in epoch 1, as it is where the two are added.
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_images)
        else:
            order = np.arange(self.num_images)
        if self.numbers is not None:
            order = self.numbers[order]
        rest = order[self._served : self.total_size]
        steps = len(rest) // self.global_batch_size
        by_rank = rest[: steps * self.global_batch_size].reshape(steps, self.num_replicas, self.batch_size)
        return iter(by_rank[:, self.rank].ravel().tolist())

    def __len__(self) -> int:
        """How many images this rank sees in a whole epoch."""
        return self.num_samples

    def begin(self) -> None:
        """Start this epoch's count of images, after those that a loaded state says are done.

        A loader calls it when its first batch is asked for, by which time Lightning has said which epoch it is.
        """
        resumed = self._resume if self._resume["epoch"] == self.epoch else {"images": 0}
        self._resume = {"epoch": -1, "images": 0}
        self._served = resumed["images"]

    def count_batch(self) -> None:
        """One more global batch has been given to the training."""
        self._served += self.global_batch_size

    def state_dict(self) -> dict[str, Any]:
        """Where in which epoch the training is. Counted in images: holds for any number of ranks."""
        return {"epoch": self.epoch, "images": self._served}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the saved epoch, if that is the next one asked for, after the images it has already served."""
        self._resume = {"epoch": state["epoch"], "images": state["images"]}


class ExactSampler(DistributedSampler[int]):
    """Every image exactly once over all ranks, in stored order: for validation and feature banks.

    Each rank gets one contiguous piece; lengths differ by one at most. Torch's ``DistributedSampler`` pads to equal
    lengths by repeating images, which miscounts any metric: if image 0 alone of 9 is right, 2 ranks see it twice and
    report 2/10. To get 1/9, log a torchmetrics metric, which adds counts over ranks. Lightning's
    ``log(..., sync_dist=True)`` averages the ranks' means, of 4 and 5 images here, as if they were equally many.

    Args:
        num_images: How many images there are.
        rank: This process's rank.
        world_size: Number of ranks.
        what: What the images are for, named in the error.
        numbers: The images' numbers, int64 [num_images], for a part of a data set; 0, 1, 2, ... unless given.

    Raises:
        ValueError: There are fewer images than ranks.
    """

    def __init__(
        self,
        num_images: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        what: str = "validation",
        numbers: NDArray[np.int64] | None = None,
    ) -> None:
        if num_images < world_size:
            raise ValueError(
                f"There are {num_images} {what} images for {world_size} ranks, and every rank needs at least one. "
                f"Give more {what} images or use fewer ranks."
            )
        super().__init__(
            cast("Dataset[int]", range(num_images)), num_replicas=world_size, rank=rank, shuffle=False, drop_last=False
        )
        self.numbers = numbers
        self.start = rank * num_images // world_size
        self.stop = (rank + 1) * num_images // world_size
        self.num_samples = self.stop - self.start
        self.total_size = num_images

    def __iter__(self) -> Iterator[int]:
        """This rank's images, in stored order."""
        if self.numbers is not None:
            return iter(self.numbers[self.start : self.stop].tolist())
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        """How many images this rank sees."""
        return self.num_samples


def even_batch_size(num_images: int, batch_size: int, world_size: int) -> int:
    """The batch size, raised by the least that gives every rank of an ``ExactSampler`` equally many batches.

    Ranks whose shards differ by one image differ by one batch where the shorter shard ends on a full batch, and then
    any collective in a validation step (FSDP's, a synchronised log) waits for ever for the rank that is done.
    """
    shortest, longer_by_one = divmod(num_images, world_size)
    while longer_by_one and shortest % batch_size == 0:
        batch_size += 1
    return batch_size


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of ranks: (0, 1) where torch.distributed is not running."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
