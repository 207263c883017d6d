"""What the random numbers of an image depend on, and nothing else."""

from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor


@dataclass(frozen=True)
class SampleKey:
    """Names the random numbers of a batch of images.

    An image's augmentation is a function of this key's row and of the view's number: the same whatever
    else is in the batch, however many ranks or workers there are, and after any resume.

    Attributes:
        seed: The run's seed, 0 <= seed < 2**64.
        epoch: The training epoch, 0 <= epoch < 2**32.
        index: The images' numbers in their data set, int64 [B], each 0 <= index < 2**63.
    """

    seed: int
    epoch: int
    index: Int64[Tensor, " B"]
