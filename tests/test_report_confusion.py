"""Pictures of what is taken for what, read back from what was drawn."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image
from scipy.stats import binomtest

from contrastive.report import confusion as pictures
from contrastive.report.confusion import drawable, save_confusion, save_per_class, shortened, wilson


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn while a test runs."""
    figures: list[Figure] = []
    blank_figure = pictures.blank_figure

    def remembered(width: float, height: float) -> Figure:
        figures.append(blank_figure(width, height))
        return figures[-1]

    monkeypatch.setattr(pictures, "blank_figure", remembered)
    return figures


def matrix(num_classes: int, *, seed: int = 0, absent: tuple[int, ...] = ()) -> torch.Tensor:
    counts = torch.randint(0, 6, (num_classes, num_classes), generator=torch.Generator().manual_seed(seed))
    counts += 20 * torch.eye(num_classes, dtype=torch.int64)
    counts[list(absent)] = 0
    return counts


def names(num_classes: int) -> list[str]:
    return [f"class name {number}" for number in range(num_classes)]


def ticks(axes: Axes, axis: str) -> list[str]:
    return [label.get_text() for label in (axes.get_xticklabels() if axis == "x" else axes.get_yticklabels())]


def texts(figure: Figure) -> list[Text]:
    """What is written in the figure; an axis keeps labels of ticks beyond its ends, which are not drawn."""
    beyond = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            beyond |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    found = [one for one in figure.findobj(Text) if isinstance(one, Text) and one not in beyond]
    return [one for one in found if one.get_visible() and one.get_text().strip()]


def title(figure: Figure) -> str:
    return figure.get_suptitle()


# ------------------------------------------------------------------------------------------------ the confusion matrix


@pytest.mark.parametrize(("num_classes", "digits"), [(2, 1), (10, 1), (11, 0), (20, 0)])
def test_few_classes_have_their_share_of_the_row_in_each_cell(
    num_classes: int, digits: int, tmp_path: Path, drawn: list[Figure]
) -> None:
    counts = matrix(num_classes)
    save_confusion(counts, names(num_classes), tmp_path / "x.png", title="Title")
    axes = drawn[0].axes[0]
    written = {tuple(map(round, text.get_position())): text.get_text() for text in axes.texts}
    expected = {}
    for true in range(num_classes):
        total = sum(int(counts[true, other]) for other in range(num_classes))
        for taken in range(num_classes):
            if counts[true, taken]:
                expected[(taken, true)] = f"{100 * int(counts[true, taken]) / total:.{digits}f}"  # (x, y)
    assert written == expected
    assert ticks(axes, "x") == ticks(axes, "y") == names(num_classes)
    assert axes.get_xlabel() == "taken for"
    assert axes.get_ylabel() == "class"


def test_the_title_counts_the_images_and_those_on_the_diagonal(tmp_path: Path, drawn: list[Figure]) -> None:
    counts = torch.tensor([[900, 100], [50, 1950]])
    save_confusion(counts, ["a", "b"], tmp_path / "x.png", title="tiny on shapes, coin, seed 0")
    assert title(drawn[0]) == "tiny on shapes, coin, seed 0\ntop-1 95.00 % of 3,000 test images"


@pytest.mark.parametrize("num_classes", [21, 50, 51, 1000])
def test_many_classes_are_colours_alone_of_two_pixels_at_least(
    num_classes: int, tmp_path: Path, drawn: list[Figure]
) -> None:
    counts = matrix(num_classes)
    save_confusion(counts, names(num_classes), tmp_path / "x.png", title="Title")
    axes = drawn[0].axes[0]
    assert not axes.texts
    if num_classes <= 50:
        assert ticks(axes, "y") == names(num_classes)
    else:
        assert not any("name" in label for label in ticks(axes, "y"))
    (image,) = axes.images
    shown = np.asarray(image.get_array())
    for true in (0, num_classes // 2, num_classes - 1):
        np.testing.assert_allclose(shown[true], counts[true] / counts[true].sum(), rtol=1e-6)
    box = axes.get_window_extent()
    assert min(box.width, box.height) >= 2 * num_classes
    with Image.open(tmp_path / "x.png") as picture:
        assert max(picture.size) < 3000


def test_a_class_that_all_take_for_another_is_seen_in_the_picture(tmp_path: Path) -> None:
    """One cell of a million is dark, at its place: row 700 and column 300."""
    counts = torch.zeros(1000, 1000, dtype=torch.int64)
    counts.fill_diagonal_(10)
    without, with_one = tmp_path / "without.png", tmp_path / "with.png"
    save_confusion(counts, names(1000), without, title="Title")
    counts[700, 700], counts[700, 300] = 9, 1
    save_confusion(counts, names(1000), with_one, title="Title")
    with Image.open(without) as before, Image.open(with_one) as after:
        difference = np.abs(np.asarray(before.convert("L"), int) - np.asarray(after.convert("L"), int))
    rows, columns = np.nonzero(difference[200:] > 40)  # beneath the title, which differs too
    assert len(rows) >= 2
    assert np.ptp(rows) < 6
    assert np.ptp(columns) < 6


def test_a_class_without_test_images_is_a_grey_row_and_said_to_be(tmp_path: Path, drawn: list[Figure]) -> None:
    counts = matrix(5, absent=(2,))
    save_confusion(counts, names(5), tmp_path / "x.png", title="Title")
    axes = drawn[0].axes[0]
    assert axes.get_ylabel() == "class; grey: no test image"
    assert not [text for text in axes.texts if round(text.get_position()[1]) == 2]
    box = axes.get_window_extent()
    with Image.open(tmp_path / "x.png") as picture:
        x, y = round(box.x0 + box.width / 2), round(picture.height - (box.y0 + box.height / 2))
        assert picture.convert("RGB").getpixel((x, y)) == (204, 204, 204)


def test_no_test_image_at_all_is_said(tmp_path: Path, drawn: list[Figure]) -> None:
    save_confusion(torch.zeros(3, 3, dtype=torch.int64), names(3), tmp_path / "x.png", title="Title")
    save_per_class([0] * 3, [0] * 3, names(3), tmp_path / "y.png", title="Title")
    assert title(drawn[0]).endswith("no test image")
    assert "3 classes have no test image" in title(drawn[1])


# ------------------------------------------------------------------------------------------------------------ the bars


@pytest.mark.parametrize(("num_correct", "num_test"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 10), (931, 1000)])
def test_intervals_are_wilsons(num_correct: int, num_test: int) -> None:
    expected = binomtest(num_correct, num_test).proportion_ci(0.95, method="wilson")
    assert wilson(num_correct, num_test) == pytest.approx((expected.low, expected.high), abs=1e-9)


def bars(axes: Axes) -> list[tuple[float, float]]:
    """Height of the middle and length of each bar, from the top."""
    patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return sorted((patch.get_y() + patch.get_height() / 2, patch.get_width()) for patch in patches)


def test_bars_are_sorted_with_their_intervals_and_the_mean_of_the_classes(tmp_path: Path, drawn: list[Figure]) -> None:
    num_correct, num_test = [10, 45, 0, 90, 30], [20, 50, 0, 100, 100]
    save_per_class(num_correct, num_test, ["a", "b", "absent", "d", "e"], tmp_path / "x.png", title="Title")
    axes = drawn[0].axes[0]
    assert ticks(axes, "y") == ["b", "d", "a", "e"]  # b and d are equal: in the order of the classes
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    assert [length for _, length in bars(axes)] == pytest.approx([90, 90, 50, 30])
    (lines,) = [one for one in axes.collections if isinstance(one, LineCollection)]
    for (ends, place), (hits, n) in zip(
        [(segment[:, 0], segment[0, 1]) for segment in lines.get_segments()],
        [(45, 50), (90, 100), (10, 20), (30, 100)],
        strict=True,
    ):
        interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert ends == pytest.approx([100 * interval.low, 100 * interval.high])
        assert place in range(4)
    (mean,) = axes.get_lines()
    expected = 100 * (10 / 20 + 45 / 50 + 90 / 100 + 30 / 100) / 4
    assert mean.get_xdata() == pytest.approx([expected, expected])
    assert "mean of the classes, 65.00 %" in [text.get_text() for text in texts(drawn[0])]
    said = ["Title", "accuracy of each class, with 95 % intervals (Wilson)", "1 class has no test image"]
    assert title(drawn[0]).splitlines() == said
    (beside,) = axes.child_axes
    assert ticks(beside, "y") == ["90.0 % of 50", "90.0 % of 100", "50.0 % of 20", "30.0 % of 100"]


@pytest.mark.parametrize("num_classes", [50, 51, 1000])
def test_of_many_classes_the_best_and_the_worst_are_shown(
    num_classes: int, tmp_path: Path, drawn: list[Figure]
) -> None:
    num_test = [1000] * num_classes
    num_correct = np.random.default_rng(0).permutation(num_classes).tolist()  # all different
    save_per_class(num_correct, num_test, names(num_classes), tmp_path / "x.png", title="Title")
    axes = drawn[0].axes[0]
    ranked = [f"class name {number}" for number in np.argsort(num_correct)[::-1]]
    many = num_classes > 50
    assert ticks(axes, "y") == (ranked[:25] + ranked[-25:] if many else ranked)
    assert [text.get_text() for text in axes.texts] == (["…"] if many else [])
    assert (f"the 25 best and the 25 worst of {num_classes:,} classes" in title(drawn[0])) == many
    (mean,) = axes.get_lines()
    assert np.asarray(mean.get_xdata()) == pytest.approx(100 * sum(num_correct) / 1000 / num_classes)
    assert len(bars(axes)) == 50


# ----------------------------------------------------------------------------------------------------------- the words

AWKWARD = [
    "[red]alarm[/red]",
    "a|b",
    "$x^2$ and $y",
    "naïve café",
    "日本語",
    "😀",
    "",
    "line\nbreak",
    "x" * 80,
    "_%&#\\",
]


def test_names_are_drawn_as_they_are_or_as_numbers(tmp_path: Path, drawn: list[Figure]) -> None:
    counts = matrix(len(AWKWARD))
    save_confusion(counts, AWKWARD, tmp_path / "x.png", title=f"{AWKWARD[2]} on {AWKWARD[4]}")
    save_per_class([1] * 10, [2] * 10, AWKWARD, tmp_path / "y.png", title="Title")
    expected = [*AWKWARD[:4], "class 4", AWKWARD[5], "class 6", "line break", "x" * 14 + "…" + "x" * 13, "_%&#\\"]
    for figure in drawn:
        axes = figure.axes[0]
        assert ticks(axes, "y") == expected
        assert not any(label.get_parse_math() for label in axes.get_yticklabels())
    assert title(drawn[0]).startswith("$x^2$ and $y on ???\ntop-1")


@pytest.mark.parametrize("num_classes", [2, 10, 20, 21, 50, 51, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("longest", [4, 80])
def test_nothing_that_is_written_is_cut_off_or_covers_another(
    num_classes: int, longest: int, tmp_path: Path, drawn: list[Figure]
) -> None:
    classes = [f"{number} ".ljust(longest, "w") for number in range(num_classes)]
    long = "an_encoder_of_a_long_name, 1000 epochs on a data set, few-label-1-percent, seed 0"
    counts = matrix(num_classes, absent=(1,))
    save_confusion(counts, classes, tmp_path / "x.png", title=long)
    save_per_class(counts.diagonal().tolist(), counts.sum(1).tolist(), classes, tmp_path / "y.png", title=long)
    for figure in drawn:
        width, height = figure.canvas.get_width_height()
        written = texts(figure)
        for text in written:
            box = text.get_window_extent()
            assert box.x0 > -1, text
            assert box.y0 > -1, text
            assert box.x1 < width + 1, text
            assert box.y1 < height + 1, text
        for axes in figure.axes:
            for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
                boxes = [label.get_window_extent() for label in labels if label in written]
                assert not any(one.overlaps(other) for one, other in pairwise(boxes))
        heading = next(text for text in written if text.get_text().startswith("an_encoder")).get_window_extent()
        assert not any(heading.overlaps(axes.get_tightbbox()) for axes in figure.axes)


def test_a_long_name_loses_its_middle() -> None:
    assert shortened("abcdefghij", 10) == "abcdefghij"
    for longest in range(3, 12):
        short = shortened("abcdefghijkl", longest)
        head, tail = short.split("…")
        assert len(short) == longest
        assert "abcdefghijkl".startswith(head)
        assert "abcdefghijkl".endswith(tail)
        assert tail
        assert abs(len(head) - len(tail)) <= 1
    assert drawable("a" * 100, 3) == shortened("a" * 100)


def test_a_picture_takes_the_place_of_an_earlier_one_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "x.png"
    save_confusion(matrix(2), names(2), file, title="Title")
    save_confusion(matrix(3), names(3), file, title="Title")
    assert [one.name for one in file.parent.iterdir()] == ["x.png"]
    with Image.open(file) as picture:
        assert picture.format == "PNG"


def test_shares_of_an_empty_row_are_no_numbers() -> None:
    shares = pictures.row_shares(np.array([[1, 3], [0, 0]]))
    assert shares[0].tolist() == [0.25, 0.75]
    assert all(map(math.isnan, shares[1]))
