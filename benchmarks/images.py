"""Images to measure augmentations on: pieces of real photographs, white noise, flat colours."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

Sides = Sequence[tuple[int, int]]  # height and width of each image, in pixels


def photographs(sides: Sides, seed: int) -> list[Tensor]:
    """Pieces of scikit-learn's two bundled photographs in turn, at random places.

    Args:
        sides: No piece larger than 427 x 640 pixels.
        seed: Of the places.

    Returns:
        uint8 [3, height, width] each.
    """
    noise = np.random.default_rng(seed)
    pieces = []
    for number, (height, width) in enumerate(sides):
        photograph = _photographs()[number % 2]
        top = int(noise.integers(photograph.shape[1] - height + 1))
        left = int(noise.integers(photograph.shape[2] - width + 1))
        pieces.append(photograph[:, top : top + height, left : left + width].contiguous())
    return pieces


def white_noise(sides: Sides, seed: int) -> list[Tensor]:
    """Every value any of 0..255, independent of the others; uint8 [3, height, width] each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(256, (3, *side), dtype=torch.uint8, generator=generator) for side in sides]


def flat(sides: Sides, seed: int) -> list[Tensor]:
    """One colour an image, the second black and the third white; uint8 [3, height, width] each."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(256, (len(sides), 3, 1, 1), dtype=torch.uint8, generator=generator)
    colours[1:2], colours[2:3] = 0, 255
    return [colour.expand(3, *side).contiguous() for colour, side in zip(colours, sides, strict=True)]


CONTENTS: dict[str, Callable[[Sides, int], list[Tensor]]] = {
    "photographs": photographs,
    "flat": flat,
    "noise": white_noise,
}


@cache
def _photographs() -> list[Tensor]:
    """A Chinese temple and a flower, uint8 [3, 427, 640] each."""
    return [torch.tensor(photograph).permute(2, 0, 1) for photograph in load_sample_images().images]
