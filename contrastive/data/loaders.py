"""Loaders that start when their first batch is asked for, and that a training resumed inside an epoch goes on with.

Lightning makes a resumed run's first iterator before it tells the sampler the epoch. An ordinary loader's worker
processes have by then begun to fetch the images of epoch 0.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from contrastive.augmentations import RaggedImages
from contrastive.data.samplers import ExactSampler, TrainSampler
from contrastive.data.workers import WORKER_TIMEOUT_S, LoadingError, Workers, explain, outlive_signals

Batch = Mapping[str, Tensor | RaggedImages]

# Before workers are forked, gloo's threads get this long to let go of what they hold after a collective. CPython 3.11
# forks into a deadlock if one is just entering or leaving the interpreter (seen once, on two busy cores: the worker
# waited for ever in PyOS_AfterFork_Child). The threads need microseconds.
_SETTLE_S = 0.1


class EpochLoader:
    """Base of the loaders: counts the batches it gives, for a checkpoint taken inside an epoch to hold."""

    sampler: Sampler[Any] | Iterable[Any]

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """The batches of the images that the sampler names now."""

    @abstractmethod
    def __len__(self) -> int:
        """How many batches this rank gets in a whole epoch."""

    def __iter__(self) -> Any:
        """One epoch's batches: an iterator of mappings that does nothing before its first batch is asked for."""
        if not isinstance(self.sampler, TrainSampler):
            yield from self.batches()
            return
        self.sampler.begin()
        for batch in self.batches():
            self.sampler.count_batch()
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where in which epoch the training is; empty for loaders that do not train."""
        return self.sampler.state_dict() if isinstance(self.sampler, TrainSampler) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken; an empty state changes nothing."""
        if state and isinstance(self.sampler, TrainSampler):
            self.sampler.load_state_dict(state)


class WorkerLoader(EpochLoader, DataLoader[Any]):
    """Images read one by one, in worker processes if asked for; takes the arguments of torch's ``DataLoader``.

    Attributes:
        worker_timeout_s: How long to wait for a batch of the workers; None: without end.
    """

    worker_timeout_s: float | None = WORKER_TIMEOUT_S

    def batches(self) -> Iterator[Batch]:
        """The batches of the images that the sampler names now.

        Raises:
            LoadingError: An image could not be loaded, a worker died, or none came in time. Never but from ``next``.
        """
        if self.num_workers > 0 and self._iterator is None and dist.is_available() and dist.is_initialized():
            time.sleep(_SETTLE_S)
        iterator: Any = None
        while True:
            try:
                iterator = DataLoader.__iter__(self) if iterator is None else iterator
                batch = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # a user's data set may raise anything; it stays the cause
                self._iterator = None
                if isinstance(iterator, Workers):
                    iterator.close()
                if isinstance(error, LoadingError):
                    raise
                raise explain(error, self.num_workers) from error
            yield batch

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return Workers(self, self.worker_timeout_s)

    def __len__(self) -> int:
        """How many batches this rank gets in a whole epoch."""
        return DataLoader.__len__(self)


def worker_loader(
    images: Dataset[Any],
    sampler: TrainSampler | ExactSampler,
    batch_size: int,
    *,
    num_workers: int,
    keep_workers: bool,
    pin_memory: bool,
    seed: int,
    worker_timeout_s: float | None = WORKER_TIMEOUT_S,
    collate: Callable[[list[Any]], Any] = default_collate,
) -> WorkerLoader:
    """A loader of single images that leaves the global random state alone.

    Args:
        images: Map-style data set of single images.
        sampler: Yields the images' numbers.
        batch_size: Images per batch.
        num_workers: Worker processes; 0 reads in this process.
        keep_workers: Whether the workers outlive the end of an epoch.
        pin_memory: Whether batches lie in page-locked memory, from which a GPU copies without waiting.
        seed: Seeds what the workers' own random generators start from; without it, torch's global one would be asked.
        worker_timeout_s: How long to wait for a batch of the workers; None: without end.
        collate: Makes a batch of a list of images.
    """
    loader = WorkerLoader(
        images,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=isinstance(sampler, TrainSampler),
        num_workers=num_workers,
        persistent_workers=keep_workers and num_workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),
        collate_fn=collate,
        worker_init_fn=outlive_signals,
    )
    loader.worker_timeout_s = worker_timeout_s
    return loader


def ragged_batch(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What ``default_collate`` makes of items, but for ``image``: images [C, H, W] of any sizes become ragged ones."""
    rest = [{key: value for key, value in item.items() if key != "image"} for item in items]
    return {"image": RaggedImages.pack([item["image"] for item in items]), **default_collate(rest)}


class TensorLoader(EpochLoader):
    """Images that lie in a tensor, picked by the batch on the tensor's own device, without worker processes.

    A batch's ``index`` is on the host, where views draw their random numbers.

    Args:
        images: All images of the split, uint8 [N, 3, H, W].
        labels: Their labels, int64 [N], on the same device, where known.
        sampler: Yields the images' numbers.
        batch_size: Images per batch; the last batch may be smaller.
    """

    batch_sampler = None  # Lightning asks every loader that has a sampler

    def __init__(
        self,
        images: UInt8[Tensor, "N 3 H W"],
        labels: Int64[Tensor, " N"] | None,
        sampler: TrainSampler | ExactSampler,
        batch_size: int,
    ) -> None:
        self.images = images
        self.labels = labels
        self.sampler: TrainSampler | ExactSampler = sampler
        self.batch_size = batch_size

    def batches(self) -> Iterator[Batch]:
        """The batches of the images that the sampler names now."""
        order = torch.tensor(list(self.sampler), dtype=torch.int64)
        on_device = order.to(self.images.device)
        for index, rows in zip(order.split(self.batch_size), on_device.split(self.batch_size), strict=True):
            batch = {"image": self.images[rows], "index": index}
            if self.labels is not None:
                batch["label"] = self.labels[rows]
            yield batch

    def __len__(self) -> int:
        """How many batches this rank gets in a whole epoch."""
        return -(-len(self.sampler) // self.batch_size)


class RelabelledLoader(EpochLoader):
    """Another loader's batches with other labels.

    Args:
        loader: Loads the images.
        sampler: Its sampler.
        labels: By the images' numbers, int64 [N].
    """

    batch_sampler = None  # Lightning asks every loader that has a sampler

    def __init__(self, loader: EpochLoader, sampler: TrainSampler | ExactSampler, labels: Int64[Tensor, " N"]) -> None:
        self.loader = loader
        self.sampler: TrainSampler | ExactSampler = sampler
        self.labels = labels

    def batches(self) -> Iterator[Batch]:
        """The batches of the images that the sampler names now."""
        for batch in self.loader.batches():
            index = batch["index"]
            assert isinstance(index, Tensor)
            yield {**batch, "label": self.labels[index]}

    def __len__(self) -> int:
        """How many batches this rank gets in a whole epoch."""
        return len(self.loader)
