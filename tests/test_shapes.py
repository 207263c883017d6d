"""The embedded data set: drawn as described, from its seed alone, and honest to teach with."""

import math
import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from contrastive.data import Shapes, shapes
from contrastive.data.shapes import SHAPES, Pose, coverage, signed_distance

NAMES = list(SHAPES)


@pytest.fixture
def redrawn() -> None:
    """Nothing drawn earlier is kept."""
    shapes._pictures.cache_clear()


def everything(data: Shapes) -> list[Tensor]:
    tensors = []
    for split in ("train", "val"):
        labels = data.labels(split)
        assert labels is not None
        tensors += [data.images(split), labels]
    return tensors


def centred(count: int, *, radius: float = 0.8, tilt: float = 0.0) -> Pose:
    zeros = torch.zeros(count)
    return Pose(zeros, zeros, torch.full((count,), radius), torch.full((count,), tilt))


def all_classes(size: int, *, radius: float = 0.8, tilt: float = 0.0) -> Tensor:
    return coverage(torch.arange(10), centred(10, radius=radius, tilt=tilt), size)  # [10, H, W]


def test_images_are_uint8_rgb_with_every_class_once_in_ten() -> None:
    data = Shapes(num_train=1230, num_test=40)
    train, train_labels, test, test_labels = everything(data)
    assert (train.shape, test.shape) == ((1230, 3, 32, 32), (40, 3, 32, 32))
    assert train.dtype == test.dtype == torch.uint8
    assert data.classes == NAMES
    assert data.num_classes == 10
    for labels in (train_labels, test_labels):
        assert labels.dtype == torch.int64
        assert (labels.view(-1, 10).sort(1).values == torch.arange(10)).all()
    assert not torch.equal(train_labels[:10], train_labels[10:20])


def test_batches_number_their_images() -> None:
    data = Shapes(num_train=100, num_test=30, batch_size=20)
    images, labels, *_ = everything(data)
    batches = list(data.train_dataloader())
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == list(range(100))
    for batch in batches:
        assert torch.equal(batch["image"], images[batch["index"]])
        assert torch.equal(batch["label"], labels[batch["index"]])


@pytest.mark.usefixtures("redrawn")
def test_a_seed_draws_the_same_pictures_again() -> None:
    first = everything(Shapes(num_train=50, num_test=20, seed=3))
    shapes._pictures.cache_clear()
    again = everything(Shapes(num_train=50, num_test=20, seed=3))
    for one, other in zip(first, again, strict=True):
        assert one.data_ptr() != other.data_ptr()
        assert torch.equal(one, other)


def test_a_seed_draws_on_every_machine_what_it_drew_on_the_first() -> None:
    images, labels, *_ = everything(Shapes(num_train=20, num_test=10))
    assert labels[:10].tolist() == [2, 3, 4, 8, 6, 0, 9, 5, 1, 7]
    means = images[:4].double().mean((1, 2, 3))
    torch.testing.assert_close(
        means, torch.tensor([161.870, 66.996, 79.037, 103.900], dtype=torch.float64), atol=0.05, rtol=0
    )


def test_splits_and_seeds_have_no_picture_in_common() -> None:
    drawn = [everything(Shapes(num_train=300, num_test=300, seed=seed)) for seed in (0, 1)]
    pictures = [images.flatten(1) for train, _, test, _ in drawn for images in (train, test)]
    assert len(torch.cat(pictures).unique(dim=0)) == 4 * 300
    assert not torch.equal(drawn[0][1], drawn[0][3])
    assert not torch.equal(drawn[0][1], drawn[1][1])


def test_a_smaller_data_set_is_the_beginning_of_a_larger_one() -> None:
    few, many = (everything(Shapes(num_train=number, num_test=number // 3)) for number in (60, 2100))
    for one, other in zip(few, many, strict=True):
        assert torch.equal(one, other[: len(one)])


def test_an_image_size_changes_the_resolution_and_not_the_picture() -> None:
    small, labels, *_ = everything(Shapes(num_train=50, num_test=10))
    large, same_labels, *_ = everything(Shapes(64, num_train=50, num_test=10))
    assert torch.equal(labels, same_labels)
    halved = torch.nn.functional.avg_pool2d(large.float(), 2)
    # The noise of a pixel differs: 0.06 / sqrt(6) of 255, and half as much where four are averaged.
    assert float((halved - small).std()) < 1.5 * 255 * 0.06 / math.sqrt(6) * math.hypot(1, 0.5)


@pytest.mark.usefixtures("redrawn")
def test_drawing_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    Shapes(num_train=20, num_test=10)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


@pytest.mark.usefixtures("redrawn")
def test_pictures_are_drawn_once_in_a_process() -> None:
    first, second = (Shapes(num_train=20, num_test=10, batch_size=size) for size in (5, 10))
    assert first.images("train").data_ptr() == second.images("train").data_ptr()


def lens(a: float, b: float, apart: float) -> float:
    """Area that two discs of radii a and b share."""
    to_chord = (apart**2 + a**2 - b**2) / (2 * apart)
    segments = ((a, to_chord), (b, apart - to_chord))
    return sum(r**2 * math.acos(d / r) - d * math.sqrt(r**2 - d**2) for r, d in segments)


AREAS = {
    "disc": math.pi * 0.85**2,
    "ring": math.pi * (0.90**2 - 0.46**2),
    "crescent": math.pi * 0.92**2 - lens(0.92, 0.72, 0.42),
    "heart": 1.7**2 * (0.5 + math.pi / 8),  # a square of side sqrt(1/2), half a disc on each of two sides
    "square": 1.56**2,
    "triangle": 1.9 * 1.7 / 2,
    "star": 10 * 0.5 * 0.45 * math.sin(math.pi / 5),  # ten triangles of sides 1 and 0.45
    "cross": 2 * 1.9 * 0.6 - 0.6**2,
    "arrow": 1.7 * 0.9 / 2 + 0.66 * 1.05,
}


@pytest.mark.parametrize("name", AREAS)
def test_a_shape_covers_its_area(name: str) -> None:
    size, radius = 128, 0.7
    mask = all_classes(size, radius=radius, tilt=0.3)[NAMES.index(name)]
    assert float(mask.sum()) * (2 / size) ** 2 == pytest.approx(AREAS[name] * radius**2, rel=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_edges_are_sharp_since_the_distance_grows_by_one_with_every_step(name: str) -> None:
    size, label = 256, torch.tensor([NAMES.index(name)])
    distance = signed_distance(label, centred(1), size)[0]  # [H, W]
    step = 2 / size
    assert max(float(distance.diff(dim=axis).abs().max()) for axis in (0, 1)) < 1.001 * step
    slope = torch.hypot(*torch.gradient(distance, spacing=step))
    # Less than one only on the ridges, where the nearest edge changes.
    assert float((slope > 0.99).float().mean()) > 0.9


def test_a_quarter_turn_turns_the_mask_clockwise() -> None:
    turned = all_classes(32, tilt=math.pi / 2)
    torch.testing.assert_close(turned, torch.rot90(all_classes(32), k=-1, dims=(1, 2)), atol=1e-4, rtol=0)


def test_a_pose_moves_the_shape_right_and_down() -> None:
    size, labels = 64, torch.arange(10)
    moved = Pose(
        torch.full((10,), 5 * 2 / size), torch.full((10,), 3 * 2 / size), torch.full((10,), 0.5), torch.zeros(10)
    )
    expected = all_classes(size, radius=0.5).roll((3, 5), dims=(1, 2))
    torch.testing.assert_close(coverage(labels, moved, size), expected, atol=1e-4, rtol=0)


def test_the_nearest_template_of_a_mask_is_of_its_class() -> None:
    tilts = [math.radians(degrees) for degrees in range(-24, 25, 8)]
    templates = torch.stack([all_classes(32, tilt=tilt) for tilt in tilts])  # [T, 10, H, W]
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat(40)
    tilt = (2 * torch.rand(400, generator=generator) - 1) * math.radians(shapes.TILT)
    masks = coverage(labels, Pose(torch.zeros(400), torch.zeros(400), torch.full((400,), 0.8), tilt), 32)
    distances = torch.cdist(masks.flatten(1), templates.flatten(0, 1).flatten(1)).view(400, len(tilts), 10)
    assert torch.equal(distances.amin(1).argmin(1), labels)


@pytest.fixture(scope="module")
def pixels_and_labels() -> list[np.ndarray]:
    """Standardised pixels and labels, 3000 images to train on and 1000 to test."""
    train, train_labels, test, test_labels = everything(Shapes(num_train=3000, num_test=1000))
    scaler = StandardScaler().fit(train.flatten(1).numpy())
    pixels = [scaler.transform(images.flatten(1).numpy()).astype(np.float32) for images in (train, test)]
    return [pixels[0], train_labels.numpy(), pixels[1], test_labels.numpy()]


def test_a_linear_classifier_of_raw_pixels_fails(pixels_and_labels: list[np.ndarray]) -> None:
    train, train_labels, test, test_labels = pixels_and_labels
    accuracies = [
        LogisticRegression(C=c, max_iter=300, tol=1e-2).fit(train, train_labels).score(test, test_labels)
        for c in (1e-4, 1e-3)
    ]
    assert 0.12 < max(accuracies) < 0.4, accuracies


def test_the_mean_colour_says_nothing_of_the_class(pixels_and_labels: list[np.ndarray]) -> None:
    train, train_labels, test, test_labels = pixels_and_labels
    colour, test_colour = (pixels.reshape(len(pixels), 3, -1).mean(2) for pixels in (train, test))
    assert LogisticRegression().fit(colour, train_labels).score(test_colour, test_labels) < 0.15


def test_like_pictures_have_like_labels(pixels_and_labels: list[np.ndarray]) -> None:
    train, train_labels, test, test_labels = pixels_and_labels
    neighbours = KNeighborsClassifier(5, metric="cosine").fit(train, train_labels)
    assert neighbours.score(test, test_labels) > 0.3


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            {"image_size": 15},
            "image_size=15 pixels is too small to tell the shapes apart. Take 16 or more; 32 is usual.",
        ),
        ({"num_train": 9}, "num_train=9 leaves some of the 10 classes without an image. Take more."),
        ({"num_test": 0}, "num_test=0 leaves some of the 10 classes without an image. Take more."),
        ({"seed": -1}, "seed must be 0 or more, but is -1."),
    ],
)
def test_bad_arguments_are_named(mistake: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Shapes(**mistake)
