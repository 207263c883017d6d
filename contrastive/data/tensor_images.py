"""Images that fit in memory, kept on the accelerator."""

import time

import torch
from jaxtyping import Int64, UInt8
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from contrastive.augmentations import RaggedImages
from contrastive.data.loaders import EpochLoader, TensorLoader
from contrastive.data.module import ImageData, check_not_empty
from contrastive.data.samplers import ExactSampler, TrainSampler


class TensorImages(ImageData):
    """uint8 images in tensors that move to the trainer's device once; what small data sets should use.

    No worker processes, no copies from the host: a batch is one gather on the device. CIFAR-10's training set takes
    147 MiB there, on every rank.

    Args:
        train_images: Training images, uint8 [N, 3, H, W].
        train_labels: Their labels, int64 [N], where known.
        val_images: Validation images, uint8 [M, 3, H, W]; without them there is no validation.
        val_labels: Their labels, int64 [M], where known.
        classes: Names of the classes, in the order of their labels; "0", "1", ... up to the largest label unless given.
        batch_size: Training images per rank and step.
        val_batch_size: Validation and bank images per rank and step; as many as in training unless given.
        seed: Seed of the order of the training images, >= 0.

    Raises:
        TypeError: Images are not uint8, or labels not int64.
        ValueError: There are no images, or they are not [N, 3, H, W], labels do not match images or classes, or labels
            come without images.
    """

    def __init__(
        self,
        train_images: Tensor,
        train_labels: Tensor | None = None,
        val_images: Tensor | None = None,
        val_labels: Tensor | None = None,
        *,
        classes: list[str] | None = None,
        batch_size: int,
        val_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, val_batch_size=val_batch_size, seed=seed)
        if val_images is None and val_labels is not None:
            raise ValueError("val_labels were given without val_images. Give both, or neither for no validation.")
        if classes is None and train_labels is not None and len(train_labels):
            classes = [str(label) for label in range(int(train_labels.max()) + 1)]
        self._classes = classes
        self._images = {"train": train_images}
        self._labels = {"train": train_labels}
        if val_images is not None:
            self._images["val"], self._labels["val"] = val_images, val_labels
        for split, images in self._images.items():
            check_not_empty(split, len(images))
            _check(split, images, self._labels[split], classes)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, in the order of their labels; None where labels are unknown."""
        return self._classes

    def num_images(self, split: str) -> int:
        """How many images the split "train" or "val" has."""
        return len(self._images[split]) if split in self._images else 0

    def images(self, split: str) -> UInt8[Tensor, "N 3 H W"]:
        """All images of the split "train" or "val", where they lie now."""
        return self._images[split]

    def labels(self, split: str) -> Int64[Tensor, " N"] | None:
        """All labels of the split "train" or "val", where they lie now; None where unknown."""
        return self._labels[split]

    def load(
        self, split: str, sampler: TrainSampler | ExactSampler, batch_size: int, *, keep_workers: bool
    ) -> EpochLoader:
        """A loader of a split's images on the trainer's device; moves them there first, where they stay.

        Args:
            split: "train" or "val".
            sampler: Yields the images' numbers.
            batch_size: Images per batch.
            keep_workers: Without effect, there are none.
        """
        labels = self._labels[split]
        self._images[split] = self._images[split].to(self.device)
        self._labels[split] = None if labels is None else labels.to(self.device)
        return TensorLoader(self._images[split], self._labels[split], sampler, batch_size)


def as_tensors(data: ImageData) -> TensorImages:
    """Load every image of a data module once, into tensors: for data sets of a few gigabytes at most.

    An image keeps its ``index``. Every rank loads and keeps all images.

    Args:
        data: The data module; its loader and its worker processes do the work.

    Raises:
        ValueError: Its images are ragged.
    """
    images: dict[str, Tensor] = {}
    labels: dict[str, Tensor | None] = {}
    for split in ("train", "val"):
        if num_images := data.num_images(split):
            images[split], labels[split] = _load_all(data, split, num_images)
    return TensorImages(
        images["train"],
        labels["train"],
        images.get("val"),
        labels.get("val"),
        classes=data.classes,
        batch_size=data.batch_size,
        val_batch_size=data.val_batch_size,
        seed=data.seed,
    )


def _load_all(data: ImageData, split: str, num_images: int) -> tuple[Tensor, Tensor | None]:
    start = told = time.perf_counter()
    images, labels = torch.empty(0), None
    batch_size = data.val_batch_size or data.batch_size
    for batch in data.load(split, ExactSampler(num_images), batch_size, keep_workers=False):
        index = batch["index"]
        if isinstance(batch["image"], RaggedImages):
            raise ValueError(
                "Images of their original sizes do not fit into one tensor. Give the data module that loads them an "
                "image_size, or train on it as it is."
            )
        if not len(images):
            images = batch["image"].new_empty(num_images, *batch["image"].shape[1:])
            labels = batch["label"].new_empty(num_images) if "label" in batch else None
        images[index] = batch["image"]
        if labels is not None:
            labels[index] = batch["label"]
        done, now = int(index[-1]) + 1, time.perf_counter()
        if now > told + 10 or done == num_images:
            told = now
            rank_zero_info(f"{split}: {done} of {num_images} images in memory, {done / (now - start):.0f} images/s")
    return images, labels


def _check(split: str, images: Tensor, labels: Tensor | None, classes: list[str] | None) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(
            f"{split}_images must be uint8 as decoded, 0..255, but they are {images.dtype}. "
            "For floats in 0..1: (images * 255).round().to(torch.uint8); for normalised images, take the originals."
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"{split}_images must be [N, 3, H, W], but they are {list(images.shape)}. For [N, H, W, 3] use "
            "images.permute(0, 3, 1, 2); for grey [N, 1, H, W] use images.expand(-1, 3, -1, -1)."
        )
    if labels is None:
        return
    if labels.dtype != torch.int64:
        raise TypeError(f"{split}_labels must be int64, but they are {labels.dtype}. Use labels.long().")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{split}_labels must be [N], one for each of {len(images)} images, but they are {list(labels.shape)}."
        )
    if classes is None:
        raise ValueError(f"{split}_labels were given without train_labels, so their classes are unknown. Give classes.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ValueError(
            f"{split}_labels must be in 0..{len(classes) - 1} for {len(classes)} classes, but they are in "
            f"{int(labels.min())}..{int(labels.max())}. Give labels of these classes, or all classes' names."
        )
