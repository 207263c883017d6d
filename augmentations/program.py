"""What one view does to each image of a batch, in numbers: what operations draw, and all that backends see.

A view is a window of a resized box of the image, mirrored or not, and then a number of slots, in each of which an image
has at most one pixel operation with one number. Every backend turns the same program into the same view.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from contrastive.augmentations.images import RaggedImages

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


class Code(IntEnum):
    """A pixel operation, and in brackets what its number means."""

    NOTHING = 0
    BRIGHTNESS = 1  # factor
    CONTRAST = 2  # factor
    SATURATION = 3  # factor
    HUE = 4  # shift in full circles
    GRAYSCALE = 5  # none
    BLUR = 6  # sigma in pixels
    SOLARIZE = 7  # threshold


@dataclass(frozen=True)
class Slot:
    """One place in the order of the pixel operations.

    Attributes:
        codes: Which ``Code`` each image has here, int64 [B]; ``NOTHING`` for images that did not draw it.
        values: Its number, float32 [B].
        may_be: The codes that can stand here, whatever is drawn; what a compiler may rely on.
        radius: Half the size of the kernel where a blur stands here: kernel_size // 2.
    """

    codes: Integers
    values: Floats
    may_be: tuple[Code, ...]
    radius: int = 0


@dataclass(frozen=True)
class Program:
    """What one view does to each of B images; arrays int64 [B] in pixels.

    The box (top, left, height, width) of the image is resized to (grid_height, grid_width), bilinear or bicubic with
    antialiasing. The view is the window of ``size`` pixels of that grid at (window_top, window_left), mirrored left and
    right where ``flip`` is set. A box that keeps its size is copied exactly.
    """

    size: tuple[int, int]  # height and width of the view
    bicubic: bool  # values beyond [0, 1] are then clamped; else bilinear
    top: Integers
    left: Integers
    height: Integers
    width: Integers
    grid_height: Integers
    grid_width: Integers
    window_top: Integers
    window_left: Integers
    flip: Booleans
    slots: tuple[Slot, ...]


# Columns of a packed program. An image's offset is an int64 in the first two; values are float32 bits.
OFFSET, IMAGE_HEIGHT, IMAGE_WIDTH, TOP, LEFT, HEIGHT, WIDTH = 0, 2, 3, 4, 5, 6, 7
GRID_HEIGHT, GRID_WIDTH, WINDOW_TOP, WINDOW_LEFT, FLIP, SLOTS = 8, 9, 10, 11, 12, 13


def pack(images: RaggedImages, program: Program) -> npt.NDArray[np.int32]:
    """A program and where its images lie as one table, so that one copy takes it to a device.

    Returns:
        int32 [B, 13 + 2 S], C-contiguous: the named columns, the codes of the S slots, their values as float32 bits.
    """
    number = len(program.slots)
    table = np.empty((len(images), SLOTS + 2 * number), dtype=np.int32)
    table[:, OFFSET : OFFSET + 2] = images.offsets.astype("<i8")[:, None].view("<i4")
    table[:, IMAGE_HEIGHT] = images.heights
    table[:, IMAGE_WIDTH] = images.widths
    table[:, TOP] = program.top
    table[:, LEFT] = program.left
    table[:, HEIGHT] = program.height
    table[:, WIDTH] = program.width
    table[:, GRID_HEIGHT] = program.grid_height
    table[:, GRID_WIDTH] = program.grid_width
    table[:, WINDOW_TOP] = program.window_top
    table[:, WINDOW_LEFT] = program.window_left
    table[:, FLIP] = program.flip
    for column, slot in enumerate(program.slots, start=SLOTS):
        table[:, column] = slot.codes
        table[:, column + number] = slot.values.astype(np.float32).view(np.int32)
    return table
