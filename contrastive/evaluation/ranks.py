"""What evaluation needs from several ranks; each is the identity on one process. No gradient flows through any."""

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from contrastive.distributed import gather, world_size


def sum_over_ranks(local: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The sum of every rank's tensor, the same on every rank; the argument is left as it is."""
    if world_size() == 1:
        return local
    total = local.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def gather_rows(local: Shaped[Tensor, "N *rest"]) -> Shaped[Tensor, "M *rest"]:
    """The rows of all ranks in rank order. Ranks may bring different numbers of rows, none included."""
    if world_size() == 1:
        return local
    local = local.detach()
    lengths = gather(torch.tensor([len(local)], device=local.device))
    padded = local.new_zeros(int(lengths.max()), *local.shape[1:])
    padded[: len(local)] = local
    shards = gather(padded).view(world_size(), *padded.shape)
    return torch.cat([shard[:length] for shard, length in zip(shards, lengths.tolist(), strict=True)])


def from_rank_zero(local: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Rank 0's tensor on every rank, where ranks computed the same thing and must not differ in a last bit."""
    if world_size() == 1:
        return local
    value = local.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(value, src=0)
    return value
