"""The contract of everything that makes positive pairs."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from contrastive.augmentations.images import Images
from contrastive.augmentations.key import SampleKey


@runtime_checkable
class MakeViews(Protocol):
    """Turns a batch of images into views of them, on the images' own device."""

    def __call__(self, images: Images, key: SampleKey) -> list[Tensor]:
        """Random views, each float [B, C, size, size], normalised; sizes may differ between views."""
        ...

    def evaluation_view(self, images: Images) -> Float[Tensor, "B C h w"]:
        """The images as an encoder trained on these views wants them: centre-cropped, normalised, not random."""
        ...
