"""Each batched operation against torchvision's, image by image."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from contrastive.augmentations import CIFAR10, IMAGENET, Normalize, functional
from tests.reference_augmentations import photographs

LEVEL = 1 / 255


def kinds_of_images() -> dict[str, Tensor]:
    """Names to images, float [6, 3, H, W] in [0, 1]."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 256, (6, 3, 17, 29), generator=generator, dtype=torch.uint8)
    ends = torch.randint(0, 2, (6, 3, 16, 16), generator=generator, dtype=torch.uint8) * 255
    flat = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8)[:, None, None, None].expand(6, 3, 8, 8)
    kinds = {"photographs": photographs(6, 32, 32), "wide": photographs(6, 20, 45), "noise": noise, "ends": ends}
    kinds |= {"flat": flat, "one_pixel": noise[..., :1, :1], "two_pixels": noise[..., :2, :1]}
    return {name: functional.to_float(images) for name, images in kinds.items()}


KINDS = kinds_of_images()
OPERATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[float]]] = {
    "brightness": (functional.adjust_brightness, tv.adjust_brightness, [0.0, 0.2, 0.9, 1.0, 1.3, 1.8]),
    "contrast": (functional.adjust_contrast, tv.adjust_contrast, [0.0, 0.2, 0.9, 1.0, 1.3, 1.8]),
    "saturation": (functional.adjust_saturation, tv.adjust_saturation, [0.0, 0.2, 0.9, 1.0, 1.3, 1.8]),
    "hue": (functional.adjust_hue, tv.adjust_hue, [-0.5, -0.2, 0.0, 0.04, 0.33, 0.5]),
    "solarize": (functional.solarize, tv.solarize, [0.0, 0.25, 128 / 255, 0.5, 0.9, 1.0]),
}


def assert_close(ours: Tensor, theirs: Tensor, within: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max().item() <= within


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_colour_operation_equals_torchvision(name: str, kind: str) -> None:
    ours, theirs, values = OPERATIONS[name]
    images = KINDS[kind]
    before = images.clone()
    changed = ours(images, torch.tensor(values))
    assert_close(changed, torch.stack([theirs(image, value) for image, value in zip(images, values, strict=True)]))
    assert torch.equal(images, before)  # never written to


@pytest.mark.parametrize("kind", KINDS)
def test_grayscale_and_flip_equal_torchvision(kind: str) -> None:
    images = KINDS[kind]
    assert_close(functional.rgb_to_grayscale(images), tv.rgb_to_grayscale(images, num_output_channels=3), 1e-6)
    assert torch.equal(functional.horizontal_flip(images), tv.horizontal_flip(images))


@pytest.mark.parametrize("kernel_size", [1, 3, 9])
@pytest.mark.parametrize("kind", ["photographs", "wide", "noise", "ends", "flat"])
def test_blur_equals_torchvision(kind: str, kernel_size: int) -> None:
    images, sigmas = KINDS[kind], [0.1, 0.3, 0.8, 1.0, 1.7, 2.0]
    theirs = [tv.gaussian_blur(x, [kernel_size] * 2, [sigma] * 2) for x, sigma in zip(images, sigmas, strict=True)]
    assert_close(functional.gaussian_blur(images, torch.tensor(sigmas), kernel_size), torch.stack(theirs))


def test_blur_reaches_as_far_as_reflection_allows() -> None:
    images, sigma = KINDS["flat"] * torch.linspace(0, 1, 8), torch.full((6,), 5.0)
    theirs = torch.stack([tv.gaussian_blur(image, [15, 15], [5.0, 5.0]) for image in images])
    assert_close(functional.gaussian_blur(images, sigma, 15), theirs)
    with pytest.raises(ValueError, match=r"A blur kernel of 17 pixels does not fit.*\(8 x 8\)"):
        functional.gaussian_blur(images, sigma, 17)
    with pytest.raises(ValueError, match="A blur kernel of 4 pixels does not fit: it must be odd"):
        functional.gaussian_blur(images, sigma, 4)


# top, left, height, width of boxes in an image of 40 x 50: whole, a pixel, a row, corners, shrunk and enlarged.
BOXES = [(0, 0, 40, 50), (7, 9, 1, 1), (5, 0, 1, 50), (39, 49, 1, 1), (0, 18, 32, 32), (3, 11, 13, 37), (17, 2, 23, 9)]


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (32, 32), (21, 64), (96, 96)])
def test_resized_crop_equals_torchvision(size: tuple[int, int]) -> None:
    for images in (photographs(7, 40, 50), torch.randint(0, 2, (7, 3, 40, 50), dtype=torch.uint8) * 255):
        scaled = functional.to_float(images)
        top, left, height, width = torch.tensor(BOXES).unbind(1)
        flip = torch.tensor([False, True, True, False, True, False, True])
        ours = functional.resized_crop(scaled, top, left, height, width, size, flip)
        theirs = [
            tv.resized_crop(x, *box, size=list(size), antialias=True) for x, box in zip(scaled, BOXES, strict=True)
        ]
        flipped = [tv.horizontal_flip(x) if turn else x for x, turn in zip(theirs, flip, strict=True)]
        assert_close(ours, torch.stack(flipped))
        assert_close(functional.resized_crop(scaled, top, left, height, width, size), torch.stack(theirs))


def test_resized_crop_of_large_images_equals_torchvision() -> None:
    images = functional.to_float(photographs(3, 375, 500))
    boxes = [(0, 0, 375, 500), (11, 200, 300, 224), (100, 3, 61, 80)]
    ours = functional.resized_crop(images, *torch.tensor(boxes).unbind(1), size=(224, 224))
    theirs = [tv.resized_crop(x, *box, size=[224, 224], antialias=True) for x, box in zip(images, boxes, strict=True)]
    assert_close(ours, torch.stack(theirs), 2e-5)  # torchvision finds the pixel centres in float32, we in float64


def test_whole_image_at_its_own_size_is_unchanged() -> None:
    images = KINDS["noise"]
    zero, height, width = torch.zeros(6, dtype=torch.int64), torch.full((6,), 17), torch.full((6,), 29)
    assert torch.equal(functional.resized_crop(images, zero, zero, height, width, (17, 29)), images)


def test_a_window_of_a_resized_box_equals_torchvisions_resize_and_crop() -> None:
    images = functional.to_float(photographs(3, 60, 47))
    boxes, grids = [(0, 0, 60, 47), (3, 5, 50, 30), (10, 0, 16, 40)], [(40, 31), (35, 64), (16, 40)]
    windows, flip = [(7, 2), (0, 35), (3, 11)], torch.tensor([True, False, True])
    ours = functional.resample(
        images,
        *torch.tensor(boxes).unbind(1),
        grid=(torch.tensor(grids)[:, 0], torch.tensor(grids)[:, 1]),
        window=(torch.tensor(windows)[:, 0], torch.tensor(windows)[:, 1]),
        size=(13, 29),
        flip=flip,
    )
    for image, box, grid, window, turn, view in zip(images, boxes, grids, windows, flip, ours, strict=True):
        resized = tv.crop(tv.resized_crop(image, *box, size=list(grid), antialias=True), *window, 13, 29)
        assert_close(view, tv.horizontal_flip(resized) if turn else resized)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (33, 32), (96, 70)])
def test_bicubic_crops_equal_torchvisions_clamped(size: tuple[int, int]) -> None:
    for images in (photographs(7, 40, 50), torch.randint(0, 2, (7, 3, 40, 50), dtype=torch.uint8) * 255):
        scaled = functional.to_float(images)
        ours = functional.resized_crop(scaled, *torch.tensor(BOXES).unbind(1), size=size, bicubic=True)
        bicubic = InterpolationMode.BICUBIC
        theirs = [
            tv.resized_crop(x, *box, size=list(size), interpolation=bicubic, antialias=True)
            for x, box in zip(scaled, BOXES, strict=True)
        ]
        assert_close(ours, torch.stack(theirs).clamp(0, 1))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_numbers_of_channels_equal_torchvision(channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    images = torch.rand(6, channels, 20, 26, generator=generator)
    sigmas, factors = torch.linspace(0.2, 2, 6), torch.linspace(0, 1.8, 6)
    blurred = [tv.gaussian_blur(x, [5, 5], [sigma] * 2) for x, sigma in zip(images, sigmas.tolist(), strict=True)]
    assert_close(functional.gaussian_blur(images, sigmas, 5), torch.stack(blurred))
    box = torch.tensor([(2, 3, 15, 20)] * 6).unbind(1)
    assert_close(
        functional.resized_crop(images, *box, size=(9, 30)),
        tv.resized_crop(images, 2, 3, 15, 20, [9, 30], antialias=True),
    )
    if channels == 1:
        contrasted = [tv.adjust_contrast(x, factor) for x, factor in zip(images, factors.tolist(), strict=True)]
        assert_close(functional.adjust_contrast(images, factors), torch.stack(contrasted))


def test_both_ends_of_uint8_are_exact() -> None:
    every_level = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    scaled = functional.to_float(every_level)
    assert scaled.dtype == torch.float32
    assert scaled.min() == 0
    assert scaled.max() == 1
    assert torch.equal((scaled * 255).round().to(torch.uint8), every_level)
    assert_close(scaled, tv.to_dtype(every_level, torch.float32, scale=True), 1e-7)


@pytest.mark.parametrize("normalize", [IMAGENET, CIFAR10])
def test_normalize_equals_torchvision(normalize: Normalize) -> None:
    images = KINDS["photographs"]
    assert_close(normalize(images), tv.normalize(images, list(normalize.mean), list(normalize.std)), 1e-6)


def test_float64_stays_float64_and_agrees() -> None:
    images, values = KINDS["photographs"], torch.tensor([0.1, 0.2, 0.3, 0.4, 0.45, 0.5])
    for operation in (functional.adjust_contrast, functional.adjust_hue, functional.solarize):
        exact = operation(images.double(), values.double())
        assert exact.dtype == torch.float64
        assert_close(operation(images, values), exact.float())
    exact = functional.gaussian_blur(images.double(), values.double(), 5)
    assert exact.dtype == torch.float64
    assert_close(functional.gaussian_blur(images, values, 5), exact.float())
    box = torch.tensor([(1, 2, 20, 30)] * 6).unbind(1)
    exact = functional.resized_crop(images.double(), *box, size=(32, 32))
    assert exact.dtype == torch.float64
    assert_close(functional.resized_crop(images, *box, size=(32, 32)), exact.float(), 1e-6)


def test_colours_stay_colours_at_every_extreme() -> None:
    for images in KINDS.values():
        for factor in (0.0, 100.0):
            for operation in (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation):
                changed = operation(images, torch.full((6,), factor))
                assert changed.min() >= 0
                assert changed.max() <= 1
        turned = functional.adjust_hue(images, torch.full((6,), 0.37))
        assert turned.min() >= 0
        assert turned.max() <= 1


def test_half_a_level_is_the_most_any_operation_may_differ_by() -> None:
    """The promise to a user: what torchvision gives, to within a grey level, even on the hardest image."""
    for ours, theirs, values in OPERATIONS.values():
        hardest = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        expected = torch.stack([theirs(image, value) for image, value in zip(hardest, values, strict=True)])
        assert_close(ours(hardest, torch.tensor(values)), expected, LEVEL / 2)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_blur_without_width_says_what_to_do(sigma: float) -> None:
    with pytest.raises(ValueError, match=f"sigma must be positive: leave an image that stays sharp.*is {sigma:g}"):
        functional.gaussian_blur(KINDS["photographs"], torch.tensor([1.0] * 5 + [sigma]), 3)


def test_hue_in_degrees_says_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"must lie in \[-0.5, 0.5\] full circles: divide degrees by 360. One here is 90"
    ):
        functional.adjust_hue(KINDS["photographs"], torch.tensor([0.0] * 5 + [90.0]))


@pytest.mark.parametrize(("mean", "std"), [((0.5, 0.5, 0.5), (0.2, 0.0, 0.2)), ((0.5,), (0.2, 0.2)), ((), ())])
def test_impossible_statistics_say_what_to_do(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(
        ValueError, match="Normalize needs a mean and a standard deviation > 0 of each channel, but got"
    ):
        Normalize(mean, std)
