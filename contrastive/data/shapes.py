"""A drawn data set: shapes made from a seed, without a download."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from contrastive.data.tensor_images import TensorImages

Distance = Callable[[Tensor, Tensor], Tensor]  # x to the right and y down, [...] each, to the signed distance [...]

# What an image varies in beside its shape. Lengths are in halves of the image's side, angles in degrees.
RADIUS = (0.50, 0.78)
SHIFT = 0.30  # of the shape's centre from the image's, at most, along either axis
TILT = 25.0
DARK, LIGHT = (0.12, 0.45), (0.62, 0.97)  # HSV value: one of the two is the shape's, the other the backdrop's
SHAPE_SATURATION, BACKDROP_SATURATION = (0.3, 0.9), (0.1, 0.6)
GRADIENT = 0.25  # of the backdrop, as a fraction of its colour, at most
SHADING = 0.25  # of the shape, lit from the upper left, likewise
SHADOW = 0.35  # depth of the shape's shadow, at most
SHADOW_OFFSET = (0.10, 0.14)
SHADOW_SOFTNESS = 0.07
NOISE = 0.06  # a pixel's two-sided range: the sum of two uniform numbers, of standard deviation NOISE / sqrt(6)

DRAWN_AT_ONCE = 200  # images; always drawn whole, so that fewer images are the first ones of more


class Shapes(TensorImages):
    """Small pictures of ten shapes: a data set for demonstrations and tests, drawn in a second or two.

    The class is the shape. Everything else is nuisance: where it lies, its size, a tilt of up to 25 degrees, its
    colour and the backdrop's (either may be the lighter), shading, a shadow, noise. The light always comes from the
    upper left, and backdrops are plain gradients: with a backdrop that tells an image from all others, a contrastive
    method learns the backdrops and no shapes.

    Pictures depend on the seed alone; processors that round differently may differ by one grey level in places. Any
    ten images one after the other from a multiple of ten show each class once, and a smaller data set is the
    beginning of a larger one. Training and validation images come from different streams of random numbers. What has
    been drawn is kept in the process and shared by all data modules that ask for it: do not write to it.

    Args:
        image_size: Side in pixels, at least 16.
        num_train: Training images, at least 10.
        num_test: Validation images, at least 10.
        batch_size: Images per rank and step.
        seed: Of the pictures and of the order of the training images, >= 0.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        image_size: int = 32,
        *,
        num_train: int = 10_000,
        num_test: int = 2_000,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        if image_size < 16:
            raise ValueError(
                f"image_size={image_size} pixels is too small to tell the shapes apart. Take 16 or more; 32 is usual."
            )
        for name, number in (("num_train", num_train), ("num_test", num_test)):
            if number < len(SHAPES):
                raise ValueError(
                    f"{name}={number} leaves some of the {len(SHAPES)} classes without an image. Take more."
                )
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, but is {seed}.")
        train_images, train_labels = _pictures(num_train, image_size, 2 * seed)
        test_images, test_labels = _pictures(num_test, image_size, 2 * seed + 1)
        super().__init__(
            train_images,
            train_labels,
            test_images,
            test_labels,
            classes=list(SHAPES),
            batch_size=batch_size,
            seed=seed,
        )


@dataclass(frozen=True)
class Pose:
    """Where shapes lie in their images, and how large and how tilted; float [B] each.

    Attributes:
        x: Of the centre, -1 at the left edge to 1 at the right.
        y: Of the centre, -1 at the top to 1 at the bottom.
        radius: In halves of the image's side.
        tilt: Clockwise, in radians.
    """

    x: Float[Tensor, " B"]
    y: Float[Tensor, " B"]
    radius: Float[Tensor, " B"]
    tilt: Float[Tensor, " B"]


def signed_distance(labels: Int64[Tensor, " B"], pose: Pose, image_size: int) -> Float[Tensor, "B H W"]:
    """How far each pixel's centre lies outside of its image's shape, negative inside, in halves of the image's side."""
    x, y = (_wide(t) for t in (pose.x, pose.y))
    right, down = _pixel_centers(image_size)
    right, down = right - x, down - y  # [B, H, W]
    cos, sin, radius = _wide(pose.tilt.cos()), _wide(pose.tilt.sin()), _wide(pose.radius)
    across, along = (cos * right + sin * down) / radius, (cos * down - sin * right) / radius
    distance = torch.empty_like(across)
    for label, shape in enumerate(SHAPES.values()):
        mine = labels == label
        distance[mine] = shape(across[mine], along[mine])
    return distance * radius


def coverage(labels: Int64[Tensor, " B"], pose: Pose, image_size: int) -> Float[Tensor, "B H W"]:
    """The fraction of each pixel that the shape covers, 0..1: an edge is one pixel wide."""
    pixel = 2 / image_size
    return (0.5 - signed_distance(labels, pose, image_size) / pixel).clamp_(0, 1)


@functools.lru_cache(maxsize=8)
def _pictures(num_images: int, image_size: int, stream: int) -> tuple[Tensor, Tensor]:
    """The first images of a stream, uint8 [N, 3, S, S], and their labels, int64 [N]."""
    generator = torch.Generator().manual_seed(stream)
    images, labels = [], []
    for _ in range(0, num_images, DRAWN_AT_ONCE):
        shuffled = torch.rand(DRAWN_AT_ONCE // len(SHAPES), len(SHAPES), generator=generator).argsort(1)
        labels.append(shuffled.flatten())
        images.append(_draw(labels[-1], image_size, generator))
    return torch.cat(images)[:num_images].clone(), torch.cat(labels)[:num_images].clone()


def _draw(labels: Int64[Tensor, " B"], image_size: int, generator: torch.Generator) -> UInt8[Tensor, "B 3 S S"]:
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), generator=generator)

    pose = Pose(
        x=uniform(-SHIFT, SHIFT),
        y=uniform(-SHIFT, SHIFT),
        radius=uniform(*RADIUS),
        tilt=uniform(-TILT, TILT) * (math.pi / 180),
    )
    dark, light, shape_is_light = uniform(*DARK), uniform(*LIGHT), uniform(0, 1) < 0.5
    shape_value, backdrop_value = torch.where(shape_is_light, light, dark), torch.where(shape_is_light, dark, light)
    shape_color = _rgb(uniform(0, 1), uniform(*SHAPE_SATURATION), shape_value)  # [B, 3]
    backdrop_color = _rgb(uniform(0, 1), uniform(*BACKDROP_SATURATION), backdrop_value)

    right, down = _pixel_centers(image_size)
    direction, steepness = uniform(0, 2 * math.pi), uniform(0, GRADIENT)
    slope = _wide(steepness * direction.cos()) * right + _wide(steepness * direction.sin()) * down  # [B, S, S]
    backdrop = backdrop_color[:, :, None, None] * (1 + slope)[:, None]
    under = Pose(pose.x + SHADOW_OFFSET[0], pose.y + SHADOW_OFFSET[1], pose.radius, pose.tilt)
    shadow = torch.sigmoid(signed_distance(labels, under, image_size) / -SHADOW_SOFTNESS)
    backdrop *= (1 - _wide(uniform(0, SHADOW)) * shadow)[:, None]

    towards_light = (_wide(pose.x + pose.y) - right - down) / _wide(2 * pose.radius)  # about -1..1 on the shape
    shape = shape_color[:, :, None, None] * (1 + _wide(uniform(0, SHADING)) * towards_light)[:, None]
    images = torch.lerp(backdrop, shape, coverage(labels, pose, image_size)[:, None])
    # Sums of uniform numbers: what a processor makes of torch.randn depends on its vector instructions.
    images += NOISE * (torch.rand(2, *images.shape, generator=generator).sum(0) - 1)
    return images.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _pixel_centers(image_size: int) -> tuple[Tensor, Tensor]:
    """Where the pixels' centres lie, x [1, 1, S] and y [1, S, 1], from -1 to 1."""
    centers = (torch.arange(image_size) + 0.5) * (2 / image_size) - 1
    return centers[None, None, :], centers[None, :, None]


def _wide(values: Float[Tensor, " B"]) -> Float[Tensor, "B 1 1"]:
    return values[:, None, None]


def _rgb(hue: Float[Tensor, " B"], saturation: Float[Tensor, " B"], value: Float[Tensor, " B"]) -> Float[Tensor, "B 3"]:
    """HSV to RGB, all in 0..1."""
    sixths = (6 * hue[:, None] + torch.tensor([5.0, 3.0, 1.0])) % 6  # [B, 3]
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(sixths, 4 - sixths).clamp_(0, 1))


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.85


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.68).abs() - 0.22


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 0.92, 0.72 - torch.hypot(x - 0.42, y))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """A square on its corner, a half-disc on each of its upper sides, in a frame where its tip is the origin."""
    scale = 1.7
    x, y = x.abs() / scale, (0.8 - y) / scale
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(0.125)
    along_side = (x + y).clamp(min=0) / 2
    to_side = torch.hypot(x - along_side, y - along_side)
    below = torch.minimum(to_side, torch.hypot(x, y - 1)).copysign(x - y)
    return scale * torch.where(x + y > 1, lobe, below)


def _polygon(*corners: tuple[float, float]) -> Distance:
    """A polygon's signed distance: inside is where a ray to the left crosses an odd number of its sides."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        nearest = torch.full_like(x, torch.inf)
        inside = torch.zeros_like(x, dtype=torch.bool)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            dx, dy = x1 - x0, y1 - y0
            along = ((x - x0) * dx + (y - y0) * dy).div_(dx * dx + dy * dy).clamp_(0, 1)
            nearest = torch.minimum(nearest, (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2)
            if dy:
                inside ^= ((y0 <= y) != (y1 <= y)) & (x - x0 > (y - y0) * (dx / dy))
        return torch.where(inside, -nearest.sqrt(), nearest.sqrt())

    return distance


def _star(points: int, inner: float) -> Sequence[tuple[float, float]]:
    """Corners of a star of radius 1, one point upwards."""
    angles = [math.pi * step / points for step in range(2 * points)]
    radii = [1.0, inner] * points
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in zip(radii, angles, strict=True)]


def _cross(reach: float, half: float) -> Sequence[tuple[float, float]]:
    """Corners of a plus sign with bars 2 ``reach`` long and 2 ``half`` wide."""
    quarter = [(-half, -reach), (half, -reach), (half, -half)]
    return [*quarter, *[(-y, x) for x, y in quarter], *[(-x, -y) for x, y in quarter], *[(y, -x) for x, y in quarter]]


# The classes, in the order of their labels; each fits a disc of about radius 1.
SHAPES: dict[str, Distance] = {
    "disc": _disc,
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
    "square": _polygon((-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)),
    "triangle": _polygon((0.0, -0.95), (0.95, 0.75), (-0.95, 0.75)),
    "star": _polygon(*_star(5, inner=0.45)),
    "cross": _polygon(*_cross(reach=0.95, half=0.3)),
    "arrow": _polygon(
        (0.0, -1.0), (0.85, -0.1), (0.33, -0.1), (0.33, 0.95), (-0.33, 0.95), (-0.33, -0.1), (-0.85, -0.1)
    ),
    "bolt": _polygon((0.25, -1.0), (-0.65, 0.15), (-0.1, 0.15), (-0.3, 1.0), (0.65, -0.25), (0.08, -0.25)),
}
