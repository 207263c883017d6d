"""Optimizers as functions of a module and of how long it will be trained.

Each ``*_cosine`` function returns a function to hand to a method as ``make_optimizer``. All share one schedule,
stepped once per optimizer step and a pure function of the step: linear warm-up, then half a cosine to zero
(Loshchilov and Hutter, SGDR, https://arxiv.org/abs/1608.03983, without restarts; the warm-up of Goyal et al.,
https://arxiv.org/abs/1706.02677, section 2.2).
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.optimizer import Optimizer


@dataclass(frozen=True)
class TrainingLength:
    """How long a run is, in optimizer steps (not batches: gradient accumulation is taken into account)."""

    steps: int
    steps_per_epoch: float


MakeOptimizer = Callable[[nn.Module, TrainingLength], tuple[Optimizer, LRScheduler]]


def training_length(trainer: pl.Trainer) -> TrainingLength:
    """What ``trainer`` is about to do, in optimizer steps.

    Raises:
        ValueError: The trainer has no end (``max_epochs=-1`` without ``max_steps``) or would take no step.
    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ValueError("A cosine schedule needs an end: give the Trainer max_epochs or max_steps.")
    if steps < 1:
        raise ValueError("This run has no optimizer step to take: check the Trainer's max_epochs and max_steps.")
    if math.isinf(trainer.num_training_batches):
        trainer.fit_loop.setup_data()  # with max_steps alone, Lightning has not looked at the loader yet
    return TrainingLength(int(steps), trainer.num_training_batches / trainer.accumulate_grad_batches)


def sgd_cosine(
    lr: float,
    *,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
    warmup_epochs: float = 0,
    decay_bias_and_norm: bool = True,
) -> MakeOptimizer:
    """SGD, as MoCo and SimSiam use it: the weight decay falls on every parameter, biases and norms included.

    Defaults: https://github.com/facebookresearch/moco, ``main_moco.py``.
    """
    _check(lr, weight_decay, momentum, warmup_epochs)
    make = functools.partial(torch.optim.SGD, lr=lr, momentum=momentum)
    return functools.partial(
        _build, make, weight_decay=weight_decay, decay_rest=decay_bias_and_norm, warmup_epochs=warmup_epochs
    )


def adamw_cosine(
    lr: float,
    *,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    warmup_epochs: float = 40,
) -> MakeOptimizer:
    """AdamW; no weight decay on biases and norms (parameters with fewer than two axes).

    Defaults: MoCo v3's ViT recipe, https://github.com/facebookresearch/moco-v3, ``CONFIG.md``.
    """
    _check(lr, weight_decay, betas[0], warmup_epochs)
    make = functools.partial(torch.optim.AdamW, lr=lr, betas=betas)
    return functools.partial(_build, make, weight_decay=weight_decay, decay_rest=False, warmup_epochs=warmup_epochs)


def lars_cosine(
    lr: float,
    *,
    weight_decay: float = 1e-6,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    warmup_epochs: float = 10,
) -> MakeOptimizer:
    """LARS for large batches; biases and norms are excluded from decay and adaptation.

    Defaults: SimCLR, section 2.2 and https://github.com/google-research/simclr, ``lars_optimizer.py``. SimCLR's
    own rules for the rate, which are the caller's to apply: 0.3 * global_batch_size / 256, or
    0.075 * sqrt(global_batch_size).
    """
    _check(lr, weight_decay, momentum, warmup_epochs)
    make = functools.partial(LARS, lr=lr, momentum=momentum, trust_coefficient=trust_coefficient)
    return functools.partial(_build, make, weight_decay=weight_decay, decay_rest=False, warmup_epochs=warmup_epochs)


def warmup_cosine(step: int, *, warmup_steps: int, steps: int) -> float:
    """The factor on the learning rate at ``step`` (from 0): 1/warmup_steps ... 1, then a cosine from 1 to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class LARS(Optimizer):
    """SGD with momentum whose step on each weight is proportional to the weight's norm.

    You, Gitman, Ginsburg. Large Batch Training of Convolutional Networks. https://arxiv.org/abs/1708.03888,
    Algorithm 1, in the form of PyTorch's SGD: the rate multiplies the momentum buffer instead of entering it, so
    the two differ only while the rate changes. ``g' = g + decay w``; ``v = momentum v + trust |w| / |g'| g'``;
    ``w = w - lr v``. Parameters with fewer than two axes (biases, norms) take plain SGD steps, as in SimCLR.

    Runs in ``torch._foreach`` operations and never waits for the device.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # Lightning's closure returns the loss tensor
        """One update of every parameter that has a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for adapted in (True, False):
                weights = [p for p in trained if (p.ndim > 1) == adapted]
                if weights:
                    self._update(weights, group, adapted=adapted)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any], *, adapted: bool) -> None:
        gradients = [w.grad for w in weights if w.grad is not None]
        updates = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
        if adapted:
            weight_norms = torch.stack(torch._foreach_norm(weights))  # [parameters]
            update_norms = torch.stack(torch._foreach_norm(updates))  # [parameters]
            ratios = group["trust_coefficient"] * weight_norms / update_norms
            # A weight or a gradient that is all zeros has no ratio: SimCLR's code then takes a plain step.
            ratios = ratios.where((weight_norms > 0) & (update_norms > 0), 1.0)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        velocities = [self.state[w].setdefault("velocity", torch.zeros_like(w)) for w in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        torch._foreach_add_(weights, velocities, alpha=-group["lr"])


def _build(
    make: Callable[..., Optimizer],
    module: nn.Module,
    length: TrainingLength,
    *,
    weight_decay: float,
    decay_rest: bool,
    warmup_epochs: float,
) -> tuple[Optimizer, LRScheduler]:
    """The optimizer over everything that trains, in two groups, and its schedule."""
    warmup_steps = round(warmup_epochs * length.steps_per_epoch)
    if warmup_steps >= length.steps and warmup_epochs > 0:
        raise ValueError(
            f"warmup_epochs={warmup_epochs:g} takes {warmup_steps} optimizer steps, but the run has only "
            f"{length.steps}. Train longer or shorten the warm-up."
        )
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": weight_decay if decay_rest else 0.0},
    ]
    optimizer = make([group for group in groups if group["params"]])
    return optimizer, LambdaLR(
        optimizer, functools.partial(warmup_cosine, warmup_steps=warmup_steps, steps=length.steps)
    )


def _check(lr: float, weight_decay: float, momentum: float, warmup_epochs: float) -> None:
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}.")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be zero or more, got {weight_decay}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}.")
    if not warmup_epochs >= 0:
        raise ValueError(f"warmup_epochs must be zero or more, got {warmup_epochs}.")
