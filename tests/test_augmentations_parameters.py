"""The counter-based generator against its published answers, the drawn numbers against their distributions."""

from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from contrastive.augmentations import ViewSpec
from contrastive.augmentations.parameters import Parameters, draw_parameters
from contrastive.augmentations.philox import philox4x32

COUNT = 20_000
SPEC = ViewSpec(
    image_size=32,
    p_flip=0.5,
    p_jitter=0.8,
    brightness=0.4,
    contrast=0.3,
    saturation=1.5,
    hue=0.1,
    p_grayscale=0.2,
    p_blur=0.1,
    p_solarize=0.25,
)


def draw(
    spec: ViewSpec = SPEC, *, seed: int = 0, epoch: int = 0, index: np.ndarray | None = None, view: int = 0,
    height: int = 48, width: int = 64,
) -> Parameters:  # fmt: skip
    index = np.arange(COUNT) if index is None else index
    return draw_parameters(spec, seed=seed, epoch=epoch, index=index, view=view, height=height, width=width)


# Salmon et al.'s Random123 library, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_its_authors_answers(counter: str, key: str, answer: str) -> None:
    words = [np.array([int(word, 16)] * 3, dtype=np.uint64) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    drawn = philox4x32(high << 32 | low, (words[0], words[1], words[2], words[3]))
    for got, expected in zip(drawn, answer.split(), strict=True):
        assert [f"{word:08x}" for word in got.tolist()] == [expected] * 3


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("brightness", 0.6, 1.4), ("contrast", 0.7, 1.3), ("saturation", 0.0, 2.5), ("hue", -0.1, 0.1), ("sigma", 0.1, 2)],
)
def test_factors_are_uniform(name: str, low: float, high: float) -> None:
    values = getattr(draw(), name)
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["flip", "jitter", "grayscale", "blur", "solarize"])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_each_operation_happens_with_its_probability(name: str, probability: float) -> None:
    times = int(getattr(draw(replace(SPEC, **{f"p_{name}": probability})), name).sum())
    assert stats.binomtest(times, COUNT, probability).pvalue > 1e-3


def test_every_order_of_the_jitter_is_equally_frequent() -> None:
    orders = [tuple(order) for order in draw().order.tolist()]
    counts = [orders.count(order) for order in permutations(range(4))]
    assert sum(counts) == COUNT
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (48, 64, (0.08, 1.0), (3 / 4, 4 / 3)),
        (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
        (10, 200, (0.3, 1.0), (3 / 4, 4 / 3)),  # nothing fits: centred fallback, too wide
        (200, 10, (0.3, 1.0), (3 / 4, 4 / 3)),  # likewise, too tall
        (20, 30, (0.5, 1.0), (0.5, 1.0)),  # some fit only after many attempts, some never
        (20, 20, (0.9, 1.0), (0.1, 10.0)),  # no attempt may fit, the image's own ratio is allowed: fallback is whole
        (1, 1, (0.08, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_crops_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    ours = draw(ViewSpec(8, scale=scale, ratio=ratio), height=height, width=width)
    assert (ours.height >= 1).all()
    assert (ours.width >= 1).all()
    assert (ours.top >= 0).all()
    assert (ours.left >= 0).all()
    assert (ours.top + ours.height <= height).all()
    assert (ours.left + ours.width <= width).all()
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(4000)])
    boxes = np.stack([ours.top, ours.left, ours.height, ours.width], axis=1)
    weights = np.array(
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, -1], [1, 0, 1, 0], [0, 1, 0, 1]]
    )
    for projection in weights:  # of each side, and of the sides together
        assert stats.ks_2samp(boxes @ projection, theirs @ projection).pvalue > 1e-3


def test_fallback_box_equals_torchvisions() -> None:
    for height, width in ((10, 200), (200, 11), (11, 333), (333, 10)):
        ours = draw(ViewSpec(8, scale=(1.0, 1.0)), index=np.arange(3), height=height, width=width)
        theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
        for row in range(3):
            assert (ours.top[row], ours.left[row], ours.height[row], ours.width[row]) == theirs


@pytest.mark.parametrize("change", [{"seed": 1}, {"seed": 2**32}, {"epoch": 1}, {"view": 1}])
def test_another_seed_epoch_or_view_draws_other_numbers(change: dict[str, int]) -> None:
    before, after = draw(), draw(**change)
    assert abs(stats.pearsonr(before.hue, after.hue).statistic) < 0.03
    assert abs(stats.pearsonr(before.top, after.top).statistic) < 0.03


def test_neighbouring_images_and_far_apart_ones_draw_other_numbers() -> None:
    hue = draw().hue
    assert abs(stats.pearsonr(hue[:-1], hue[1:]).statistic) < 0.03
    far = draw(index=np.arange(COUNT) + 2**32).hue  # same low word
    assert abs(stats.pearsonr(hue, far).statistic) < 0.03


def test_parameters_of_an_image_are_independent_of_each_other() -> None:
    drawn = draw()
    columns = {field.name: getattr(drawn, field.name) for field in fields(Parameters)} | {"order": drawn.order[:, 0]}
    for name in ("height", "width"):  # both follow the area; where the box lies follows its size
        columns.pop(name)
    table = np.stack([np.asarray(column, dtype=float) for column in columns.values()])
    correlation = np.corrcoef(table) - np.eye(len(table))
    top, left = list(columns).index("top"), list(columns).index("left")
    correlation[[top, left], [left, top]] = 0
    assert np.abs(correlation).max() < 0.03


def test_numbers_of_an_image_do_not_depend_on_the_batch() -> None:
    index = np.array([9, 3, 2**40 + 5, 0, 17])
    together = draw(index=index)
    for row, number in enumerate(index):
        alone = draw(index=np.array([number]))
        for field in fields(Parameters):
            assert np.array_equal(getattr(alone, field.name)[0], getattr(together, field.name)[row]), field.name


def test_switching_one_operation_off_leaves_the_others_as_they_were() -> None:
    before, after = draw(), draw(replace(SPEC, p_blur=0.0, p_jitter=0.0))
    for name in ("top", "left", "height", "width", "flip", "grayscale", "sigma", "solarize"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    assert not after.blur.any()
    assert not after.jitter.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_flip": 1.5}, r"p_flip=1.5 is not in \[0, 1\]. It is a probability: 0 never, 1 always."),
        ({"p_blur": -0.1}, r"p_blur=-0.1 is not in \[0, 1\]"),
        ({"p_solarize": float("nan")}, r"p_solarize=nan is not in \[0, 1\]"),
        ({"hue": 0.6}, r"hue=0.6 is not in \[0, 0.5\]. It is in full circles"),
        ({"contrast": -1.0}, r"contrast=-1.0 is not in \[0, inf\]. It is how far a factor strays from 1"),
        ({"solarize_threshold": 128.0}, r"solarize_threshold=128.0 is not in .* divide a threshold for uint8 by 255"),
        ({"scale": (0.0, 1.0)}, r"scale=\(0.0, 1.0\) is no range 0 < low <= high <= 1. It is the crop's share"),
        ({"scale": (0.5, 0.2)}, r"scale=\(0.5, 0.2\) is no range"),
        (
            {"ratio": (-1.0, 1.0)},
            r"ratio=\(-1.0, 1.0\) is no range 0 < low <= high <= inf. It is the crop's width / height",
        ),
        ({"blur_sigma": (0.0, 2.0)}, r"blur_sigma=\(0.0, 2.0\) is no range .* For no blur set p_blur=0."),
        ({"image_size": 0}, "image_size is the side of a view in pixels, so at least 1, but it is 0."),
        (
            {"blur_kernel_size": 4},
            "A blur kernel of 4 pixels does not fit 32 x 32 views: it must be odd and at most 63",
        ),
        ({"blur_kernel_size": 65}, "A blur kernel of 65 pixels does not fit 32 x 32 views"),
    ],
)
def test_impossible_spec_says_what_to_do(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **change)


@pytest.mark.parametrize(("image_size", "kernel_size"), [(224, 23), (96, 9), (32, 3), (8, 3), (64, 7)])
def test_blur_kernel_is_a_tenth_of_the_side_made_odd(image_size: int, kernel_size: int) -> None:
    assert ViewSpec(image_size).kernel_size == kernel_size
