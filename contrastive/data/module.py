"""What the data modules share: from a number of images to loaders that treat each exactly once."""

import os
from abc import abstractmethod
from collections import UserDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Int64
from lightning_fabric.utilities.data import suggested_max_num_workers
from numpy.typing import NDArray
from torch import Tensor

from contrastive.augmentations import RaggedImages
from contrastive.data.loaders import EpochLoader
from contrastive.data.samplers import ExactSampler, TrainSampler, even_batch_size, rank_and_world_size


class ImageData(pl.LightningDataModule):
    """Base of the data modules: subclasses say how many images there are and load those a sampler names.

    Batches are mappings: ``image`` uint8 [B, 3, H, W], or ``RaggedImages`` where images keep their sizes; ``index``
    int64 [B] (the image's number in its split, the same in every run), on the host; ``label`` int64 [B] where known.

    Args:
        batch_size: Training images per rank and step.
        val_batch_size: Validation and bank images per rank and step; as many as in training unless given.
        seed: Seed of the order of the training images, >= 0.
    """

    def __init__(self, *, batch_size: int, val_batch_size: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.seed = seed
        self._train_loader: EpochLoader | None = None
        self._resumed: dict[str, Any] = {}

    @property
    @abstractmethod
    def classes(self) -> list[str] | None:
        """Names of the classes, in the order of their labels; None where labels are unknown."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None where labels are unknown."""
        return None if self.classes is None else len(self.classes)

    @abstractmethod
    def num_images(self, split: str) -> int:
        """How many images the split "train" or "val" has."""

    @abstractmethod
    def labels(self, split: str) -> Int64[Tensor, " N"] | None:
        """All labels of the split "train" or "val", by the images' numbers; None where unknown."""

    def numbers(self, split: str) -> NDArray[np.int64] | None:
        """The numbers of a split's images, int64 [num_images], ascending; None: they are 0, 1, 2, ..."""
        return None

    @abstractmethod
    def load(
        self, split: str, sampler: TrainSampler | ExactSampler, batch_size: int, *, keep_workers: bool
    ) -> EpochLoader:
        """A loader of a split's images, in the sampler's order.

        Args:
            split: "train" or "val".
            sampler: Yields the images' numbers.
            batch_size: Images per batch.
            keep_workers: Whether worker processes, if there are any, outlive the end of an epoch.
        """

    def train_dataloader(self) -> EpochLoader:
        """Training images in an order given by (seed, epoch), each at most once over all ranks, ragged end dropped.

        Raises:
            ValueError: There are fewer images than one global batch.
        """
        rank, world_size = rank_and_world_size()
        overfitting = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        sampler = TrainSampler(
            self.num_images("train"),
            self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            shuffle=not overfitting,  # Lightning promises the same batches every epoch then
            numbers=self.numbers("train"),
        )
        self._train_loader = self.load("train", sampler, self.batch_size, keep_workers=True)
        self._train_loader.load_state_dict(self._resumed)
        self._resumed = {}
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """Where in which epoch the training is, for Lightning's checkpoints.

        They hold the loader's own state too, but Lightning leaves it aside where anything has asked the trainer for its
        number of steps before training, as every schedule does.
        """
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there.

        Args:
            state_dict: From a checkpoint.
        """
        self._resumed = state_dict
        if self._train_loader is not None:  # sharded strategies restore after the loader has been made
            self._train_loader.load_state_dict(state_dict)

    def bank_dataloader(self) -> EpochLoader:
        """The training images in stored order, each exactly once over all ranks, none dropped.

        Raises:
            ValueError: There are fewer images than ranks.
        """
        return self._exact("train", "training", keep_workers=False)

    def val_dataloader(self) -> EpochLoader | list[EpochLoader]:
        """The validation images in stored order, each exactly once over all ranks; an empty list where there are none.

        Raises:
            ValueError: There are fewer images than ranks.
        """
        return self._exact("val", "validation", keep_workers=True) if self.num_images("val") else []

    def _exact(self, split: str, what: str, *, keep_workers: bool) -> EpochLoader:
        rank, world_size = rank_and_world_size()
        num_images = self.num_images(split)
        sampler = ExactSampler(num_images, rank=rank, world_size=world_size, what=what, numbers=self.numbers(split))
        batch_size = even_batch_size(num_images, self.val_batch_size or self.batch_size, world_size)
        return self.load(split, sampler, batch_size, keep_workers=keep_workers)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch on a device, but for its index: views draw their numbers on the host.

        Args:
            batch: As the loaders give it.
            device: Where to.
            dataloader_idx: Of which loader.

        Returns:
            A mapping that is no dict: what is in a dict, DistributedDataParallel moves to the device.
        """
        if not isinstance(batch, Mapping) or "index" not in batch:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        rest = {key: value for key, value in batch.items() if key != "index"}
        if isinstance(rest.get("image"), RaggedImages):  # what is no tensor, Lightning copies and waits
            rest["image"] = rest["image"].to(device, non_blocking=device.type == "cuda")
        return UserDict({"index": batch["index"], **super().transfer_batch_to_device(rest, device, dataloader_idx)})

    @property
    def loading_processes(self) -> int:
        """Worker processes per rank unless told otherwise: one core of this rank's share stays free, 8 at most.

        Lightning asks for no more than that share either; beyond 8, workers mostly take memory.
        """
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.trainer is None else self.trainer.num_devices
        return min(8, suggested_max_num_workers(ranks_here))

    @property
    def pin_memory(self) -> bool:
        """Whether batches go to a CUDA device, as far as is known."""
        return torch.cuda.is_available() if self.trainer is None else self.device.type == "cuda"

    @property
    def device(self) -> torch.device:
        """Where the trainer computes; the CPU without a trainer."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device


def check_not_empty(split: str, num_images: int) -> None:
    """Nothing to train on, or to validate on where validation was asked for, is an oversight.

    Args:
        split: "train" or "val".
        num_images: How many it has.

    Raises:
        ValueError: None.
    """
    if num_images == 0:
        what, instead = {"train": ("training", ""), "val": ("validation", ", or leave it out for no validation")}[split]
        raise ValueError(f"The {what} data set is empty: it has no image at all. Give one that has some{instead}.")
