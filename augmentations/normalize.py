"""Channel statistics that views are normalised with."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Normalize:
    """Subtracts each channel's mean and divides by its standard deviation, both for images in [0, 1].

    Attributes:
        mean: Red, green and blue, [3].
        std: Red, green and blue, [3], each > 0.

    Raises:
        ValueError: Not three numbers each, or a standard deviation that is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"Normalize needs three means and three standard deviations > 0, but got mean={self.mean} and "
                f"std={self.std}. Give them for images in [0, 1], as IMAGENET and CIFAR10 do; None leaves [0, 1] as is."
            )

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Normalise float images in [0, 1]."""
        mean, std = images.new_tensor([self.mean, self.std])[..., None, None]  # [3, 1, 1] each
        centered: Tensor = images - mean
        return centered.div_(std)


IMAGENET = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Torchvision's constants, which its ImageNet weights and the MoCo and BYOL recipes use."""

CIFAR10 = Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
"""Mean and standard deviation over all pixels of the 50,000 training images."""
