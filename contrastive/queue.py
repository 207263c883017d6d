"""A first-in-first-out memory of projections, saved with the checkpoint."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Queue(nn.Module):
    """The last ``size`` projections enqueued, [K, P], of unit length; random unit vectors until filled once.

    He et al. 2020, https://arxiv.org/abs/1911.05722, section 3.2. The random rows come from a fixed seed, so all
    ranks begin with the same queue, and stay with the same one if they enqueue the same rows: gather them first.
    """

    rows: Tensor  # float32 [K, P]
    oldest: Tensor  # int64 [], the row to overwrite next

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        random = torch.randn(size, width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("rows", F.normalize(random, dim=-1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, new: Float[Tensor, "M P"]) -> None:
        """Overwrite the oldest M rows; M need not divide the size.

        Raises:
            ValueError: M exceeds the size.
        """
        size = len(self.rows)
        if len(new) > size:
            raise ValueError(
                f"One step brings {len(new)} projections, more than the whole queue of {size}. "
                "Raise queue_size or lower the batch size."
            )
        rows = (self.oldest + torch.arange(len(new), device=new.device)) % size  # [M]
        self.rows[rows] = F.normalize(new.to(self.rows.dtype), dim=-1)
        self.oldest.copy_((self.oldest + len(new)) % size)
