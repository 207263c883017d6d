"""The contact sheet: what is written beside a view is what was done to its image."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from contrastive.augmentations import (
    CenterCrop,
    RaggedImages,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomSolarize,
    Resize,
    SampleKey,
    TensorOperation,
    Views,
    byol_views,
    simclr_views,
    views_from,
)
from contrastive.data import ImageFolders, TensorImages
from contrastive.report.contact_sheet import (
    Originals,
    description,
    first_originals,
    originals_in,
    save_contact_sheet,
)
from tests import tiny

SIZES = [(40, 61), (64, 48), (33, 70), (50, 50)]
BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def photographs(count: int) -> RaggedImages:
    """Smooth coloured images of different sizes."""
    noise = torch.Generator().manual_seed(0)
    coarse = [torch.randint(0, 256, (3, 5, 5), dtype=torch.uint8, generator=noise) for _ in range(count)]
    return RaggedImages.pack([tv.resize(image, list(SIZES[n % len(SIZES)])) for n, image in enumerate(coarse)])


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[+-]?\d+\.?\d*", text)]


def followed(lines: list[str], image: Tensor, size: int, interpolation: tv.InterpolationMode) -> Tensor:
    """What torchvision makes of an image that is treated line by line as it is written."""
    (height, width), (top, left) = numbers(lines[0]), numbers(lines[1])
    box = [int(side) for side in (top, left, height, width)]
    view = tv.resized_crop(image.float() / 255, *box, [size, size], interpolation=interpolation, antialias=True)
    view = view.clamp(0, 1)
    for line in lines[2:]:
        name, number = line.split(" ")[0].strip(","), numbers(line)[0] if numbers(line) else 0.0
        view = {
            "flipped": lambda v, _: tv.horizontal_flip(v),
            "brightness": tv.adjust_brightness,
            "contrast": tv.adjust_contrast,
            "saturation": tv.adjust_saturation,
            "hue": tv.adjust_hue,
            "grayscale": lambda v, _: tv.rgb_to_grayscale(v, 3),
            "blur": lambda v, sigma: tv.gaussian_blur(v, [3, 3], [sigma, sigma]),
            "solarized": tv.solarize,
        }[name](view, number)
    return view


@pytest.mark.parametrize("pipeline", ["simclr", "byol"])
def test_torchvision_makes_the_view_by_what_is_written(pipeline: str) -> None:
    images, key = photographs(24), SampleKey(3, 1, torch.arange(24) * 7)
    make_views = {"simclr": simclr_views, "byol": byol_views}[pipeline](24, normalize=None)
    interpolation = {"simclr": tv.InterpolationMode.BILINEAR, "byol": tv.InterpolationMode.BICUBIC}[pipeline]
    written = set[str]()
    for view, programs in zip(make_views(images, key), make_views.programs(images, key), strict=True):
        for row in range(len(images)):
            lines = description(programs, row)
            expected = followed(lines, images[row], 24, interpolation)
            # Two decimals are written; solarizing turns the least difference at its threshold into a large one.
            difference = (view[row] - expected).abs().flatten().kthvalue(int(0.97 * expected.numel())).values
            assert difference < 0.025, lines
            written |= {line.split(" ")[0] for line in lines}
    everything = {"crop", "flipped", "brightness", "contrast", "saturation", "hue", "grayscale", "blur,"}
    assert written - {""} == everything | ({"solarized"} if pipeline == "byol" else set())


def test_an_image_that_is_only_cropped_has_no_other_line() -> None:
    images, key = photographs(1), SampleKey(0, 0, torch.arange(1))
    whole = Views([[RandomResizedCrop(8, scale=(1, 1), ratio=(1e-3, 1e3)), RandomHorizontalFlip(0.0)]])
    (programs,) = whole.programs(images, key)
    assert len(description(programs, 0)) == 2


def test_a_window_is_written_as_the_part_of_the_image_that_it_shows() -> None:
    images = RaggedImages.pack([torch.zeros(3, 60, 40, dtype=torch.uint8)])
    (programs,) = Views([[Resize(20), CenterCrop(10)]]).programs(images, SampleKey(0, 0, torch.arange(1)))
    assert description(programs, 0) == ["crop 20 x 20", "  at top 20, left 10"]  # 10 of 30 x 20, at twice the size


class Halve(TensorOperation):
    def apply(self, images: Tensor, random: object) -> Tensor:
        return images / 2


def test_what_follows_an_operation_of_tensors_is_written_too() -> None:
    images = RaggedImages.pack([torch.zeros(3, 10, 10, dtype=torch.uint8)])
    view = [CenterCrop(10), Halve(), RandomSolarize(0.25, p=1.0)]
    (programs,) = Views([view]).programs(images, SampleKey(0, 0, torch.arange(1)))
    first, after, again = (
        ["crop 10 x 10", "  at top 0, left 0"],
        ["then, after other operations,"],
        "solarized from 0.25",
    )
    assert description(programs, 0) == [*first, *after, *first, again]


# --------------------------------------------------------------------------------------------------------- the picture


def colours(file: Path) -> Counter[tuple[int, int, int]]:
    """How many pixels of a picture have which colour."""
    with Image.open(file) as picture:
        pixels = np.array(picture.convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return Counter({tuple(colour): count for colour, count in zip(found.tolist(), counts.tolist(), strict=True)})


def solid(*colours: tuple[int, int, int]) -> Originals:
    """Images of one colour each, of different sizes."""
    images = [torch.tensor(c, dtype=torch.uint8)[:, None, None].repeat(1, 30 + n, 30) for n, c in enumerate(colours)]
    return Originals(RaggedImages.pack(images), torch.arange(len(images)), ["name"] * len(images))


def test_the_picture_holds_every_image_and_its_views(tmp_path: Path) -> None:
    inverted = Views([[CenterCrop(20), RandomSolarize(0.0, p=1.0)]])
    save_contact_sheet(solid((10, 200, 30), (250, 20, 120)), inverted, tmp_path / "new" / "x.png", 0, title="Two")
    found = colours(tmp_path / "new" / "x.png")
    for colour in [(10, 200, 30), (250, 20, 120), (245, 55, 225), (5, 235, 135)]:
        nearly = sum(count for other, count in found.items() if np.abs(np.subtract(other, colour)).max() <= 1)
        assert nearly > 10_000, colour


def test_each_view_has_its_own_colour_and_a_box_of_it_in_the_image(tmp_path: Path) -> None:
    originals = Originals(tiny.images(1, size=30), torch.arange(1), ["name"])
    save_contact_sheet(originals, Views([[CenterCrop(20)]] * 2), tmp_path / "with.png", 0, title="x")
    save_contact_sheet(originals, views_from(lambda images: images), tmp_path / "without.png", 0, title="x")
    with_boxes, without = colours(tmp_path / "with.png"), colours(tmp_path / "without.png")
    for colour in (BLUE, ORANGE):
        assert without[colour] > 500  # the frames of the views
    assert with_boxes[ORANGE] > without[ORANGE] + 500  # the second box covers the first


def test_another_seed_draws_other_views_of_the_same_images(tmp_path: Path) -> None:
    originals = Originals(tiny.images(1), torch.arange(1), ["name"])
    pictures = []
    for seed in (0, 0, 1):
        save_contact_sheet(originals, simclr_views(8, blur=False), tmp_path / "x.png", seed, title="x")
        pictures.append((tmp_path / "x.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_views_of_a_transform_whose_numbers_are_not_known_are_shown_alone(tmp_path: Path) -> None:
    originals = Originals(tiny.images(2), torch.arange(2), ["a" * 50, "b"])
    save_contact_sheet(originals, views_from(lambda images: images), tmp_path / "x", 0, title="x")
    with Image.open(tmp_path / "x") as picture:
        assert picture.format == "PNG"


# ---------------------------------------------------------------------------------------------------------- the images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of different sizes."""
    for number in range(7):
        pixels = np.full((9 + number, 12, 3), 30 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def test_the_images_are_the_first_that_a_run_with_the_seed_trains_on(folder: Path) -> None:
    for seed in (0, 1):
        data = ImageFolders(folder, batch_size=5, num_workers=0, seed=seed)
        batch = next(iter(data.train_dataloader()))
        ours = originals_in(folder, 3, seed)
        assert ours.index.tolist() == batch["index"][:3].tolist()
        assert ours.names == [data.train_files[number] for number in batch["index"][:3].tolist()]
        assert all(ours.images[row].equal(batch["image"][row]) for row in range(3))
        from_data = first_originals(data, 3)
        assert from_data.names == ours.names
        assert all(from_data.images[row].equal(ours.images[row]) for row in range(3))


def test_fewer_images_than_asked_for_are_all_of_them(folder: Path) -> None:
    assert sorted(originals_in(folder, 100, 0).names) == [f"{number}.png" for number in range(7)]
    originals = first_originals(TensorImages(tiny.images(8), batch_size=4), 100)
    assert originals.names == [f"image {number}" for number in originals.index.tolist()]
    assert len(originals.images) == 4
    assert first_originals(TensorImages(tiny.images(8), batch_size=4), 2).names == originals.names[:2]


def test_a_broken_file_is_named(folder: Path) -> None:
    (folder / "3.png").write_text("not found")
    with pytest.raises(
        ValueError, match=r"3\.png is no usable image: its contents are none of JPEG.*\. Remove or repair"
    ):
        originals_in(folder, 7, 0)
