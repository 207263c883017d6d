"""Any Kornia augmentation as one operation of a view."""

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from contrastive.augmentations.operations import TensorOperation
from contrastive.augmentations.randomness import Random


def kornia_op(module: nn.Module) -> "KorniaOperation":
    """A Kornia augmentation as one operation of a view, for all that our own operations do not do.

    ``Views([[RandomResizedCrop(224), kornia_op(K.RandomElasticTransform(p=0.5)), IMAGENET]] * 2)`` where ``K`` is
    ``kornia.augmentation``. Like every operation, it makes the same pixels of the same image under the same key,
    whatever else is in the batch: each image is a batch of its own for Kornia, drawn and changed alone with the
    generator of PyTorch seeded for it. What Kornia draws once for a batch, such as the order of a ``ColorJitter``, the
    kernel size of a ``RandomMotionBlur`` or the choice of a ``RandAugment``, is so drawn for each image. It also
    costs a call for each image that drew the augmentation; our own operations, where there is one, cost far less.

    The random numbers are drawn on the host and sent to the images' device without waiting for it. What Kornia does
    there is its own: ``RandomThinPlateSpline`` waits for a GPU to solve its equations, and ``RandomJPEG`` once, to
    bring its tables there.

    The result is cut off at 0 and 1, which noise and bicubic resampling overshoot and which the operations after this
    one rely on. An image that did not draw the augmentation stays as it is, bit for bit. Runs in float32, also under
    autocast, and without gradients.

    Args:
        module: A 2D augmentation of ``kornia.augmentation``, or an ``ImageSequential``, ``AugmentationSequential``,
            ``PatchSequential`` or policy of ``kornia.augmentation.auto`` of such. It is copied, and stays on the host:
            later changes to it, or moves to a GPU, change nothing here. A module that changes the size of images must
            do so to all of them alike.

    Raises:
        TypeError: The module is no Kornia augmentation of single images.
        ValueError: It has ``same_on_batch=True``, or normalises.
    """
    if not _is_augmentation(module):
        got = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise TypeError(
            f"kornia_op takes a 2D augmentation of kornia.augmentation that changes each image by itself, such as "
            f"RandomPerspective(p=0.5), but got {got}. views_from adapts any other transform as a whole pipeline."
        )
    for part in module.modules():
        _check_part(part)
    return KorniaOperation(copy.deepcopy(module).to(device="cpu", dtype=torch.float32))


@dataclass(frozen=True)
class KorniaOperation(TensorOperation):
    """What ``kornia_op`` returns; a copy of its argument, kept."""

    module: nn.Module

    num_words: ClassVar[int] = 1  # a seed: 32 bits are all that PyTorch's generator on the host makes use of

    def apply(self, images: Tensor, random: Random) -> Tensor:
        """Change a batch, image by image.

        Raises:
            ValueError: The module returned something else than one image, or images of different sizes.
        """
        module = copy.deepcopy(self.module)  # Kornia keeps what it drew, and matrices on the images' device, in there
        seeds = [int(word * 2**32) for word in random.uniform[0]]
        with (
            torch.random.fork_rng(devices=[]),
            torch.autocast(images.device.type, enabled=False),
            torch.no_grad(),
        ):
            return _joined(self.module, list(_changed(module, images, seeds)))


def _changed(module: nn.Module, images: Tensor, seeds: list[int]) -> Iterator[Tensor]:
    for image, seed in zip(images.split(1), seeds, strict=True):
        torch.default_generator.manual_seed(seed)
        yield _change(module, image)


def _change(module: nn.Module, image: Tensor) -> Tensor:
    """One image [1, C, H, W], with the numbers that the generator yields next."""
    from kornia.augmentation import AugmentationBase2D

    if isinstance(module, AugmentationBase2D):
        drawn = module.forward_parameters(image.shape)
        if not drawn["batch_prob"].any():  # Kornia would change the image all the same, and throw the result away
            return image
        result = module(image, params=drawn)
    else:
        result = module(image)
    if not isinstance(result, Tensor) or result.ndim != 4 or result.shape[:2] != image.shape[:2]:
        got = f"of shape {list(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise ValueError(
            f"Kornia's {type(module).__name__} made {got} of an image of shape {list(image.shape)}. An operation must "
            "keep the batch and the channels, and return nothing but the image."
        )
    return result.clamp(0, 1)


def _joined(module: nn.Module, images: list[Tensor]) -> Tensor:
    sizes = sorted({(image.shape[2], image.shape[3]) for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"Kornia's {type(module).__name__} made images of different sizes, such as {sizes[0]} and {sizes[-1]} "
            "pixels. An augmentation that changes the size must change every image's to the same: give it p=1."
        )
    return torch.cat(images)


def _is_augmentation(module: object) -> bool:
    from kornia.augmentation import AugmentationBase2D, MixAugmentationBaseV2, VideoSequential
    from kornia.augmentation.container.base import ImageSequentialBase

    kinds = AugmentationBase2D, MixAugmentationBaseV2, ImageSequentialBase
    return isinstance(module, kinds) and not isinstance(module, VideoSequential)


def _check_part(part: nn.Module) -> None:
    """Refuse what makes no sense in an operation on single images, also inside a container."""
    from kornia import enhance
    from kornia.augmentation import Denormalize, MixAugmentationBaseV2, Normalize, RandomJigsaw

    name = type(part).__name__
    if isinstance(part, MixAugmentationBaseV2) and not isinstance(part, RandomJigsaw):
        raise TypeError(
            f"Kornia's {name} mixes images with each other, but an operation of a view sees each image alone. Mix the "
            "finished views instead."
        )
    if isinstance(part, Normalize | Denormalize | enhance.Normalize | enhance.Denormalize):
        raise ValueError(
            f"Kornia's {name} leaves the range [0, 1] that operations keep to. Put contrastive.augmentations.Normalize "
            "at the end of the view instead."
        )
    # Some modules without randomness, such as Resize, set it themselves.
    if getattr(part, "same_on_batch", False) and "same_on_batch" in inspect.signature(type(part)).parameters:
        raise ValueError(
            f"{name} has same_on_batch=True, but an operation of a view changes each image without knowing the rest "
            "of its batch. Leave same_on_batch out."
        )
