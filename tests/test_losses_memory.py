"""No loss holds all logits at once, and a queue is read where it lies."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contrastive.losses import info_nce_queue, nt_xent, torch_tiles
from contrastive.queue import Queue
from tests.every_loss import OURS, batch, random

MIB = 2**20


class LargestAllocation(TorchDispatchMode):
    """Sees every operation of forward and backward pass; keeps the bytes of the largest memory that one asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {memory(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and memory(x) not in given:  # neither a view nor in place
                self.nbytes = max(self.nbytes, x.untyped_storage().nbytes())
        return result


def memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def largest_allocation(loss: Callable[[], Tensor]) -> int:
    with LargestAllocation() as largest:
        loss().backward()
    return largest.nbytes


def test_the_watch_sees_a_dense_loss_in_both_passes() -> None:
    rows = random(64, 4).requires_grad_()
    assert largest_allocation(lambda: (rows @ rows.T).logsumexp(1).sum()) == 64 * 64 * 8
    many = torch.zeros(1000).requires_grad_()
    assert largest_allocation(lambda: many[:2].sum()) == 1000 * 4  # the gradient alone has all


@pytest.mark.parametrize("name", OURS)
def test_no_loss_allocates_more_than_a_few_numbers_a_row_or_one_tile(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_tiles, "TILE", 128)
    num_images, width = 500, 4
    b = batch(num_images, width, queue_size=700).with_gradients()
    inputs, tile = b.views.numel(), 128 * 128
    assert largest_allocation(lambda: OURS[name](b)) <= 8 * max(2 * inputs, tile) < 8 * num_images**2 / 10


def test_8192_rows_allocate_no_more_than_their_tiles() -> None:
    rows = random(8192, 16).float().requires_grad_()
    assert largest_allocation(lambda: nt_xent(rows, temperature=0.1)) == 4 * torch_tiles.TILE**2 == 4 * MIB


PEAK = """
import resource, torch
from contrastive.losses import nt_xent

rows = torch.randn(8192, 128, requires_grad=True)
nt_xent(rows[:1200], temperature=0.1).backward()  # what torch keeps for itself from its first matrix products
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nt_xent(rows, temperature=0.1).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_8192_rows_of_width_128_take_less_than_128_mib_at_their_peak() -> None:
    answer = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(answer.stdout) < 128 * MIB  # one matrix of all logits: 256 MiB


def test_a_step_makes_no_copy_of_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_tiles, "TILE", 128)
    queue = Queue(4096, 16)
    b = batch(8, 16).to(torch.float32).with_gradients()
    queue_nbytes = queue.rows.untyped_storage().nbytes()

    def step() -> Tensor:
        loss = info_nce_queue(b.views[0], b.views[1].detach(), queue.rows, temperature=0.2)
        queue.enqueue(b.views[1])
        return loss

    assert largest_allocation(step) < queue_nbytes / 8
    soft = replace(b, queue=queue.rows)
    assert largest_allocation(lambda: OURS["soft_info_nce"](soft)) < queue_nbytes / 8
