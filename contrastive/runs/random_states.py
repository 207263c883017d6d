"""The global random states of all ranks: of dropout, and of whatever else a module draws from them.

Orders and views of ``contrastive`` are drawn from none of these.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from contrastive.distributed import rank, world_size


def of_this_rank() -> dict[str, Any]:
    """The states of Python, NumPy, torch and, where one is in use, this rank's GPU; plain values and tensors."""
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "python": random.getstate(),
        "numpy": [str(kind), np.asarray(keys).tolist(), int(place), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if in_use else None,
    }


def of_all_ranks(mine: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of each rank, on every rank, which all call this."""
    if world_size() == 1:
        return [mine]
    every: list[Any] = [None] * world_size()
    dist.all_gather_object(every, mine)
    return every


def restore(states: Sequence[Mapping[str, Any]]) -> None:
    """Put this rank's back; a rank that had none goes on with its own."""
    if rank() >= len(states):
        return
    mine = states[rank()]
    random.setstate(_tuples(mine["python"]))
    kind, keys, place, has_gauss, gauss = mine["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(mine["torch"])
    if mine["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["cuda"])


def _tuples(nested: Any) -> Any:
    """Python wants its state back as tuples, whatever a file made of them."""
    return tuple(_tuples(one) for one in nested) if isinstance(nested, list | tuple) else nested
