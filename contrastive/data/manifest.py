"""What a data set is made of: a hash of each image, and one digest of all of them."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from contrastive.augmentations import RaggedImages
from contrastive.data.image_folders import ImageFolders
from contrastive.data.module import ImageData
from contrastive.data.samplers import ExactSampler, rank_and_world_size
from contrastive.data.workers import LoadingError

By = Literal["pixels", "contents", "times"]
T = TypeVar("T")

READ_AT_MOST = 2**30  # bytes of files: a second or two from memory, and seconds from a disk
_NUM_THREADS = 16  # they wait for the disk, and hashing lets go of the interpreter
_FILES_PER_TASK = 256


@dataclass(frozen=True, eq=False)
class Manifest:
    """The images of a split, in the order of their numbers.

    Attributes:
        by: What the hashes are of. "pixels": of each image as it is loaded, its size with it. "contents": of its
            file's bytes. "times": of its file's path, size and time of the last change.
        numbers: The images' numbers, int64 [N], ascending.
        hashes: SHA-256 of each, 32 bytes.
        sizes: Bytes of each file, or of each image's pixels.
        files: Paths relative to the split's folder; None where images come from elsewhere.
        labels: int64 [N], negative where unknown; None without labels.
        reading: How images come from their files or their data set, in words.
    """

    by: By
    numbers: NDArray[np.int64]
    hashes: list[bytes]
    sizes: list[int]
    files: list[str] | None
    labels: NDArray[np.int64] | None
    reading: str = ""

    @cached_property
    def digest(self) -> str:
        """Of everything that features depend on, in hexadecimal digits: numbers, hashes, labels and reading.

        The folder's place is not in it, and, unless by "times", neither are the files' names.
        """
        whole = hashlib.sha256(f"{self.by} {self.reading} {len(self.hashes)} {self.labels is not None}".encode())
        for part in (self.numbers.tobytes(), *self.hashes, b"" if self.labels is None else self.labels.tobytes()):
            whole.update(part)
        return whole.hexdigest()


def manifest(data: ImageData, split: str, *, by: By | None = None) -> Manifest:
    """The images of a split. Ranks share the work, and each gets the whole.

    Which hash, unless told: of files, the contents where they are together 1 GiB at most, which is read in seconds;
    of more, such as ImageNet's, path, size and time, as rsync has it. By times a copied folder counts as another one,
    which costs time and is never wrong; what escapes is a file overwritten by as many bytes whose time was then set
    back. Images that come from no files are hashed by their pixels, which loads each once.

    Args:
        data: The images.
        split: "train" or "val", with at least as many images as ranks.
        by: What to hash; "contents" and "times" are of files alone.

    Raises:
        LoadingError: An image cannot be loaded.
        OSError: A file cannot be read.
        ValueError: There are no files to hash.
    """
    if isinstance(data, ImageFolders) and by != "pixels":
        return _of_files(data, split, by)
    if by in ("contents", "times"):
        raise ValueError(
            f"The images of {type(data).__name__} are not read from files, so there are no {by} of files to hash. "
            'Hash their pixels: by="pixels".'
        )
    return _of_pixels(data, split)


def _of_files(data: ImageFolders, split: str, by: By | None) -> Manifest:
    files, labels = data.train_files if split == "train" else data.val_files, data.labels(split)
    mine = _share(len(files))
    paths = [data.folders[split] / file for file in files[mine.start : mine.stop]]
    found = _of_all_ranks(lambda: _in_threads(os.stat, paths))
    sizes = [status.st_size for status in found]
    if by is None:
        by = "contents" if sum(sizes) <= READ_AT_MOST else "times"
    if by == "contents":
        hashes = _of_all_ranks(lambda: _in_threads(lambda path: _hash(path.read_bytes()), paths))
    else:
        stated = (f"{file}\0{status.st_size}\0{status.st_mtime_ns}" for file, status in zip(files, found, strict=True))
        hashes = [_hash(os.fsencode(one)) for one in stated]
    return Manifest(
        by=by,
        numbers=np.arange(len(files)),
        hashes=hashes,
        sizes=sizes,
        files=files,
        labels=None if labels is None else labels.numpy(),
        reading=f"image_size={data.image_size} at_least={data.at_least} background={data.background}",
    )


def _of_pixels(data: ImageData, split: str) -> Manifest:
    found = _of_all_ranks(lambda: list(_hashed_pixels(data, split)))
    numbers, hashes, sizes, labels, ragged = zip(*found, strict=True)
    return Manifest(
        by="pixels",
        numbers=np.array(numbers),
        hashes=list(hashes),
        sizes=list(sizes),
        files=getattr(data, f"{split}_files", None),
        labels=None if None in labels else np.array(labels),
        reading="ragged" if any(ragged) else "",  # views may resize images that come so, and others not
    )


def _hashed_pixels(data: ImageData, split: str) -> Iterator[tuple[int, bytes, int, int | None, bool]]:
    """Number, hash, bytes and label of each of this rank's images, and whether it came ragged."""
    mine = _share(data.num_images(split), data.numbers(split))
    for batch in data.load(split, mine, data.val_batch_size or data.batch_size, keep_workers=False):
        images, numbers = batch["image"].to("cpu"), batch["index"].tolist()
        labels = batch["label"].tolist() if "label" in batch else [None] * len(numbers)
        for row, (number, label) in enumerate(zip(numbers, labels, strict=True)):
            pixels = images[row].numpy()
            digest = _hash(f"{pixels.shape}".encode() + pixels.tobytes())
            yield number, digest, pixels.nbytes, label, isinstance(images, RaggedImages)


def _of_all_ranks(work: Callable[[], list[T]]) -> list[T]:
    """What the ranks' work gives, one after the other. An error of one is raised on all: none is left waiting."""
    try:
        mine: list[T] | Exception = work()
    except (OSError, ValueError, LoadingError) as error:
        mine = error
    world_size = rank_and_world_size()[1]
    every = [mine] * world_size
    if world_size > 1:
        dist.all_gather_object(every, mine)
    whole: list[T] = []
    for one in every:
        if isinstance(one, Exception):
            raise one
        whole += one
    return whole


def _in_threads(work: Callable[[Path], T], paths: Sequence[Path]) -> list[T]:
    def some(first: int) -> list[T]:
        return [work(path) for path in paths[first : first + _FILES_PER_TASK]]

    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        return list(chain(*threads.map(some, range(0, len(paths), _FILES_PER_TASK))))


def _share(num_images: int, numbers: NDArray[np.int64] | None = None) -> ExactSampler:
    rank, world_size = rank_and_world_size()
    return ExactSampler(num_images, rank=rank, world_size=world_size, what="hashed", numbers=numbers)


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
