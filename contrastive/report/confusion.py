"""Pictures of what a classifier takes for what: the confusion matrix, and the accuracy of each class."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from contrastive.report.pictures import COLOURS, DOTS_PER_INCH, blank_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_VALUES, MOST_NAMES = 20, 50  # classes up to which cells have numbers, and rows have names
BEST_AND_WORST = 25  # classes of each that the bars show, where there are more than MOST_NAMES
LONGEST_NAME = 28  # characters
LETTER = 0.07  # inches of a class's name at the matrix's size
NORMAL_975 = 1.959963984540054  # the normal distribution's quantile at 97.5 %
ABSENT = "0.8"  # grey
FAINT = 0.35  # the colour of a share is that of its power: a hundredth is as dark as a fifth would be


def save_confusion(confusion: Int64[Tensor, "C C"], classes: Sequence[str], file: Path, *, title: str) -> None:
    """Draw a confusion matrix, each row the share of a true class's images that were taken for each class.

    Up to 20 classes the cells have numbers, up to 50 the classes have names. Beyond 20, colours follow a power of the
    share, so that a hundredth is still seen. Classes without test images are grey rows.

    Args:
        confusion: Test images of class i that were taken for class j.
        classes: Their names.
        file: The PNG file to write.
        title: Above the picture; top-1 accuracy and the number of images are added.
    """
    from matplotlib.colors import PowerNorm

    counts = confusion.cpu().numpy()
    shares = row_shares(counts)
    num_classes = len(counts)
    side = _side(num_classes)
    names = [drawable(name, number) for number, name in enumerate(classes)] if num_classes <= MOST_NAMES else []
    room = LETTER * max(map(len, names), default=8)
    width = 1.08 * side + room + 1.4  # the colours and their percentages are beside
    figure = blank_figure(width, side + room + 1.0)
    axes = figure.subplots()
    axes.set_facecolor(ABSENT)
    few = num_classes <= MOST_VALUES
    picture = axes.imshow(
        shares, cmap="Blues", norm=PowerNorm(1.0 if few else FAINT, 0, 1), interpolation="nearest", aspect="equal"
    )
    bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.02)
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1] if not few else [0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels([f"{100 * tick:g} %" for tick in bar.get_ticks()], fontsize=8)
    _name_axes(axes, names, absent=not counts.sum(1).all())
    if few:
        digits = 1 if num_classes <= MOST_VALUES // 2 else 0
        for (row, column), share in np.ndenumerate(shares):
            if share > 0:
                colour = "white" if share > 0.55 else "black"
                text = f"{100 * share:.{digits}f}"
                cell = axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
                cell.set_in_layout(False)  # it lies within; asking for its size takes as long as all the rest
    images = int(counts.sum())
    reached = f"top-1 {100 * np.trace(counts) / images:.2f} % of {images:,} test images" if images else "no test image"
    figure.suptitle(_titled(title, reached, width), fontsize=10, parse_math=False)
    _save(figure, file)


def save_per_class(
    num_correct: Sequence[int], num_test: Sequence[int], classes: Sequence[str], file: Path, *, title: str
) -> None:
    """Draw each class's accuracy as a bar, the best on top, with its 95 % interval (Wilson) and the classes' mean.

    With more than 50 classes the 25 best and the 25 worst. Classes without test images are left out.

    Args:
        num_correct: Test images of each class that were classified rightly.
        num_test: Test images of each class.
        classes: Their names.
        file: The PNG file to write.
        title: Above the picture.
    """
    known = [number for number, n in enumerate(num_test) if n]
    accuracy = {number: num_correct[number] / num_test[number] for number in known}
    ranked = sorted(known, key=lambda number: -accuracy[number])  # of equal ones the first class comes first
    shown: list[int | None] = list(ranked)
    notes = ["accuracy of each class, with 95 % intervals (Wilson)"]
    if len(ranked) > MOST_NAMES:
        shown = [*ranked[:BEST_AND_WORST], None, *ranked[-BEST_AND_WORST:]]
        notes.append(f"the {BEST_AND_WORST} best and the {BEST_AND_WORST} worst of {len(ranked):,} classes")
    if len(known) < len(num_test):
        absent = len(num_test) - len(known)
        notes.append(f"{absent:,} class{' has' if absent == 1 else 'es have'} no test image")

    width = 7.5
    figure = blank_figure(width, 0.19 * len(shown) + 1.4 + 0.15 * len(notes))
    axes = figure.subplots()
    places = [place for place, number in enumerate(shown) if number is not None]
    numbers = [number for number in shown if number is not None]
    axes.barh(places, [100 * accuracy[number] for number in numbers], color=COLOURS[0], alpha=0.75, height=0.75)
    intervals = [wilson(num_correct[number], num_test[number]) for number in numbers]
    low, high = ([100 * interval[end] for interval in intervals] for end in (0, 1))
    axes.hlines(places, low, high, color="black", linewidth=1)
    if len(numbers) < len(shown):
        axes.text(50, BEST_AND_WORST, "…", ha="center", va="center")
    if known:
        mean = 100 * sum(accuracy.values()) / len(accuracy)
        axes.axvline(mean, color=COLOURS[1], linewidth=1.2, label=f"mean of the classes, {mean:.2f} %")
        figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    names = [drawable(classes[number], number) for number in numbers]
    axes.set_yticks(places, names, fontsize=8, parse_math=False)
    beside = axes.secondary_yaxis("right")
    reached = [f"{100 * accuracy[number]:.1f} % of {num_test[number]:,}" for number in numbers]
    beside.set_yticks(places, reached, fontsize=7)
    beside.tick_params(length=0)
    beside.spines[:].set_visible(False)
    axes.set(xlim=(0, 100), ylim=(len(shown) - 0.4, -0.6))
    axes.set_xlabel("accuracy (%)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_titled(title, "\n".join(notes), width), fontsize=10, parse_math=False)
    _save(figure, file)


def row_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row divided by its sum; a row of zeros becomes one of no numbers."""
    totals = counts.sum(1, keepdims=True).astype(float)
    totals[totals == 0] = math.nan
    shares: NDArray[np.float64] = counts / totals
    return shares


def wilson(num_correct: int, num_test: int) -> tuple[float, float]:
    """The 95 % interval of a share: of Wilson's score.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference". Unlike the normal
    approximation's, it stays within 0 and 1, and is no point where all or none are right.
    """
    share, z2 = num_correct / num_test, NORMAL_975**2
    centre = share + z2 / (2 * num_test)
    half = NORMAL_975 * math.sqrt(share * (1 - share) / num_test + z2 / (4 * num_test**2))
    scale = 1 + z2 / num_test
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def shortened(text: str, longest: int = LONGEST_NAME) -> str:
    """A text on one line without its middle, which tells names apart least."""
    text = " ".join(text.split())
    if len(text) <= longest:
        return text
    head = longest // 2
    return f"{text[:head]}…{text[head + 1 - longest :]}"


def drawable(name: str, number: int) -> str:
    """A class's name as the font can draw it, short; its number where the font lacks one of its characters."""
    short = shortened(name)
    return short if short and all(ord(letter) in _glyphs() for letter in short) else f"class {number}"


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _side(num_classes: int) -> float:
    """Of the matrix, in inches: a cell is never less than two pixels."""
    if num_classes <= MOST_VALUES:
        return max(2.5, 0.36 * num_classes)
    if num_classes <= MOST_NAMES:
        return 0.18 * num_classes
    return max(2, math.ceil(900 / num_classes)) * num_classes / DOTS_PER_INCH + 0.3


def _name_axes(axes: "Axes", names: Sequence[str], *, absent: bool) -> None:
    by_number = "" if names else ", by number"
    axes.set_xlabel(f"taken for{by_number}", fontsize=9)
    axes.set_ylabel(f"class{by_number}{'; grey: no test image' if absent else ''}", fontsize=9)
    axes.tick_params(labelsize=8)
    if names:
        axes.set_xticks(range(len(names)), names, fontsize=7, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)


def _titled(title: str, below: str, width: float) -> str:
    """As many lines as it takes, of a length that fits a figure of this width in inches."""
    safe = "".join(letter if ord(letter) in _glyphs() else "?" for letter in " ".join(title.split()))
    return "\n".join([*wrap(safe, int(13 * width), break_on_hyphens=False), below])


def _save(figure: "Figure", file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.part")
    figure.savefig(unfinished, format="png")
    unfinished.replace(file)
