"""Any map-style data set as a data module."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from contrastive.data.decode import fit_image, rgb_from_pil
from contrastive.data.files import check_same_classes
from contrastive.data.loaders import EpochLoader, ragged_batch, worker_loader
from contrastive.data.module import ImageData, check_not_empty
from contrastive.data.samplers import ExactSampler, TrainSampler
from contrastive.data.tensor_images import TensorImages, as_tensors
from contrastive.data.workers import WORKER_TIMEOUT_S, check_timeout


@runtime_checkable
class MapStyle(Protocol):
    """Items that have numbers: a torch map-style data set, a list, a table of images."""

    def __len__(self) -> int:
        """How many items there are."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """The item of a number."""
        ...


def from_dataset(
    train: Dataset[Any] | MapStyle,
    val: Dataset[Any] | MapStyle | None = None,
    *,
    batch_size: int,
    image_size: int | None = None,
    ragged: bool = False,
    val_batch_size: int | None = None,
    num_workers: int | None = None,
    worker_timeout_s: float | None = WORKER_TIMEOUT_S,
    classes: list[str] | None = None,
    seed: int = 0,
) -> "DatasetImages":
    """A data module of any map-style data set (``__len__`` and ``__getitem__``), torchvision's for example.

    An item is an image, or a pair that begins (image, label), or a mapping with ``image`` and perhaps ``label``. The
    image is a PIL image of any mode, a uint8 tensor [3 or 1, H, W] or [H, W], or a uint8 numpy array [H, W, 3 or 1] or
    [H, W]. Leave random transforms and normalising to ``make_views``.

    Args:
        train: Training data set.
        val: Validation data set; without it there is no validation.
        batch_size: Training images per rank and step.
        image_size: Side of the stored squares in pixels; unless given, images stay as they are.
        ragged: Whether images may be of different sizes: batches then hold ``RaggedImages``.
        val_batch_size: Validation and bank images per rank and step; as many as in training unless given.
        num_workers: Worker processes per rank; one core of the rank's share stays free unless given, 0 for none.
        worker_timeout_s: How long a batch of the workers is waited for until the run ends with an error; None: without
            end. The default suits network disks. Without workers nothing can be waited for, and a disk that hangs is.
        classes: Names of the classes, in the order of their labels; the data set's own attribute ``classes`` unless
            given.
        seed: Seed of the order of the training images, >= 0.

    Raises:
        TypeError: A data set is not map-style, or its first item is not as described above.
        ValueError: A data set is empty, or its first image has an impossible shape, or the two data sets' classes
            differ, or ``image_size`` makes images of one size that are to be ragged.
    """
    if ragged and image_size is not None:
        raise ValueError(
            f"ragged=True keeps the images' sizes, and image_size={image_size} does not. Give one of them."
        )
    sets = {"train": AdaptedImages(train, image_size)}
    if val is not None:
        sets["val"] = AdaptedImages(val, image_size)
    for split, adapted in sets.items():
        check_not_empty(split, len(adapted))
        adapted[0]  # complain now, not from a worker process
    if classes is None:
        classes = _class_names(train)
        if val is not None and _class_names(val) is not None:
            check_same_classes(classes, _class_names(val))
    return DatasetImages(
        sets,
        classes,
        ragged=ragged,
        num_workers=num_workers,
        worker_timeout_s=worker_timeout_s,
        batch_size=batch_size,
        val_batch_size=val_batch_size,
        seed=seed,
    )


class DatasetImages(ImageData):
    """The data module that ``from_dataset`` makes.

    Args:
        sets: The data sets "train" and, for validation, "val".
        classes: Names of the classes, in the order of their labels; None where unknown.
        ragged: Whether batches hold ``RaggedImages``; else all images must be of one size.
        num_workers: Worker processes per rank; as ``loading_processes`` says where None, 0 reads in this process.
        worker_timeout_s: How long a batch of the workers is waited for; None: without end.
        batch_size: Training images per rank and step.
        val_batch_size: Validation and bank images per rank and step; as many as in training where None.
        seed: Seed of the order of the training images, >= 0.
    """

    def __init__(
        self,
        sets: "dict[str, AdaptedImages]",
        classes: list[str] | None,
        *,
        ragged: bool,
        num_workers: int | None,
        worker_timeout_s: float | None,
        batch_size: int,
        val_batch_size: int | None,
        seed: int,
    ) -> None:
        super().__init__(batch_size=batch_size, val_batch_size=val_batch_size, seed=seed)
        self.ragged = ragged
        self.num_workers = num_workers
        self.worker_timeout_s = check_timeout(worker_timeout_s)
        self._sets = sets
        self._classes = classes

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, in the order of their labels; None where unknown."""
        return self._classes

    def num_images(self, split: str) -> int:
        """How many images the split "train" or "val" has."""
        return len(self._sets[split]) if split in self._sets else 0

    def labels(self, split: str) -> Int64[Tensor, " N"] | None:
        """All labels of the split "train" or "val", by the images' numbers: reads every image; None where unknown."""
        items = (self._sets[split][index] for index in range(self.num_images(split)))
        labels = [int(item["label"]) for item in items if "label" in item]
        return torch.tensor(labels) if labels else None

    def load(
        self, split: str, sampler: TrainSampler | ExactSampler, batch_size: int, *, keep_workers: bool
    ) -> EpochLoader:
        """A loader of a split's images, read by worker processes.

        Args:
            split: "train" or "val".
            sampler: Yields the images' numbers.
            batch_size: Images per batch.
            keep_workers: Whether the workers outlive the end of an epoch.
        """
        return worker_loader(
            self._sets[split],
            sampler,
            batch_size,
            num_workers=self.loading_processes if self.num_workers is None else self.num_workers,
            keep_workers=keep_workers,
            pin_memory=self.pin_memory,
            seed=self.seed,
            worker_timeout_s=self.worker_timeout_s,
            collate=ragged_batch if self.ragged else _one_size,
        )

    def as_tensors(self) -> TensorImages:
        """All images loaded once into tensors, which is much faster to train on where they fit the accelerator.

        Raises:
            ValueError: They are ragged.
        """
        return as_tensors(self)


class AdaptedImages(Dataset[dict[str, Tensor | int]]):
    """A map-style data set whose items become mappings of a uint8 image, its index, and its label where known.

    Args:
        images: The data set.
        image_size: Side of the squares in pixels; None leaves the images' size alone.

    Raises:
        TypeError: The data set has no length or no items by number.
    """

    def __init__(self, images: Dataset[Any] | MapStyle, image_size: int | None) -> None:
        if not isinstance(images, MapStyle) or isinstance(images, IterableDataset):
            raise TypeError(
                f"{type(images).__name__} is not map-style: it lacks __len__ or __getitem__, or is a stream, whose "
                "images have no lasting number and no exact epoch. Wrap it in a data set that has both."
            )
        self.images = images
        self.image_size = image_size

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """One image uint8 [3, H, W], its index, and its label where known.

        Raises:
            TypeError: The item is no image, pair or mapping, the image is no uint8 one, or the label no integer.
            ValueError: The image's shape is impossible.
        """
        image, label = _image_and_label(self.images[index])
        pixels = uint8_image(image)
        if self.image_size is not None:
            pixels = fit_image(pixels, self.image_size)
        item: dict[str, Tensor | int] = {"image": pixels, "index": index}
        if label is not None:
            if not isinstance(label, int | np.integer | Tensor):
                raise TypeError(
                    f"A label is an integer, 0 for the first class, but the data set gave {label!r}. Give the class's "
                    "number, or items without a label."
                )
            item["label"] = int(label)
        return item


def uint8_image(image: Any) -> UInt8[Tensor, "3 H W"]:
    """A PIL image, uint8 tensor [C, H, W] or uint8 array [H, W, C] as a uint8 RGB tensor.

    Raises:
        TypeError: It is none of these, a float image for example.
        ValueError: It does not have three channels or one.
    """
    if isinstance(image, Image.Image):
        return rgb_from_pil(image)
    if not isinstance(image, Tensor | np.ndarray):
        raise TypeError(
            "An image is a PIL image, a uint8 tensor [3, H, W] or a uint8 numpy array [H, W, 3], but the data set gave "
            f"{type(image).__name__}."
        )
    if image.dtype not in (torch.uint8, np.uint8):
        raise TypeError(
            f"Images are uint8, 0..255, but the data set gave a {type(image).__name__} of {image.dtype}. Take "
            "ToTensor, Normalize and random transforms out of the data set; make_views does that on the images' device."
        )
    pixels = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim == 3 and isinstance(image, np.ndarray):
        pixels = pixels.permute(2, 0, 1)
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(
            f"A tensor is [3 or 1, H, W] or [H, W] and a numpy array [H, W, 3 or 1] or [H, W], but the data set gave a "
            f"{type(image).__name__} of {list(image.shape)}. Transpose it, or convert it to RGB."
        )
    return pixels.expand(3, -1, -1).contiguous()


def _image_and_label(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        if "image" not in item:
            raise TypeError(f"An item that is a mapping needs the key 'image', but has {sorted(item)}.")
        return item["image"], item.get("label")
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _class_names(images: Any) -> list[str] | None:
    names = getattr(images, "classes", None)
    return None if names is None else [str(name) for name in names]


def _one_size(items: list[dict[str, Tensor | int]]) -> Any:
    sizes = sorted({tuple(item["image"].shape[1:]) for item in items if isinstance(item["image"], Tensor)})
    if len(sizes) > 1:
        raise ValueError(
            f"Images of one batch are of different sizes: {' x '.join(map(str, sizes[0]))} and "
            f"{' x '.join(map(str, sizes[-1]))} pixels. Give image_size, to which all are resized and cropped, or "
            "ragged=True, which leaves them as they are for views that begin with a crop."
        )
    return default_collate(items)
