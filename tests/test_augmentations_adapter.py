"""Other people's transforms as views: right noise, no traces, clear complaints."""

import random
from collections.abc import Callable
from typing import Any

import kornia.augmentation as kornia_augmentation
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contrastive.augmentations import IMAGENET, MakeViews, RaggedImages, SampleKey, views_from
from tests.ranks import Ranks
from tests.reference_augmentations import photographs

IMAGES = photographs(6, 24, 24)


def kornia_pipeline() -> nn.Module:
    return kornia_augmentation.AugmentationSequential(
        kornia_augmentation.RandomResizedCrop((16, 16), scale=(0.2, 1.0)),
        kornia_augmentation.RandomHorizontalFlip(p=0.5),
        kornia_augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        kornia_augmentation.RandomGaussianBlur((3, 3), (0.1, 2.0), p=0.5),
    )


def add_noise(images: Tensor) -> Tensor:
    """Draws from every global generator, in place on top of it."""
    return images.add_(torch.rand(len(images), 1, 1, 1) + random.random() + np.random.rand())


def key(start: int = 0, *, seed: int = 0, epoch: int = 0) -> SampleKey:
    return SampleKey(seed, epoch, torch.arange(start, start + len(IMAGES)))


def states() -> tuple[list[int], list[int], object]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.parametrize("build", [kornia_pipeline, lambda: add_noise])
def test_transform_is_seeded_by_the_key_alone(build: Callable[[], Any]) -> None:
    make_views = views_from(build())
    torch.manual_seed(1)
    first = make_views(IMAGES, key())
    torch.manual_seed(2)
    random.seed(2)
    again = make_views(IMAGES, key())
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first[0], first[1])
    for changed in (key(6), key(seed=1), key(epoch=1)):
        assert not torch.equal(first[0], make_views(IMAGES, changed)[0])


@pytest.mark.parametrize("build", [kornia_pipeline, lambda: add_noise])
def test_global_random_state_is_left_as_found(build: Callable[[], Any]) -> None:
    before = states()
    views_from(build())(IMAGES, key())
    # Python's own state is compared where the transform fails: checking a returned list's type draws from it.
    assert states()[:2] == before[:2]


def test_global_random_state_is_left_as_found_by_a_transform_that_fails() -> None:
    def fail(images: Tensor) -> Tensor:
        add_noise(images)
        raise RuntimeError("out of luck")

    before = states()
    with pytest.raises(RuntimeError, match="out of luck"):
        views_from(fail)(IMAGES, key())
    assert states() == before


def noise_on_this_rank() -> Tensor:
    return views_from(add_noise)(IMAGES, key())[0]


def test_ranks_with_the_same_key_draw_different_noise(two_ranks: Ranks) -> None:
    first, second = two_ranks(noise_on_this_rank)
    assert not torch.equal(first, second)


def test_kornia_pipeline_makes_views_of_its_size() -> None:
    make_views = views_from(kornia_pipeline(), num_views=3, evaluation=IMAGENET)
    assert isinstance(make_views, MakeViews)
    views = make_views(IMAGES, key())
    assert [view.shape for view in views] == [(6, 3, 16, 16)] * 3
    assert all(view.dtype == torch.float32 and view.min() >= 0 and view.max() <= 1 for view in views)


def test_autocast_does_not_reach_the_transform() -> None:
    make_views = views_from(kornia_pipeline())
    plain = make_views(IMAGES, key())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = make_views(IMAGES, key())
    for one, other in zip(plain, cast, strict=True):
        assert torch.equal(one, other)


def test_transform_sees_float_images_each_time_anew() -> None:
    seen = []

    def spoil(images: Tensor) -> Tensor:
        seen.append(images.clone())
        return images.zero_()

    views_from(spoil)(IMAGES, key())
    assert len(seen) == 2
    for images in seen:
        torch.testing.assert_close(images, IMAGES / 255)


def test_transform_that_returns_several_views_is_called_once() -> None:
    views = views_from(lambda images: (images, images[..., :8], images * 0))(IMAGES, key())
    assert [view.shape[-1] for view in views] == [24, 8, 24]


def test_module_with_parameters_gets_no_gradient() -> None:
    class Tint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.color = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            return images * self.color

    assert not any(view.requires_grad for view in views_from(Tint())(IMAGES, key()))


def test_evaluation_view_scales_or_does_as_told() -> None:
    torch.testing.assert_close(views_from(add_noise).evaluation_view(IMAGES), IMAGES / 255)
    normalised = views_from(add_noise, evaluation=IMAGENET).evaluation_view(IMAGES)
    torch.testing.assert_close(normalised, IMAGENET(IMAGES / 255))


@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (
            lambda images: {"view": images},
            TypeError,
            "returned a dict where a view was due. It must return float tensors",
        ),
        (lambda images: [images, None], TypeError, "returned a NoneType where a view was due"),
        (lambda images: images > 0.5, TypeError, "returned a torch.bool tensor where a view was due"),
        (lambda images: images[0], ValueError, r"a view of shape \[3, 24, 24\] for 6 images. It must keep the batch"),
        (lambda images: images.flatten(1), ValueError, r"shape \[6, 1728\] for 6 images"),
        (lambda images: images[:3], ValueError, r"shape \[3, 3, 24, 24\] for 6 images"),
    ],
)
def test_unfit_views_say_what_to_do(transform: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        views_from(transform)(IMAGES, key())


def test_float_images_are_taken_and_not_written_to() -> None:
    images = IMAGES / 255
    before = images.clone()
    make_views = views_from(add_noise)
    for floats, levels in zip(make_views(images, key()), make_views(IMAGES, key()), strict=True):
        torch.testing.assert_close(floats, levels)
    assert torch.equal(images, before)


def test_wrong_images_and_keys_say_what_to_do() -> None:
    make_views = views_from(add_noise)
    with pytest.raises(TypeError, match=r"uint8 images .* but got a torch.float64 Tensor"):
        make_views(IMAGES.double() / 255, key())
    with pytest.raises(
        ValueError, match=r"A transform of tensors takes images of one size, but these are ragged. Use Views"
    ):
        make_views(RaggedImages.pack(list(IMAGES)), key())
    with pytest.raises(ValueError, match=r"index has shape \[2\] and torch.int64, for 6 images"):
        make_views(IMAGES, SampleKey(0, 0, torch.arange(2)))


def test_unfit_arguments_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"num_views=0 makes no view. Contrastive methods compare at least two."):
        views_from(add_noise, num_views=0)
