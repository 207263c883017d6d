"""Folders of image files."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from contrastive.data.check import CheckedImages, check_images
from contrastive.data.decode import MAX_PIXELS, WHITE, NotAnImageError, decode_image, fit_image
from contrastive.data.files import ImageTree, check_same_classes, existing_folder, list_images, shown
from contrastive.data.loaders import EpochLoader, ragged_batch, worker_loader
from contrastive.data.module import ImageData
from contrastive.data.samplers import ExactSampler, TrainSampler, rank_and_world_size
from contrastive.data.tensor_images import TensorImages, as_tensors
from contrastive.data.workers import WORKER_TIMEOUT_S, check_timeout


class ImageFolders(ImageData):
    """Image files below a folder: class folders as torchvision has them, or any tree of images without classes.

    Batches lie on the CPU, page-locked where a GPU will fetch them. Their images are ``RaggedImages``, each of its
    original size, so that random crops are taken of whole images, as published; or squares of ``image_size``.
    ``index`` counts ``train_files`` or ``val_files``, which are sorted by name.

    Files whose extension is no image's are left alone and counted. All others are checked at the start, by one process
    for all ranks: headers are read and ends looked at, which takes minutes for millions of files on a local disk.
    Bad ones are listed and left out, up to ``max_bad_fraction``. Damage in the middle of a file shows only when it is
    decoded, which then stops the run and names the file; ``verify_pixels=True`` finds it at the start.

    Args:
        train: Folder of training images.
        val: Folder of validation images; without it there is no validation.
        image_size: Side of the stored squares in pixels: shorter side resized to it, centre cut out. Random crops are
            then taken of these squares. None leaves images as they are.
        at_least: A JPEG of huge sides may be decoded at 1/2, 1/4 or 1/8 scale, much quicker, as long as both sides keep
            this many pixels; twice ``image_size`` unless given, and without that, every image is decoded in full.
        batch_size: Training images per rank and step.
        val_batch_size: Validation and bank images per rank and step; as many as in training unless given.
        num_workers: Worker processes per rank; as ``loading_processes`` says unless given, 0 reads in this process.
        worker_timeout_s: How long a batch of the workers is waited for until the run ends with an error; None: without
            end. The default suits network disks. Without workers nothing can be waited for, and a disk that hangs is.
        labelled: Whether the first folder level names classes. Unless given: yes if all images lie in at least two
            folders below ``train``, and the same for ``val``.
        minimum_size: Pixels that both sides of an image must have at least. Smaller files are bad files; the default
            sorts out tracking pixels and the like, not small pictures.
        max_bad_fraction: Above this fraction of bad files the start fails, 0..1.
        verify_pixels: Decode every file at the start.
        max_pixels: Files whose header promises more are bad files, before anything of them is decoded: decompression
            bombs. A JPEG that ``at_least`` lets be decoded at reduced scale may have up to 64 times as many.
        background: What shows through transparent pixels, RGB in 0..255; white unless given.
        seed: Seed of the order of the training images, >= 0.

    Attributes:
        bad_files: Per split, each bad file and what is wrong with it. Filled by ``setup``.

    Raises:
        FileNotFoundError: A folder does not exist.
        NotADirectoryError: A folder is a file.
        ValueError: ``val`` lies inside ``train``, or a size is impossible. From ``setup``: no images, too many bad
            files, or unlike classes.
    """

    def __init__(
        self,
        train: str | os.PathLike[str],
        val: str | os.PathLike[str] | None = None,
        *,
        image_size: int | None = None,
        at_least: int | None = None,
        batch_size: int,
        val_batch_size: int | None = None,
        num_workers: int | None = None,
        worker_timeout_s: float | None = WORKER_TIMEOUT_S,
        labelled: bool | None = None,
        minimum_size: int = 8,
        max_bad_fraction: float = 0.01,
        verify_pixels: bool = False,
        max_pixels: int = MAX_PIXELS,
        background: tuple[int, int, int] = WHITE,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, val_batch_size=val_batch_size, seed=seed)
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, but is {image_size}.")
        if at_least is not None and at_least < (image_size or 1):
            raise ValueError(
                f"at_least={at_least} would decode images smaller than {image_size or 1} pixels. It is what both sides "
                "of a JPEG keep: take what a view is cut out of, twice image_size for example."
            )
        self.prepare_data_per_node = False  # rank 0 checks the files and tells the others
        self.folders = {"train": existing_folder(train)}
        if val is not None:
            self.folders["val"] = existing_folder(val)
            if self.folders["train"].resolve() in self.folders["val"].resolve().parents:
                raise ValueError(
                    f"The validation folder {val} lies inside the training folder {train}, so its images would be "
                    "trained on. Give two separate folders."
                )
        self.image_size = image_size
        self.at_least = 2 * image_size if at_least is None and image_size is not None else at_least
        self.num_workers = num_workers
        self.worker_timeout_s = check_timeout(worker_timeout_s)
        self.labelled = labelled
        self.minimum_size = minimum_size
        self.max_bad_fraction = max_bad_fraction
        self.verify_pixels = verify_pixels
        self.max_pixels = max_pixels
        self.background = background
        self._findings: dict[str, CheckedImages] | OSError | ValueError | None = None
        self._checked: dict[str, CheckedImages] | None = None

    def prepare_data(self) -> None:
        """Check the files. Lightning calls this on one process, and the others wait for it without a time limit."""
        if self._checked is None:
            self._findings = self._check()

    def setup(self, stage: str | None = None) -> None:
        """Take over on every rank what one process has found, errors included.

        Args:
            stage: Lightning's stage; all stages use the same files.

        Raises:
            OSError: A folder cannot be read.
            ValueError: No images, too many bad files, or validation classes unlike the training classes.
        """
        if self._checked is not None:
            return
        rank, world_size = rank_and_world_size()
        if self._findings is None and rank == 0:
            self._findings = self._check()
        told = [self._findings]
        if world_size > 1:
            dist.broadcast_object_list(told, src=0)
        if isinstance(told[0], Exception):
            self._findings = None
            raise told[0]
        self._checked = told[0]

    @property
    def classes(self) -> list[str] | None:
        """Names of the class folders, sorted, in the order of their labels; None without class folders."""
        return self._trees["train"].classes if self._checked is None else self._checked["train"].tree.classes

    @property
    def train_files(self) -> list[str]:
        """The training images' paths relative to their folder; ``index`` counts them."""
        return self._files("train").tree.files

    @property
    def val_files(self) -> list[str]:
        """The validation images' paths relative to their folder; ``index`` counts them."""
        return self._files("val").tree.files if "val" in self.folders else []

    @property
    def bad_files(self) -> dict[str, dict[str, str]]:
        """Per split, each file that was left out and what is wrong with it."""
        return {split: self._files(split).bad for split in self.folders}

    def num_images(self, split: str) -> int:
        """How many good images the split "train" or "val" has."""
        return len(self._files(split).tree.files) if split in self.folders else 0

    def labels(self, split: str) -> Int64[Tensor, " N"] | None:
        """All labels of the split "train" or "val", by the images' numbers; None without class folders."""
        labels = self._files(split).tree.labels
        return None if labels is None else torch.tensor(labels)

    def load(
        self, split: str, sampler: TrainSampler | ExactSampler, batch_size: int, *, keep_workers: bool
    ) -> EpochLoader:
        """A loader of a split's images, decoded by worker processes.

        Args:
            split: "train" or "val".
            sampler: Yields the images' numbers.
            batch_size: Images per batch.
            keep_workers: Whether the workers outlive the end of an epoch.
        """
        return worker_loader(
            ImageFiles(self._files(split).tree, self.image_size, self.at_least, self.background, self.max_pixels),
            sampler,
            batch_size,
            num_workers=self.loading_processes if self.num_workers is None else self.num_workers,
            keep_workers=keep_workers,
            pin_memory=self.pin_memory,
            seed=self.seed,
            worker_timeout_s=self.worker_timeout_s,
            collate=ragged_batch if self.image_size is None else default_collate,
        )

    def as_tensors(self) -> TensorImages:
        """All images decoded once into tensors, which is much faster to train on where they fit the accelerator.

        Raises:
            ValueError: Without ``image_size`` they are of different sizes.
        """
        return as_tensors(self)

    @cached_property
    def _trees(self) -> dict[str, ImageTree]:
        trees = {split: list_images(folder, labelled=self.labelled) for split, folder in self.folders.items()}
        if "val" in trees:
            check_same_classes(trees["train"].classes, trees["val"].classes)
        return trees

    def _check(self) -> dict[str, CheckedImages] | OSError | ValueError:
        """What is found, or the error: returned, since raised on one rank alone it would leave the others waiting."""
        try:
            return {
                split: check_images(
                    tree,
                    minimum_size=self.minimum_size,
                    max_bad_fraction=self.max_bad_fraction,
                    verify_pixels=self.verify_pixels,
                    at_least=self.at_least,
                    max_pixels=self.max_pixels,
                )
                for split, tree in self._trees.items()
            }
        except (OSError, ValueError) as error:
            return error

    def _files(self, split: str) -> CheckedImages:
        self.setup()
        assert self._checked is not None
        return self._checked[split]


class ImageFiles(Dataset[dict[str, UInt8[Tensor, "3 H W"] | int]]):
    """The images of a tree, decoded one at a time.

    Args:
        tree: The files and their labels.
        image_size: Side of the squares in pixels; None leaves images as they are.
        at_least: What both sides of a JPEG keep at least if it is decoded at reduced scale; None decodes all in full.
        background: What shows through transparent pixels, RGB in 0..255.
        max_pixels: More than these are not decoded.
    """

    def __init__(
        self,
        tree: ImageTree,
        image_size: int | None = None,
        at_least: int | None = None,
        background: tuple[int, int, int] = WHITE,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.root = Path(tree.root)
        # One array each, not lists: a worker that reads a list's items writes their reference counts, and so copies
        # page by page the memory it shares with this process.
        self.files = np.array([os.fsencode(file) for file in tree.files])
        self.labels = None if tree.labels is None else np.array(tree.labels)
        self.image_size = image_size
        self.at_least = at_least
        self.background = background
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, UInt8[Tensor, "3 H W"] | int]:
        """One image uint8 [3, H, W], its index, and its label where known.

        Raises:
            OSError: The file cannot be read any more.
            ValueError: It does not decode.
        """
        path = self.root / os.fsdecode(self.files[index])
        try:
            image = decode_image(path, background=self.background, at_least=self.at_least, max_pixels=self.max_pixels)
        except OSError as error:
            raise OSError(
                f"{shown(str(path))} was in order at the start and cannot be read now: {error.strerror}. Put it back "
                "or start again, which goes on with the files that are there."
            ) from error
        except NotAnImageError as error:
            raise ValueError(
                f"{shown(str(path))} has a good header but does not decode: {error}. Remove or repair it, or start "
                "with verify_pixels=True, which finds all such files before training."
            ) from error
        if self.image_size is not None:
            image = fit_image(image, self.image_size)
        item: dict[str, Tensor | int] = {"image": image, "index": index}
        if self.labels is not None:
            item["label"] = int(self.labels[index])
        return item
