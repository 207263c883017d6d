"""A contact sheet: images beside their views, and beside each view what was drawn for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64
from torch import Tensor

from contrastive.augmentations import MakeViews, RaggedImages, SampleKey, Views
from contrastive.augmentations.program import Code, Program
from contrastive.data.decode import NotAnImageError, decode_image
from contrastive.data.files import list_images
from contrastive.data.module import ImageData
from contrastive.data.samplers import TrainSampler
from contrastive.module import Images
from contrastive.report.pictures import COLOURS, blank_figure, displayable, first_images, plain_images, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_SIDE, TEXT_WIDTH = 1.9, 1.3  # inches
LONGEST_NAME = 30  # characters

WORDS = {  # what is written of an operation and its number
    Code.BRIGHTNESS: "brightness x {:.2f}",
    Code.CONTRAST: "contrast x {:.2f}",
    Code.SATURATION: "saturation x {:.2f}",
    Code.HUE: "hue {:+.3f}",
    Code.GRAYSCALE: "grayscale",
    Code.BLUR: "blur, sigma {:.2f}",
    Code.SOLARIZE: "solarized from {:.2f}",
}


@dataclass(frozen=True)
class Originals:
    """Images to make views of.

    Attributes:
        images: RGB.
        index: Their numbers in their data set, int64 [B].
        names: What is written beneath each.
    """

    images: Images
    index: Int64[Tensor, " B"]
    names: list[str]


def first_originals(data: ImageData, num_images: int) -> Originals:
    """The first images of a training, or as many as a batch of it has."""
    batch = next(iter(data.train_dataloader()))
    images, index = first_images(batch["image"], batch["index"], num_images)
    files = getattr(data, "train_files", None)
    return Originals(
        images, index, [f"image {number}" if files is None else files[number] for number in index.tolist()]
    )


def originals_in(folder: Path, num_images: int, seed: int) -> Originals:
    """The first images that a training with this seed takes from a folder, or as many as it holds.

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: It is a file.
        ValueError: It holds no images, or one of those chosen is broken.
    """
    tree = list_images(folder, labelled=False)
    chosen = list(islice(TrainSampler(len(tree.files), 1, seed=seed), num_images))
    names = [tree.files[number] for number in chosen]
    images = []
    for name in names:
        try:
            images.append(decode_image(tree.root / name))
        except NotAnImageError as error:
            raise ValueError(f"{tree.root / name} is no usable image: {error}. Remove or repair it.") from error
    return Originals(RaggedImages.pack(images), torch.tensor(chosen), names)


def save_contact_sheet(originals: Originals, make_views: MakeViews, file: Path, seed: int, *, title: str) -> None:
    """Draw each image with the boxes its views are cut from, its views, and beside each view what was drawn for it.

    The views are those of the first epoch of a run with this seed. What a pipeline that is no ``Views`` draws is not
    known, and its views are shown without.

    Args:
        originals: What to make views of.
        make_views: A recipe's pipeline.
        file: The PNG file to write.
        seed: The run's seed.
        title: Above the picture.
    """
    images, key = originals.images, SampleKey(seed, 0, originals.index)
    views = [displayable(view, make_views) for view in make_views(images, key)]
    drawn = make_views.programs(images, key) if isinstance(make_views, Views) else [[] for _ in views]
    figure = blank_figure(PICTURE_SIDE + len(views) * (PICTURE_SIDE + TEXT_WIDTH), PICTURE_SIDE * len(images) + 0.6)
    widths = [PICTURE_SIDE, *[PICTURE_SIDE, TEXT_WIDTH] * len(views)]
    cells = figure.subplots(len(images), len(widths), squeeze=False, width_ratios=widths)
    for row, (line, name, image) in enumerate(zip(cells, originals.names, plain_images(images), strict=True)):
        show(line[0], image)
        line[0].set_xlabel(f"{_shortened(name)}\n{image.shape[0]} x {image.shape[1]}", fontsize=7)
        for number, (pictures, programs) in enumerate(zip(views, drawn, strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            place, beside = line[1 + 2 * number : 3 + 2 * number]
            show(place, pictures[row])
            place.spines[:].set(color=colour, linewidth=1.5)
            beside.set_axis_off()
            beside.text(0, 1, "\n".join(description(programs, row)), va="top", fontsize=7, transform=beside.transAxes)
            if programs:
                _outline(line[0], region(programs[0], row), colour)
    for number, colour in zip(range(len(views)), COLOURS * len(views), strict=False):
        cells[0][1 + 2 * number].set_title(f"view {number + 1}", color=colour, fontsize=9)
    figure.suptitle(title, fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png")


def description(programs: Sequence[Program], row: int) -> list[str]:
    """What was drawn for one image's view, in the order in which it is done, a line each.

    Args:
        programs: Of the view, as ``Views.programs`` gives them.
        row: The image's place in its batch.
    """
    lines = []
    for number, program in enumerate(programs):
        if number:
            lines.append("then, after other operations,")
        top, left, height, width = (f"{round(length)}" for length in region(program, row))
        lines += [f"crop {height} x {width}", f"  at top {top}, left {left}"]
        if program.flip[row]:
            lines.append("flipped")
        for slot in program.slots:
            if slot.codes[row] != Code.NOTHING:
                lines.append(WORDS[Code(slot.codes[row])].format(slot.values[row]))
    return lines


def region(program: Program, row: int) -> tuple[float, float, float, float]:
    """What a view shows of its image: top, left, height and width, in pixels of the image."""
    vertical = program.height[row] / program.grid_height[row]
    horizontal = program.width[row] / program.grid_width[row]
    return (
        float(program.top[row] + program.window_top[row] * vertical),
        float(program.left[row] + program.window_left[row] * horizontal),
        float(program.size[0] * vertical),
        float(program.size[1] * horizontal),
    )


def _outline(axes: "Axes", box: tuple[float, float, float, float], colour: str) -> None:
    from matplotlib.patches import Rectangle

    top, left, height, width = box
    corner = (left - 0.5, top - 0.5)  # matplotlib's pixel centres are whole numbers
    for edge, thickness in (("white", 2.6), (colour, 1.4)):  # seen on any picture
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=edge, linewidth=thickness))


def _shortened(name: str) -> str:
    """The end of a name, which tells files apart."""
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]
