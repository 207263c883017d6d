"""The step by which torch makes an optimizer's state leaves nothing behind; real ones at rate 0 are real."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import _init_optim_state  # what FSDP2's checkpoints call
from torch.optim import SGD, AdamW, NAdam, Optimizer

from contrastive.optim import LARS
from contrastive.sharding import register_step_post_hook

OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "adamw": lambda weights: AdamW(weights, lr=0.1, weight_decay=0.3),
    "nadam": lambda weights: NAdam(weights, lr=0.1, weight_decay=0.3),  # part of whose state begins with 1
    "adamw, amsgrad": lambda weights: AdamW(weights, lr=0.1, weight_decay=0.3, amsgrad=True),
    "sgd": lambda weights: SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.3),
    "sgd, nesterov": lambda weights: SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.3, nesterov=True),
    "sgd, dampening": lambda weights: SGD(weights, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.3),
    "lars": lambda weights: LARS(weights, lr=0.1, momentum=0.9, weight_decay=0.3),
}


def trained(make: Callable[[list[Tensor]], Optimizer], rates: list[float], *, saved_first: bool) -> tuple[Tensor, int]:
    """A weight after steps of these rates, and how many of them the hook saw."""
    weight = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
    optimizer, taken, seen = make([weight]), [], []
    register_step_post_hook(optimizer, lambda *_: seen.append(1), lambda: len(taken))

    def closure() -> float:  # in which Lightning makes the gradient
        weight.grad = torch.full_like(weight, 0.5 + len(taken))
        return 0.0

    if saved_first:
        _init_optim_state(optimizer)
        assert optimizer.state
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step(closure)
        taken.append(1)
    return weight.detach(), len(seen)


@pytest.mark.parametrize("rates", [[0.1, 0.1, 0.1], [0.0, 0.1, 0.0, 0.1]])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_before_the_first_step_changes_no_later_one(name: str, rates: list[float]) -> None:
    expected, steps = trained(OPTIMIZERS[name], rates, saved_first=False)
    found, seen = trained(OPTIMIZERS[name], rates, saved_first=True)
    assert torch.equal(found, expected)
    assert steps == seen == len(rates)
