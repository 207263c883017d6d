"""How far our views are from torchvision's.

    python -m benchmarks.augmentation_exactness
    python -m benchmarks.augmentation_exactness --backends torch native --sizes 32 --images 8
    TRITON_INTERPRET=1 python -m benchmarks.augmentation_exactness --backends triton --sizes 8 --images 2

Each operation, and each published pipeline as a whole, draws its numbers once. By them a backend makes the views of a
batch of images of different sizes, and ``torchvision.transforms.v2.functional`` makes them on float images, one image
at a time. The views are in [0, 1], not normalised, and what counts is the largest absolute difference of any pixel.
Images are uint8: pieces of photographs, flat colours, white noise.

Torchvision is asked twice, in float32 and in float64, and the distance of the two from each other is told as well: it
computes in the images' own precision where a view's pixel lies in its image, and float32 rounds that place. (Hues it
always turns in float32.)

No pixel is left out. A solarized pixel jumps to the other side for a rounding error, except at the threshold 1/2, where
x and 1 - x meet; the pipelines have that one. By itself the operation is measured at 1/4, which lies between the levels
63/255 and 64/255, on pixels that nothing has changed. Turning a hue is continuous: grey, where the hue itself jumps,
has no colour to show it.

Prints a table, appends a row for each backend to ``benchmarks/results/augmentation_exactness.jsonl``, and exits with 1
if a difference is above its bound. Triton takes an NVIDIA GPU; its interpreter takes minutes for the tiniest images.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.images import CONTENTS
from benchmarks.rows import RESULTS, append_row
from contrastive.augmentations import (
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    RaggedImages,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomSolarize,
    Resize,
    SampleKey,
    Views,
    byol_views,
    dino_views,
    evaluation_views,
    mae_views,
    moco_v2_views,
    simclr_views,
    swav_views,
)
from contrastive.augmentations.operations import Operation
from contrastive.augmentations.program import Program
from tests.reference_augmentations import torchvision_view

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BOUND = 1e-5
"""From torchvision in float64, for all images and sizes."""


def bound_from_float32(content: str, size: int) -> float:
    """The same, as far as torchvision's own rounding lets one tell.

    Float32 rounds places beyond pixel 256 by up to 1.5e-5 pixels. Where neighbouring pixels differ by 1, as in noise,
    a mixture of them is off by so much, and brightness, contrast and saturation then multiply it; in photographs few
    neighbours differ by a quarter of that. In small images places are rounded by so much less that nothing shows.
    """
    if content == "flat" or size <= 64:
        return BOUND
    return {"photographs": 5e-5, "noise": 2e-4}[content]


@dataclass(frozen=True)
class Target:
    """A backend, and the device it runs on: "cpu", or "cuda"."""

    backend: str
    device: str

    def __str__(self) -> str:
        if self.device == "cuda":
            return f"{self.backend} on {torch.cuda.get_device_name()}"
        return f"{self.backend}, interpreted" if self.backend == "triton" else self.backend

    def render(self, images: RaggedImages, program: Program) -> Tensor:
        """The views that a program describes, in host memory."""
        backend = importlib.import_module(f"contrastive.augmentations.backends.{self.backend}_backend")
        out = torch.empty(len(images), images.channels, *program.size, device=self.device)
        backend.render(images.to(self.device), program, None, out)
        return out.cpu()


@dataclass(frozen=True)
class Difference:
    """The largest absolute differences of one backend's views, over all images, views and pixels.

    Attributes:
        target: Which backend, and where.
        subject: Which operation or pipeline.
        size: Of the views, in pixels.
        content: Of the images.
        from_float32: From torchvision in float32.
        from_float64: From torchvision in float64.
        torchvision: Of torchvision in float32 from torchvision in float64.
    """

    target: str
    subject: str
    size: int
    content: str
    from_float32: float
    from_float64: float
    torchvision: float

    def as_json(self) -> dict[str, str | int | float]:
        """All but the target, which its row names."""
        return {name: value for name, value in asdict(self).items() if name != "target"}

    def failure(self) -> str | None:
        """What is above its bound; None if nothing is."""
        where = f"{self.target}: {self.subject} of {self.content} at {self.size} px"
        if not self.from_float64 <= BOUND:  # so that NaN fails
            return f"{where} is {self.from_float64:.1e} from torchvision in float64, above {BOUND:.1e}"
        bound = bound_from_float32(self.content, self.size)
        if not self.from_float32 <= bound:
            return f"{where} is {self.from_float32:.1e} from torchvision in float32, above {bound:.1e}"
        return None


def subjects(size: int) -> dict[str, Views]:
    """What is measured: single operations, and then whole pipelines.

    Args:
        size: Side of the views, in pixels; that of local views is smaller by 96/224.
    """
    middle = CenterCrop(size)
    operations: dict[str, list[Operation]] = {
        "crop, bilinear": [RandomResizedCrop(size)],
        "crop, bicubic": [RandomResizedCrop(size, interpolation="bicubic")],
        "resize and centre crop": [Resize(round(size * 8 / 7)), middle],
        "flip": [middle, RandomHorizontalFlip(0.5)],
        "brightness": [middle, ColorJitter(brightness=0.8)],
        "contrast": [middle, ColorJitter(contrast=0.8)],
        "saturation": [middle, ColorJitter(saturation=0.8)],
        "hue": [middle, ColorJitter(hue=0.5)],
        "grayscale": [middle, RandomGrayscale(1.0)],
        "blur": [middle, GaussianBlur(max(3, size // 20 * 2 + 1))],
        "solarize": [middle, RandomSolarize(0.25, p=1.0)],
    }
    local_size = round(size * 96 / 224)
    pipelines = {
        "simclr": simclr_views(size, normalize=None),
        "moco_v2": moco_v2_views(size, normalize=None),
        "byol": byol_views(size, normalize=None),
        "swav, local": Views(swav_views(size, local_size=local_size, normalize=None).views[2:]),
        "dino, local": Views(dino_views(size, local_size=local_size, normalize=None).views[2:]),
        "mae": mae_views(size, normalize=None),
        "evaluation": evaluation_views(size, normalize=None),
    }
    return {name: Views([view]) for name, view in operations.items()} | pipelines


def measure(targets: Sequence[Target], size: int, num_images: int, seed: int) -> list[Difference]:
    """All subjects, of all kinds of images, by all backends.

    Args:
        targets: Which backends, and where.
        size: Of the views, in pixels. The images' sides are 1 to 1.75 times as long.
        num_images: Of each kind.
        seed: Of the images and of what happens to them.
    """
    noise = np.random.default_rng(seed)
    sides = [(int(height), int(width)) for height, width in noise.integers(size, size * 7 // 4 + 1, (num_images, 2))]
    key = SampleKey(seed, 0, torch.arange(num_images))
    differences = []
    for content, make in CONTENTS.items():
        images = RaggedImages.pack(make(sides, seed))
        for subject, pipeline in subjects(size).items():
            programs = [program for (program,) in pipeline.programs(images, key)]
            float32 = [_torchvision(images, program, torch.float32) for program in programs]
            float64 = [_torchvision(images, program, torch.float64) for program in programs]
            for target in targets:
                views = [target.render(images, program) for program in programs]
                differences.append(
                    Difference(
                        target=str(target),
                        subject=subject,
                        size=size,
                        content=content,
                        from_float32=_largest_difference(views, float32),
                        from_float64=_largest_difference(views, float64),
                        torchvision=_largest_difference(float32, float64),
                    )
                )
    return differences


def available() -> list[Target]:
    """All backends that this machine has."""
    on_gpu = [Target("torch", "cuda"), Target("triton", "cuda")] if torch.cuda.is_available() else []
    return [Target("torch", "cpu"), Target("native", "cpu"), *on_gpu]


def table_of(differences: Sequence[Difference]) -> Table:
    """For people: from torchvision in float32 / in float64, and last torchvision's own."""
    targets = list(dict.fromkeys(difference.target for difference in differences))
    caption = "largest difference from torchvision's float32 / float64"
    table = Table("", "", "px", *targets, "torchvision", caption=caption)
    lines: dict[tuple[str, str, int], list[Difference]] = {}
    for one in differences:
        lines.setdefault((one.subject, one.content, one.size), []).append(one)
    for (subject, content, size), line in lines.items():
        cells = {one.target: f"{one.from_float32:.1e} / {one.from_float64:.1e}" for one in line}
        own = f"0 / {line[0].torchvision:.1e}"
        table.add_row(subject, content, str(size), *(cells[target] for target in targets), own)
    return table


def main(words: list[str] | None = None) -> int:
    """Measure, print and append rows; 1 if a difference is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", help="of torch, native, triton; all that this machine has")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224], help="of the views, in pixels")
    parser.add_argument("--images", type=int, nargs="+", default=[64, 16], help="how many of each kind, for each size")
    parser.add_argument("--seed", type=int, default=0, help="of the images and of what happens to them")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "augmentation_exactness.jsonl", help="file of rows to append to"
    )
    options = parser.parse_args(words)
    if len(options.sizes) != len(options.images):
        parser.error(f"{len(options.sizes)} sizes need as many numbers of --images, but there are {options.images}")
    targets = available()
    if options.backends:
        known = [*targets, Target("triton", "cpu")] if INTERPRETED and not torch.cuda.is_available() else targets
        if missing := sorted(set(options.backends) - {target.backend for target in known}):
            parser.error(f"no backend {', '.join(missing)} here; triton needs an NVIDIA GPU, or TRITON_INTERPRET=1")
        targets = [target for target in known if target.backend in options.backends]
    num_images = dict(zip(options.sizes, options.images, strict=True))
    differences = [one for size, count in num_images.items() for one in measure(targets, size, count, options.seed)]
    for target in map(str, targets):
        row = {"benchmark": "augmentation_exactness", "target": target, "seed": options.seed, "images": num_images}
        measured = [one.as_json() for one in differences if one.target == target]
        append_row(options.output, {**row, "differences": measured})
    Console(width=None if sys.stdout.isatty() else 120).print(table_of(differences))
    failures = [failure for one in differences if (failure := one.failure())]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return int(len(failures) > 0)


def _torchvision(images: RaggedImages, program: Program, dtype: torch.dtype) -> Tensor:
    scaled = (images[row].to(dtype) / 255 for row in range(len(images)))
    return torch.stack([torchvision_view(image, program, row) for row, image in enumerate(scaled)])


def _largest_difference(views: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max((view.double() - other).abs().max().item() for view, other in zip(views, expected, strict=True))


if __name__ == "__main__":
    sys.exit(main())
