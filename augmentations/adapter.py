"""Anybody's random transform as a pipeline of views: Kornia's, torchvision's, a function of one's own."""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contrastive.augmentations.functional import to_float
from contrastive.augmentations.images import Images, RaggedImages, as_ragged
from contrastive.augmentations.key import SampleKey, names_of

Transform = Callable[[Tensor], Any]  # a view or several; what it really returned is checked at each call


def views_from(
    transform: Transform, *, num_views: int = 2, evaluation: Callable[[Tensor], Tensor] | None = None
) -> "TransformViews":
    """Adapt a random transform of float images to ``make_views(images, key)``.

    The transform draws from the global random state as it always does. That state is seeded for the call from the
    seed, the epoch, the batch's indices and the rank, so that no two ranks and no two steps draw the same noise, and
    is left as it was found: PyTorch's on the CPU and on the images' device, numpy's and Python's. A view repeats
    exactly when the same batch comes again on the same rank, but, unlike with our own pipelines, it changes with what
    else is in the batch.

    Args:
        transform: Takes float32 [B, C, H, W] in [0, 1] and returns one view [B, C, h, w], as a
            ``kornia.augmentation.AugmentationSequential`` does, or a list or tuple of views. It normalises, if
            anything does. It runs in float32, also under autocast, and without gradients; if it is an ``nn.Module``,
            it is moved to the images' device.
        num_views: How often to call a transform that returns one view. One that returns several is called once.
        evaluation: Takes float32 [B, C, H, W] in [0, 1] and returns what the encoder should see of unaugmented images,
            such as ``IMAGENET`` where the transform normalises so. None only scales the images to [0, 1].

    Raises:
        ValueError: ``num_views`` is not positive.
    """
    if num_views < 1:
        raise ValueError(f"num_views={num_views} makes no view. Contrastive methods compare at least two.")
    return TransformViews(transform, num_views, evaluation)


@dataclass(frozen=True)
class TransformViews:
    """What ``views_from`` returns; its arguments, kept."""

    transform: Transform
    num_views: int
    evaluation: Callable[[Tensor], Tensor] | None

    def __call__(self, images: Images, key: SampleKey) -> list[Tensor]:
        """Views of images [B, C, H, W], uint8 or float32 in [0, 1].

        Raises:
            TypeError: The images are no such tensor, the key is no SampleKey, or the transform returns no floats.
            ValueError: The images are not [B, C, H, W], the key does not fit them, or the transform's views do not.
        """
        pixels = _of_one_size(images)
        index = names_of(key, len(pixels)).index
        device = pixels.device
        if isinstance(self.transform, nn.Module):
            self.transform.to(device)
        with (
            _seeded(_digest(key.seed, key.epoch, index.tobytes(), _rank()), device),
            torch.autocast(device.type, enabled=False),
            torch.no_grad(),
        ):
            views = self._views(pixels)
        for view in views:
            _check_view(view, pixels)
        return views

    def evaluation_view(self, images: Images) -> Tensor:
        """Unaugmented images, scaled to [0, 1], through ``evaluation`` if it was given.

        Raises:
            TypeError: The images are no tensor of uint8 or float32.
            ValueError: The images are not [B, C, H, W].
        """
        scaled = _scaled(_of_one_size(images))
        return scaled if self.evaluation is None else self.evaluation(scaled)

    def _views(self, images: Tensor) -> list[Any]:
        # Scaled anew for each call: a transform may write to its input, or return it.
        first = self.transform(_scaled(images))
        if isinstance(first, list | tuple):
            return list(first)
        return [first, *(self.transform(_scaled(images)) for _ in range(self.num_views - 1))]


def _of_one_size(images: Images) -> Tensor:
    as_ragged(images)
    if isinstance(images, RaggedImages):
        raise ValueError(
            "A transform of tensors takes images of one size, but these are ragged. Use Views, which begins with a "
            "crop, and kornia_op for single Kornia operations; or resize the images when they are loaded."
        )
    return images


def _scaled(images: Tensor) -> Tensor:
    return to_float(images) if images.dtype == torch.uint8 else images.clone()


def _rank() -> int:
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if several else 0


def _digest(seed: int, epoch: int, index: bytes, rank: int) -> int:
    """A seed of 63 bits from everything that must not share its noise."""
    numbers = f"{seed} {epoch} {rank} ".encode()
    return int.from_bytes(hashlib.blake2b(numbers + index, digest_size=8).digest(), "little") >> 1


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed every global generator that a transform might draw from, and put each back afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            if devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _check_view(view: object, images: Tensor) -> None:
    if not isinstance(view, Tensor) or not view.is_floating_point():
        got = f"a {view.dtype} tensor" if isinstance(view, Tensor) else f"a {type(view).__name__}"
        raise TypeError(
            f"The transform given to views_from returned {got} where a view was due. It must return float tensors "
            "[B, C, h, w]: one view, or a list or tuple of them."
        )
    if view.ndim != 4 or view.shape[:2] != images.shape[:2]:
        batch, channels = images.shape[:2]
        raise ValueError(
            f"The transform given to views_from returned a view of shape {list(view.shape)} for {batch} images. It "
            f"must keep the batch and the channels: [{batch}, {channels}, h, w]."
        )
