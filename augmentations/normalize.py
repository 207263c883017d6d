"""Channel statistics that views are normalised with."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from contrastive.augmentations.operations import Operation


@dataclass(frozen=True)
class Normalize(Operation):
    """Subtracts each channel's mean and divides by its standard deviation, both for images in [0, 1].

    Attributes:
        mean: Of each channel: red, green and blue, [C].
        std: Likewise, [C], each > 0.

    Raises:
        ValueError: Not as many means as standard deviations, or a standard deviation that is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            raise ValueError(
                f"Normalize needs a mean and a standard deviation > 0 of each channel, but got mean={self.mean} and "
                f"std={self.std}. Give them for images in [0, 1], as IMAGENET and CIFAR10 do."
            )

    def check_channels(self, channels: int) -> None:
        """As many as there are means."""
        if channels != len(self.mean):
            raise ValueError(
                f"{self} is for {len(self.mean)} channels, but these images have {channels}. Give Normalize the "
                "statistics of your images' channels."
            )

    def __call__(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise float images in [0, 1]."""
        mean, std = images.new_tensor([self.mean, self.std])[..., None, None]  # [C, 1, 1] each
        centered: Tensor = images - mean
        return centered.div_(std)


IMAGENET = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Torchvision's constants, which its ImageNet weights and the MoCo and BYOL recipes use."""

CIFAR10 = Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
"""Mean and standard deviation over all pixels of the 50,000 training images."""
