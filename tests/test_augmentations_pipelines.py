"""Whole pipelines: against torchvision one image at a time, and what a view may and may not depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from contrastive.augmentations import (
    CIFAR10,
    IMAGENET,
    MakeViews,
    SampleKey,
    ViewPipeline,
    ViewSpec,
    byol_views,
    functional,
    moco_v2_views,
    multi_crop_views,
    simclr_views,
)
from contrastive.augmentations.parameters import draw_parameters
from contrastive.augmentations.pipeline import apply_parameters
from contrastive.augmentations.views import check_images, check_key
from tests.reference_augmentations import photographs, torchvision_view

# Everything happens to about half of the images.
BUSY = replace(byol_views(32).specs[1], p_blur=0.5, p_grayscale=0.3, p_solarize=0.5)
PIPELINES = {
    "simclr": simclr_views(32),
    "simclr_cifar10": simclr_views(32, strength=0.5, blur=False, normalize=CIFAR10),
    "simclr_unnormalised": simclr_views(24, normalize=None, num_views=3),
    "moco_v2": moco_v2_views(32),
    "byol": byol_views(40),
    "multi_crop": multi_crop_views(32, local_size=16, num_local=3),
    "busy": ViewPipeline((BUSY, BUSY)),
}


def key(count: int, *, seed: int = 0, epoch: int = 0) -> SampleKey:
    return SampleKey(seed, epoch, torch.arange(count) * 7)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (45, 37), (9, 70)])
@pytest.mark.parametrize("name", PIPELINES)
def test_views_equal_torchvision_one_image_at_a_time(name: str, height: int, width: int) -> None:
    images, pipeline = photographs(12, height, width), PIPELINES[name]
    views = pipeline(images, key(12, seed=5, epoch=2))
    assert len(views) == len(pipeline.specs)
    for number, (view, spec) in enumerate(zip(views, pipeline.specs, strict=True)):
        index = np.arange(12) * 7
        drawn = draw_parameters(spec, seed=5, epoch=2, index=index, view=number, height=height, width=width)
        expected = [torchvision_view(image, spec, drawn, row, pipeline.normalize) for row, image in enumerate(images)]
        # Normalised: a difference in [0, 1] counts 4.5 times.
        assert (view - torch.stack(expected)).abs().max().item() < 5e-5


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [32, 200])
def test_a_view_is_the_same_bits_whatever_else_is_in_the_batch(size: int, threads: int) -> None:
    count = 64 if size == 32 else 9
    images, names = photographs(count, size + 10, size), key(count)
    pipeline = ViewPipeline((replace(BUSY, image_size=size), replace(BUSY, image_size=size // 2)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = pipeline(images, names)
        for rows in [[row] for row in range(0, count, 3)] + [list(range(7)), torch.randperm(count).tolist()]:
            part = pipeline(images[rows], SampleKey(0, 0, names.index[rows]))
            for view, whole in zip(part, together, strict=True):
                assert torch.equal(view, whole[rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", PIPELINES)
def test_global_random_state_is_neither_read_nor_moved(name: str) -> None:
    images, pipeline = photographs(6, 32, 32), PIPELINES[name]
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        results.append(pipeline(images, key(6)))
        pipeline.evaluation_view(photographs(6, 40, 40))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_autocast_changes_nothing() -> None:
    images, pipeline = photographs(8, 32, 32), PIPELINES["busy"]
    plain = pipeline(images, key(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = pipeline(images, key(8))
    for first, second in zip(plain, cast, strict=True):
        assert second.dtype == torch.float32
        assert torch.equal(first, second)


def test_a_gpu_gets_all_the_work_and_is_never_waited_for() -> None:
    """Fake tensors know their device and refuse to tell their values, which is what would wait."""
    drawn = draw_parameters(BUSY, seed=0, epoch=0, index=np.arange(16), view=0, height=40, width=48)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(16, 3, 40, 48, dtype=torch.uint8, device="cuda")
        view = apply_parameters(functional.to_float(images), BUSY, drawn)
        assert view.device.type == "cuda"
        assert IMAGENET(view).device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            view.sum().item()


def test_views_epochs_seeds_and_images_differ() -> None:
    images, pipeline = photographs(1, 32, 32).expand(16, -1, -1, -1), PIPELINES["simclr"]
    first, second = pipeline(images, key(16))
    later = pipeline(images, key(16, epoch=1))[0]
    elsewhere = pipeline(images, key(16, seed=1))[0]
    views = torch.cat([first, second, later, elsewhere]).flatten(1)
    assert torch.cdist(views, views).add(torch.eye(64) * 1e9).min() > 1e-2  # no two of 64 are the same


def test_images_are_not_written_to() -> None:
    images = photographs(8, 32, 32)
    before = images.clone()
    for pipeline in PIPELINES.values():
        pipeline(images, key(8))
    assert torch.equal(images, before)


def test_both_ends_of_uint8_survive_a_pipeline_that_only_crops() -> None:
    ends = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 16, 16)
    (view,) = ViewPipeline((ViewSpec(16, p_flip=1.0),), normalize=None)(ends, key(2))
    assert view[0].max() == 0
    torch.testing.assert_close(view[1], torch.ones(3, 16, 16))


def test_empty_batch_makes_empty_views() -> None:
    images = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    assert [view.shape for view in PIPELINES["busy"](images, key(0))] == [(0, 3, 32, 32)] * 2


# Columns: image_size, scale, flip, jitter, brightness, contrast, saturation, hue, grayscale, blur, kernel, solarize.
Row = tuple[int, tuple[float, float], float, float, float, float, float, float, float, float, int, float]
SIMCLR: Row = (224, (0.08, 1.0), 0.5, 0.8, 0.8, 0.8, 0.8, 0.2, 0.2, 0.5, 23, 0.0)
CIFAR: Row = (32, (0.08, 1.0), 0.5, 0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0.0, 3, 0.0)
MOCO: Row = (224, (0.2, 1.0), 0.5, 0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0.5, 23, 0.0)
BYOL_1: Row = (224, (0.08, 1.0), 0.5, 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 1.0, 23, 0.0)
BYOL_2: Row = (224, (0.08, 1.0), 0.5, 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.1, 23, 0.2)
GLOBAL: Row = (224, (0.14, 1.0), 0.5, 0.8, 0.8, 0.8, 0.8, 0.2, 0.2, 0.5, 23, 0.0)
LOCAL: Row = (96, (0.05, 0.14), 0.5, 0.8, 0.8, 0.8, 0.8, 0.2, 0.2, 0.5, 23, 0.0)


def jitter(spec: ViewSpec) -> tuple[float, float, float, float]:
    return spec.brightness, spec.contrast, spec.saturation, spec.hue


@pytest.mark.parametrize(
    ("pipeline", "published"),
    [
        (simclr_views(224), [SIMCLR] * 2),
        (simclr_views(32, strength=0.5, blur=False), [CIFAR] * 2),
        (moco_v2_views(), [MOCO] * 2),
        (byol_views(), [BYOL_1, BYOL_2]),
        (multi_crop_views(), [GLOBAL] * 2 + [LOCAL] * 6),
    ],
)
def test_defaults_are_the_published_ones(pipeline: ViewPipeline, published: list[Row]) -> None:
    assert pipeline.normalize == IMAGENET
    assert isinstance(pipeline, MakeViews)
    rows = [
        (s.image_size, s.scale, s.p_flip, s.p_jitter, *jitter(s), s.p_grayscale, s.p_blur, s.kernel_size, s.p_solarize)
        for s in pipeline.specs
    ]
    assert rows == published
    for spec in pipeline.specs:
        assert spec.ratio == (3 / 4, 4 / 3)
        assert spec.blur_sigma == (0.1, 2.0)
        assert spec.solarize_threshold == 0.5


def test_evaluation_view_is_the_normalised_centre() -> None:
    pipeline = multi_crop_views(32, local_size=16)
    for side in (32, 37):
        images = photographs(3, side, side + 1)
        top, left = round((side - 32) / 2), round((side + 1 - 32) / 2)
        centre = images[:, :, top : top + 32, left : left + 32].double() / 255
        expected = (centre - torch.tensor(IMAGENET.mean).view(3, 1, 1)) / torch.tensor(IMAGENET.std).view(3, 1, 1)
        view = pipeline.evaluation_view(images)
        assert view.dtype == torch.float32
        torch.testing.assert_close(view.double(), expected, atol=1e-6, rtol=0)
    unnormalised = simclr_views(32, normalize=None).evaluation_view(images)
    assert torch.equal(unnormalised, functional.to_float(images[:, :, top : top + 32, left : left + 32]))


def test_evaluation_view_of_small_images_says_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"Images of 31 x 40 pixels are smaller than the view's 32 x 32. Make the views for"
    ):
        simclr_views(32).evaluation_view(photographs(2, 31, 40))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (
            torch.rand(4, 3, 32, 32),
            TypeError,
            "but got a torch.float32 tensor. Leave scaling and normalising to the views",
        ),
        (
            photographs(1, 32, 32)[0],
            ValueError,
            r"shape \[3, 32, 32\]. For a single image add the batch axis: images\[None\]",
        ),
        (photographs(4, 32, 32)[:, :1], ValueError, r"shape \[4, 1, 32, 32\]. Repeat a grey channel: images.expand"),
        (photographs(4, 32, 32).permute(0, 2, 3, 1), ValueError, "The channels come second: images.permute"),
        (torch.zeros(4, 4, 32, 32, dtype=torch.uint8), ValueError, r"shape \[4, 4, 32, 32\]. Stack RGB images"),
        (torch.zeros(4, 3, 0, 32, dtype=torch.uint8), ValueError, r"shape \[4, 3, 0, 32\]. Stack RGB images"),
    ],
)
def test_wrong_images_say_what_to_do(images: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simclr_views(32)(images, key(4))
    with pytest.raises(error, match=message):
        simclr_views(32).evaluation_view(images)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (key(3), ValueError, r"index has shape \[3\] and torch.int64, for 4 images. It holds each image's number"),
        (SampleKey(-1, 0, torch.arange(4)), ValueError, "seed=-1, epoch=0 is out of range: 0 <= seed < 2"),
        (SampleKey(0, 2**32, torch.arange(4)), ValueError, "epoch=4294967296 is out of range"),
        (SampleKey(0, 0, torch.arange(4) - 2), ValueError, "An image's index is -2, but indices count from 0."),
    ],
)
def test_wrong_keys_say_what_to_do(wrong: SampleKey, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simclr_views(32)(photographs(4, 32, 32), wrong)


def test_something_else_than_images_or_a_key_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"uint8 images .* but got a list. Leave scaling"):
        check_images([photographs(1, 32, 32)])
    with pytest.raises(
        TypeError, match=r"a SampleKey\(seed, epoch, index\), but got a Tensor. The index is the images'"
    ):
        check_key(torch.arange(4), photographs(4, 32, 32))


def test_no_views_at_all_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"A pipeline of 0 views makes nothing. Give one ViewSpec for each view"):
        simclr_views(32, num_views=0)
