"""The counter-based generator against its published answers, what operations draw against their distributions."""

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.v2 import functional as tv

from contrastive.augmentations import (
    IMAGENET,
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Normalize,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomSolarize,
    Resize,
    SampleKey,
    Views,
    simclr_views,
)
from contrastive.augmentations.operations import Operation
from contrastive.augmentations.philox import philox4x32
from contrastive.augmentations.program import Code, Program
from contrastive.augmentations.randomness import Names, Random, draw

COUNT = 20_000
VIEW = (
    RandomResizedCrop(8),
    RandomHorizontalFlip(0.5),
    ColorJitter(brightness=0.4, contrast=0.3, saturation=1.5, hue=0.1, p=0.8),
    RandomGrayscale(0.2),
    GaussianBlur(3, p=0.1),
    RandomSolarize(0.5, p=0.25),
)


def numbers(
    *words: int, seed: int = 0, epoch: int = 0, index: npt.NDArray[np.int64] | None = None, view: int = 0
) -> list[Random]:
    """What operations that ask for so many words are given in one view."""
    names = Names(seed, epoch, np.arange(COUNT) if index is None else index)
    return draw(names, [words] * (view + 1))[view]


def program(
    operations: Sequence[Operation] = VIEW, *, seed: int = 0, epoch: int = 0, view: int = 0, height: int = 12,
    width: int = 16, index: npt.NDArray[np.int64] | None = None,
) -> Program:  # fmt: skip
    """What a view draws, for many images at once; the pixels are one and the same."""
    index = np.arange(COUNT) if index is None else index
    images = torch.zeros(1, 3, height, width, dtype=torch.uint8).expand(len(index), -1, -1, -1)
    key = SampleKey(seed, epoch, torch.from_numpy(index))
    return Views([operations] * (view + 1)).programs(images, key)[view][0]


def drawn(operation: Operation, **where: int) -> Program:
    """What an operation draws that need not follow a crop."""
    return program([CenterCrop(2), operation], height=2, width=2, **where)


# Salmon et al.'s Random123 library, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_its_authors_answers(counter: str, key: str, answer: str) -> None:
    words = [np.array([int(word, 16)] * 3, dtype=np.uint32) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    made = philox4x32(high << 32 | low, (words[0], words[1], words[2], words[3]))
    for got, expected in zip(made, answer.split(), strict=True):
        assert [f"{word:08x}" for word in got.tolist()] == [expected] * 3


def test_each_number_is_the_word_of_its_own_counter() -> None:
    """Counter: index low, index high, epoch, view and block; an operation's words follow its predecessor's."""
    index = np.array([5, 2**40 + 3])
    first, second, third = numbers(1, 6, 2, seed=11 + (7 << 32), epoch=9, index=index, view=2)
    got = np.concatenate([first.uniform, second.uniform, third.uniform])
    rare = third.more(3, np.array([1]))
    for row, number in enumerate(index.tolist()):
        low, high, epoch = (np.array([word], dtype=np.uint32) for word in (number % 2**32, number >> 32, 9))
        for word in range(9):
            block = np.array([2 << 16 | word // 4], dtype=np.uint32)
            assert got[word, row] == philox4x32(11 + (7 << 32), (low, high, epoch, block))[word % 4][0] / 2**32
    block = np.array([2 << 16 | 1 << 15 | 2 << 4 | 3], dtype=np.uint32)
    assert rare[:, 0].tolist() == [word[0] / 2**32 for word in philox4x32(11 + (7 << 32), (low, high, epoch, block))]


@pytest.mark.parametrize(
    ("operation", "code", "low", "high"),
    [
        (ColorJitter(brightness=0.4), Code.BRIGHTNESS, 0.6, 1.4),
        (ColorJitter(contrast=0.3), Code.CONTRAST, 0.7, 1.3),
        (ColorJitter(saturation=1.5), Code.SATURATION, 0.0, 2.5),
        (ColorJitter(hue=0.1), Code.HUE, -0.1, 0.1),
        (GaussianBlur(3, (0.1, 2.0)), Code.BLUR, 0.1, 2.0),
    ],
)
def test_values_are_uniform(operation: Operation, code: Code, low: float, high: float) -> None:
    (slot,) = drawn(operation).slots
    assert (slot.codes == code).all()
    assert slot.may_be == (code,)
    assert stats.kstest(slot.values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


HAPPENS: dict[str, Callable[[float], Operation]] = {
    "jitter": lambda p: ColorJitter(0.4, 0.4, 0.4, 0.1, p=p),
    "grayscale": RandomGrayscale,
    "blur": lambda p: GaussianBlur(3, p=p),
    "solarize": lambda p: RandomSolarize(0.5, p),
}


@pytest.mark.parametrize("name", HAPPENS)
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_each_operation_happens_with_its_probability(name: str, probability: float) -> None:
    slots = drawn(HAPPENS[name](probability)).slots
    happened = [slot.codes != Code.NOTHING for slot in slots]
    assert all((one == happened[0]).all() for one in happened)  # the whole jitter or nothing of it
    assert stats.binomtest(int(happened[0].sum()), COUNT, probability).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flips_happen_with_their_probability_and_twice_is_back(probability: float) -> None:
    flips = int(drawn(RandomHorizontalFlip(probability)).flip.sum())
    assert stats.binomtest(flips, COUNT, probability).pvalue > 1e-3
    assert not program([CenterCrop(2), RandomHorizontalFlip(1.0), RandomHorizontalFlip(1.0)]).flip.any()


def test_every_order_of_the_jitter_is_equally_frequent() -> None:
    slots = drawn(ColorJitter(0.4, 0.4, 0.4, 0.1)).slots
    orders = list(zip(*(slot.codes.tolist() for slot in slots), strict=True))
    counts = [orders.count(order) for order in permutations((1, 2, 3, 4))]
    assert sum(counts) == COUNT
    assert stats.chisquare(counts).pvalue > 1e-3


def test_factors_and_order_of_the_jitter_are_independent() -> None:
    slots = drawn(ColorJitter(0.4, 0.4, 0.4, 0.1)).slots
    codes, values = (np.stack([getattr(slot, name) for slot in slots]) for name in ("codes", "values"))  # [4, B]
    place = codes.argsort(axis=0)  # of brightness, contrast, saturation and hue
    table = np.concatenate([place, np.take_along_axis(values, place, axis=0)])
    correlation = np.corrcoef(table) - np.eye(8)
    correlation[:4, :4] = 0  # places exclude each other
    assert np.abs(correlation).max() < 0.03


def test_jitter_without_hue_has_three_slots_in_the_same_order() -> None:
    four, three = (drawn(ColorJitter(0.4, 0.4, 0.4, hue)).slots for hue in (0.1, 0.0))
    for row in range(50):
        order = [int(slot.codes[row]) for slot in four]
        assert [int(slot.codes[row]) for slot in three] == [code for code in order if code != Code.HUE]
    values = {code: four[place].values[row] for place, code in enumerate(order)}
    assert all(slot.values[row] == values[slot.codes[row]] for slot in three)
    assert drawn(ColorJitter()).slots == ()


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (12, 16, (0.08, 1.0), (3 / 4, 4 / 3)),
        (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
        (10, 50, (0.3, 1.0), (3 / 4, 4 / 3)),  # nothing fits: centred fallback, too wide
        (50, 10, (0.3, 1.0), (3 / 4, 4 / 3)),  # likewise, too tall
        (20, 30, (0.5, 1.0), (0.5, 1.0)),  # some fit only after many attempts, some never
        (20, 20, (0.9, 1.0), (0.1, 10.0)),  # no attempt may fit, the image's own ratio is allowed: fallback is whole
        (1, 1, (0.08, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_crops_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    ours = program([RandomResizedCrop(1, scale, ratio)], height=height, width=width)
    assert (ours.height >= 1).all()
    assert (ours.width >= 1).all()
    assert (ours.top >= 0).all()
    assert (ours.left >= 0).all()
    assert (ours.top + ours.height <= height).all()
    assert (ours.left + ours.width <= width).all()
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([TorchvisionCrop.get_params(image, list(scale), list(ratio)) for _ in range(4000)])
    boxes = np.stack([ours.top, ours.left, ours.height, ours.width], axis=1)
    weights = np.array(
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, -1], [1, 0, 1, 0], [0, 1, 0, 1]]
    )
    for projection in weights:  # of each side, and of the sides together
        assert stats.ks_2samp(boxes @ projection, theirs @ projection).pvalue > 1e-3


def test_the_tenth_attempt_at_a_box_is_the_last() -> None:
    """Squares of 100 to 200 pixels in an image of 10 x 20: those of at most 10.5 x 10.5 fit, in any of 11 places."""
    made = program([RandomResizedCrop(1, scale=(0.5, 1.0), ratio=(1.0, 1.0))], height=10, width=20)
    assert (made.height == 10).all()
    none_fits = (1 - (10.5**2 / 200 - 0.5) / 0.5) ** 10
    centred = none_fits + (1 - none_fits) / 11
    assert stats.binomtest(int((made.left == 5).sum()), COUNT, centred).pvalue > 1e-3


def test_fallback_box_equals_torchvisions() -> None:
    for height, width in ((10, 200), (200, 11), (11, 333), (333, 10)):
        ours = program([RandomResizedCrop(1, (1.0, 1.0))], index=np.arange(3), height=height, width=width)
        theirs = TorchvisionCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
        for row in range(3):
            assert (ours.top[row], ours.left[row], ours.height[row], ours.width[row]) == theirs


@pytest.mark.parametrize("change", [{"seed": 1}, {"seed": 2**32}, {"epoch": 1}, {"view": 1}])
def test_another_seed_epoch_or_view_draws_other_numbers(change: dict[str, int]) -> None:
    before, after = program(), program(**change)
    assert abs(stats.pearsonr(before.top, after.top).statistic) < 0.03
    assert abs(stats.pearsonr(before.slots[0].values, after.slots[0].values).statistic) < 0.03


def test_neighbouring_images_and_far_apart_ones_draw_other_numbers() -> None:
    (first,) = numbers(1)
    assert abs(stats.pearsonr(first.uniform[0, :-1], first.uniform[0, 1:]).statistic) < 0.03
    (far,) = numbers(1, index=np.arange(COUNT) + 2**32)  # same low word
    assert abs(stats.pearsonr(first.uniform[0], far.uniform[0]).statistic) < 0.03


def test_numbers_of_an_image_are_independent_of_each_other() -> None:
    uniform = np.concatenate([random.uniform for random in numbers(6, 1, 6, 1, 2, 1)])
    assert len(uniform) == 17
    assert np.abs(np.corrcoef(uniform) - np.eye(17)).max() < 0.03


def columns(one: Program) -> dict[str, npt.NDArray[np.float64]]:
    names = ("top", "left", "height", "width", "grid_height", "grid_width", "window_top", "window_left", "flip")
    table = {name: getattr(one, name) for name in names}
    for place, slot in enumerate(one.slots):
        table |= {f"code {place}": slot.codes, f"value {place}": slot.values}
    return table


def test_numbers_of_an_image_do_not_depend_on_the_batch() -> None:
    index = np.array([9, 3, 2**40 + 5, 0, 17])
    view = [RandomResizedCrop(8, scale=(0.9, 1.0), ratio=(0.5, 2.0)), *VIEW[1:]]  # most need several attempts
    together = columns(program(view, index=index))
    for row, number in enumerate(index):
        alone = columns(program(view, index=np.array([number])))
        for name, column in together.items():
            assert alone[name][0] == column[row], name


def test_switching_one_operation_off_leaves_the_others_as_they_were() -> None:
    jitter = ColorJitter(brightness=0.4, contrast=0.3, saturation=1.5, hue=0.1, p=0.0)
    before, after = program(), program([*VIEW[:2], jitter, VIEW[3], GaussianBlur(3, p=0.0), VIEW[5]])
    first, second = columns(before), columns(after)
    off = {f"code {place}" for place in (0, 1, 2, 3, 5)}
    for name in first.keys() - off:
        assert np.array_equal(first[name], second[name]), name
    assert all((second[name] == Code.NOTHING).all() for name in off)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 40), (100, 37), (375, 500), (5, 3)])
def test_resize_and_center_crop_look_where_torchvisions_do(height: int, width: int) -> None:
    made = program([Resize(9), CenterCrop(8)], index=np.arange(2), height=height, width=width)
    resized = tv.resize(torch.empty(3, height, width), [9])
    assert (made.grid_height[0], made.grid_width[0]) == resized.shape[1:]
    place = torch.arange(resized[0].numel(), dtype=torch.float32).view(1, *resized.shape[1:])
    first = int(tv.center_crop(place, [8, 8])[0, 0, 0])
    assert made.window_top[0] * resized.shape[2] + made.window_left[0] == first
    assert made.size == (8, 8)


def test_crops_of_a_mirrored_image_are_mirrored_crops() -> None:
    """Left of a flipped image is right of the image, wherever the flip stands."""
    after = program([RandomHorizontalFlip(1.0), CenterCrop(3)], index=np.arange(1), height=4, width=6)
    image = torch.arange(24.0).view(1, 4, 6)
    expected = tv.center_crop(tv.horizontal_flip(image), [3, 3])[0]
    window = image[0, after.window_top[0] :, after.window_left[0] :][:3, :3]
    assert after.flip.all()
    assert torch.equal(window.flip(1), expected)


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: RandomHorizontalFlip(1.5), r"p=1.5 is not in \[0, 1\]. It is a probability: 0 never, 1 always."),
    (lambda: GaussianBlur(3, p=-0.1), r"p=-0.1 is not in \[0, 1\]"),
    (lambda: RandomSolarize(p=float("nan")), r"p=nan is not in \[0, 1\]"),
    (lambda: RandomGrayscale(2.0), r"p=2.0 is not in \[0, 1\]"),
    (lambda: ColorJitter(hue=0.6), r"hue=0.6 is not in \[0, 0.5\]. It is in full circles"),
    (lambda: ColorJitter(contrast=-1.0), r"contrast=-1.0 is not in \[0, inf\]. It is how far a factor strays from 1"),
    (lambda: ColorJitter(p=7), r"p=7 is not in \[0, 1\]"),
    (lambda: RandomSolarize(128.0), r"threshold=128.0 is not in .* divide a threshold for uint8 by 255"),
    (
        lambda: RandomResizedCrop(8, scale=(0.0, 1.0)),
        r"scale=\(0.0, 1.0\) is no range 0 < low <= high <= 1. It is the crop's share",
    ),
    (lambda: RandomResizedCrop(8, scale=(0.5, 0.2)), r"scale=\(0.5, 0.2\) is no range"),
    (
        lambda: RandomResizedCrop(8, ratio=(-1.0, 1.0)),
        r"ratio=\(-1.0, 1.0\) is no range 0 < low <= high <= inf. It is the crop's width / height",
    ),
    (lambda: GaussianBlur(3, (0.0, 2.0)), r"sigma=\(0.0, 2.0\) is no range .* leave GaussianBlur out, or set p=0."),
    (lambda: GaussianBlur(4), "A blur kernel of 4 pixels has no middle. Choose an odd kernel_size."),
    (lambda: RandomResizedCrop(0), "size is the side of a view in pixels, so at least 1, but it is 0."),
    (lambda: Resize(-3), "size is the side of a view in pixels, so at least 1, but it is -3."),
    (lambda: CenterCrop(0), "size is the side of a view in pixels, so at least 1, but it is 0."),
    (lambda: Resize(8, "nearest"), 'interpolation="nearest" is not known. Choose "bilinear" or "bicubic".'),
]


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(("make", "message"), WRONG)
def test_impossible_operation_says_what_to_do(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("operation", "channels", "message"),
    [
        (
            ColorJitter(hue=0.1),
            1,
            r"ColorJitter\(.*hue=0.1.*\) changes saturation and hue of images with 3 channels, but",
        ),
        (
            ColorJitter(brightness=0.4),
            5,
            r"ColorJitter\(.*\) changes colours of images with 3 channels, but these have 5",
        ),
        (
            RandomGrayscale(),
            1,
            r"RandomGrayscale\(p=0.1\) changes the colours of images with 3 channels, but these have 1",
        ),
        (
            RandomSolarize(),
            4,
            r"RandomSolarize.* but these have 4. Leave it out of the view; images of 4 channels take",
        ),
        (IMAGENET, 1, r"Normalize\(.*\) is for 3 channels, but these images have 1. Give Normalize the statistics"),
        (Normalize((0.5,), (0.2,)), 3, "is for 1 channels, but these images have 3"),
    ],
)
def test_operation_that_cannot_take_so_many_channels_says_so(operation: Operation, channels: int, message: str) -> None:
    images = torch.zeros(2, channels, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        Views([[CenterCrop(8), operation]])(images, SampleKey(0, 0, torch.arange(2)))


def test_simclr_asks_for_as_many_numbers_as_it_did() -> None:
    """A change here changes every run's augmentations: what resumes must not meet another version unawares."""
    words = [operation.num_words for operation in simclr_views(32).views[0]]
    assert words == [6, 1, 6, 1, 2, 0]
