"""The frame through which a view looks at each image, while geometric operations move it."""

from typing import Literal

import numpy as np

from contrastive.augmentations.program import Booleans, Integers

Interpolation = Literal["bilinear", "bicubic"]


class Frame:
    """A window of a resized box of each of B images, at first the whole image; arrays int64 [B], in pixels.

    However many crops and flips there are, and one resize, a view's pixel stays one weighted sum of image pixels.

    Attributes:
        top: Of the box in the image, with ``left``, ``box_height`` and ``box_width``.
        grid_height: What the box is resized to, with ``grid_width``.
        window_top: Where the frame begins in the grid, with ``window_left``.
        height: Of the frame, with ``width``.
        flip: Whether left and right are mirrored, bool [B].
        interpolation: Of the resize, None before there is one.
    """

    def __init__(self, height: Integers, width: Integers) -> None:
        zero = np.zeros_like(height)
        self.top, self.left, self.box_height, self.box_width = zero, zero, height, width
        self.grid_height, self.grid_width = height, width
        self.window_top, self.window_left, self.height, self.width = zero, zero, height, width
        self.flip: Booleans = np.zeros(len(height), dtype=bool)
        self.interpolation: Interpolation | None = None

    def crop(self, top: Integers, left: Integers, height: Integers, width: Integers) -> None:
        """Narrow the frame to a part of itself."""
        self.window_top = self.window_top + top
        # What is left in a mirrored frame is right in its image.
        self.window_left = self.window_left + np.where(self.flip, self.width - width - left, left)
        self.height, self.width = height, width

    def resize(self, height: Integers, width: Integers, interpolation: Interpolation, operation: object) -> None:
        """Resample what is in the frame.

        Raises:
            ValueError: It has been resampled before.
        """
        if self.interpolation is not None:
            raise ValueError(
                f"{operation} would resample pixels that have been resampled already, which only blurs them. Resize "
                "once: RandomResizedCrop takes the whole image, and evaluation views are Resize and CenterCrop."
            )
        self.interpolation = interpolation
        self.top, self.left = self.top + self.window_top, self.left + self.window_left
        self.box_height, self.box_width = self.height, self.width
        self.window_top, self.window_left = np.zeros_like(height), np.zeros_like(width)
        self.grid_height, self.grid_width = height, width
        self.height, self.width = height, width

    def mirror(self, drawn: Booleans) -> None:
        """Exchange left and right of some."""
        self.flip = self.flip ^ drawn
