"""A labelled data set through a frozen encoder: what an evaluation protocol sees of a run or of a library's model."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from contrastive.augmentations import MakeViews, SampleKey
from contrastive.data.loaders import EpochLoader
from contrastive.data.manifest import Manifest, manifest
from contrastive.data.module import ImageData
from contrastive.data.samplers import TrainSampler
from contrastive.distributed import rank, world_size
from contrastive.evaluation.features import Features, eval_mode, extract_features
from contrastive.evaluation.inputs import wide_features
from contrastive.evaluation.protocols import AugmentedBatch, Progress
from contrastive.evaluation.protocols.protocol import Split
from contrastive.evaluation.ranks import from_rank_zero, gather_rows
from contrastive.recipes.recipe import Precision
from contrastive.runs.feature_cache import CacheWarning, FeatureCache, NotCacheableError, about_features, key_of
from contrastive.runs.finetuning import crops_and_flips

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
NAMES = {"train": "training", "val": "validation"}


class FrozenTask:
    """A ``contrastive.evaluation.protocols.Task``: the encoder's weights, modes and gradients stay as they are.

    With several ranks every rank makes one of the same and calls the same of its methods: each encodes its share of
    the images, and all get the features of all, each image's once.

    Args:
        encoder: Normalised float images [B, 3, H, W] to features [B, D]. It is moved to ``device``.
        make_views: Their ``evaluation_view`` is what the encoder sees of an image; crops are as large as their first
            view, and resized and normalised as it is.
        data: The images and their labels.
        device: Where images are encoded, and where the features stay.
        precision: Of the encoder's arithmetic; features are float32 in any.
        exclude: Numbers of training images to leave out, such as those that are test images too.
        cache: Where the features of unaugmented images are kept for later; rank 0 reads and writes there.
        manifests: Of the splits, for the cache's keys, where they are known already.
        progress: Told how many images are encoded.
    """

    def __init__(
        self,
        encoder: nn.Module,
        make_views: MakeViews,
        data: ImageData,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "32-true",
        exclude: Int64[Tensor, " E"] | None = None,
        cache: FeatureCache | None = None,
        manifests: Mapping[str, Manifest] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device)
        self._wide, self._inputs = wide_features(encoder)
        self.make_views = make_views
        self.data = data
        self.precision = precision
        self.exclude = torch.empty(0, dtype=torch.int64) if exclude is None else exclude.cpu()
        self.cache = cache
        self.progress = progress
        self._kept: dict[tuple[Split, bool], Features] = {}
        self.has_extracted = False  # rather than found all in the cache
        self._manifests: dict[str, Manifest] = dict(manifests or {})

    @property
    def num_classes(self) -> int:
        """C; labels are below it.

        Raises:
            ValueError: The data has no classes.
        """
        if self.data.num_classes is None:
            raise ValueError("The data set has no labels to judge features by. Give class folders, train/CLASS/*.jpg.")
        return self.data.num_classes

    @property
    def inputs(self) -> Mapping[str, slice]:
        """Columns of the features with ``blocks=True`` that make an input, by the input's name."""
        return self._inputs

    def features(self, split: Split, *, blocks: bool = False) -> Features:
        """Features of the unaugmented images of a split, but for the excluded ones; extracted once, then kept.

        With a cache, features that it cannot keep are extracted all the same, and a ``CacheWarning`` says why.

        Args:
            split: "train" or "val".
            blocks: Whether of all ``inputs``.

        Raises:
            ValueError: The split has no images, or all are excluded.
        """
        if self.data.num_images(split) == 0:
            raise ValueError(
                f"The data set has no {NAMES[split]} images to score features on. Give folders train/ and val/."
            )
        blocks = blocks and self._wide is not self.encoder
        if (split, blocks) not in self._kept:
            found = self._extracted(split, blocks) if self.cache is None else self._cached(self.cache, split, blocks)
            if split == "train" and len(self.exclude):
                found = found.rows(~torch.isin(found.index, self.exclude.to(self.device)))
                if len(found) == 0:
                    raise ValueError(
                        "All training images are left out, as they are test images too. Test on other images, or keep "
                        "duplicates."
                    )
            self._kept[split, blocks] = found
        return self._kept[split, blocks]

    def augmented(
        self, epoch: int, *, batch_size: int, crop_min: float, seed: int, blocks: bool = False
    ) -> Iterator[AugmentedBatch]:
        """One epoch over the training images, cropped and flipped; the same for any number of ranks.

        Which images come when, and their crops, are functions of (seed, epoch).

        Args:
            epoch: From 0.
            batch_size: Images a step over all ranks, whose shares may differ by one.
            crop_min: Smallest area of a crop, as a share of the image's.
            seed: Of the order and the crops, >= 0.
            blocks: Whether of all ``inputs``.

        Raises:
            ValueError: There are fewer images than one batch, or the views do not say how large crops are.
        """
        make_views = crops_and_flips(self.make_views, crop_min)
        sampler = SharedBatches(self._train_numbers, batch_size, seed=seed)
        sampler.set_epoch(epoch)
        for batch in self.data.load("train", sampler, sampler.num_loaded, keep_workers=False):
            index = batch["index"]
            unknown = torch.full_like(index, -1)
            named = torch.stack([index, batch.get("label", unknown).to(index.device)], dim=1).to(self.device)  # [B, 2]
            images = batch["image"].to(self.device, non_blocking=self.device.type == "cuda")
            (view,) = make_views(images, SampleKey(seed, epoch, index))
            features = self._encode(view, blocks)
            index, labels = gather_rows(named[: sampler.share]).unbind(1)
            yield AugmentedBatch(gather_rows(features[: sampler.share]), labels, index)

    def num_batches(self, batch_size: int) -> int:
        """Batches that one epoch of ``augmented`` gives."""
        return len(self._train_numbers) // batch_size

    @property
    def _train_numbers(self) -> NDArray[np.int64]:
        numbers = self.data.numbers("train")
        every = np.arange(self.data.num_images("train")) if numbers is None else numbers
        return every[~np.isin(every, self.exclude.numpy())]

    def _cached(self, cache: FeatureCache, split: Split, blocks: bool) -> Features:
        if split not in self._manifests:
            self._manifests[split] = manifest(self.data, split)
        try:
            about = about_features(
                self.encoder,
                self.make_views,
                self._manifests[split],
                device=self.device,
                precision=self.precision,
                split=split,
                blocks=blocks,
            )
        except NotCacheableError as error:
            warnings.warn(f"Features of {NAMES[split]} images are not kept: {error}", CacheWarning, stacklevel=2)
            return self._extracted(split, blocks)
        key = key_of(about)
        found = _from_rank_zero(cache.read(key, self.device) if rank() == 0 else None, self.device)
        if found is None:
            found = self._extracted(split, blocks)
            if rank() == 0:
                cache.write(key, found, about)
        return found

    def _extracted(self, split: Split, blocks: bool) -> Features:
        loader = self.data.bank_dataloader() if split == "train" else self.data.val_dataloader()
        assert not isinstance(loader, list)  # there are images
        self.has_extracted = True

        def encode(images: Any) -> Tensor:
            return self._encode(self.make_views.evaluation_view(images), blocks)

        return extract_features(encode, self._told(loader, split), device=self.device)

    def _encode(self, view: Float[Tensor, "B C H W"], blocks: bool) -> Float[Tensor, "B D"]:
        dtype = AUTOCAST.get(self.precision)
        with (
            torch.no_grad(),
            eval_mode(self.encoder),
            torch.autocast(self.device.type, dtype, enabled=dtype is not None),
        ):
            features: Tensor = (self._wide if blocks else self.encoder)(view)
        return features.float()

    def _told(self, loader: EpochLoader, split: Split) -> Iterator[Mapping[str, Any]]:
        """The loader's batches; the other ranks are taken to be as far as this one."""
        done, total = 0, self.data.num_images(split)
        for batch in loader:
            yield batch
            done = min(total, done + len(batch["index"]) * world_size())
            if self.progress is not None:
                self.progress(f"{NAMES[split]} images", done, total)


def _from_rank_zero(found: Features | None, device: torch.device) -> Features | None:
    """Rank 0's features on every rank; None if it has none."""
    if world_size() == 1:
        return found
    shape = [0, 0, 0] if found is None else [*found.features.shape, found.labels is not None]
    num_images, width, labelled = from_rank_zero(torch.tensor(shape, device=device)).tolist()
    if num_images == 0:
        return None
    if found is None:
        numbers = torch.empty(num_images, dtype=torch.int64, device=device)
        found = Features(torch.empty(num_images, width, device=device), numbers if labelled else None, numbers)
    labels = None if found.labels is None else from_rank_zero(found.labels)
    return Features(from_rank_zero(found.features), labels, from_rank_zero(found.index))


class SharedBatches(TrainSampler):
    """This rank's share of batches whose size is that over all ranks, which need not divide it.

    The batches of an epoch are the same for any number of ranks; shares differ by one image at most. A rank whose
    share is empty still loads an image of each batch: it takes part in every step.

    Args:
        numbers: The images' numbers, int64 [N].
        batch_size: Images per step over all ranks.
        seed: Seed of the order, >= 0.

    Raises:
        ValueError: There are fewer images than one batch, or the seed is negative.
    """

    def __init__(self, numbers: NDArray[np.int64], batch_size: int, *, seed: int) -> None:
        super().__init__(len(numbers), batch_size, seed=seed, numbers=numbers)
        self.first = rank() * batch_size // world_size()
        self.share = (rank() + 1) * batch_size // world_size() - self.first
        self.num_loaded = max(1, self.share)

    def __iter__(self) -> Iterator[int]:
        """This rank's images of the epoch."""
        batches = np.fromiter(super().__iter__(), np.int64).reshape(-1, self.batch_size)
        return iter(batches[:, self.first : self.first + self.num_loaded].ravel().tolist())

    def __len__(self) -> int:
        """How many images this rank loads in a whole epoch."""
        return self.num_batches * self.num_loaded
