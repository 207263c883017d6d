"""Optimizers as functions of a module and of how long it will be trained.

Each ``*_cosine`` function returns a function to hand to a method as ``make_optimizer``. All share one schedule,
stepped once per optimizer step and a pure function of the step: linear warm-up, then half a cosine to ``final_lr``
(Loshchilov and Hutter, SGDR, https://arxiv.org/abs/1608.03983, without restarts; the warm-up of Goyal et al.,
https://arxiv.org/abs/1706.02677, section 2.2). As in the official codes, the cosine has one step left to go at the
last step of the run.

"Biases and norms" are the parameters with fewer than two axes.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
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
        raise ValueError(
            f"This run has no optimizer step to take: max_epochs is {trainer.max_epochs}, max_steps is "
            f"{trainer.max_steps}, and the training loader gives {trainer.num_training_batches} batches an epoch. "
            "Raise what is too small."
        )
    if math.isinf(trainer.num_training_batches):
        trainer.fit_loop.setup_data()  # with max_steps alone, Lightning has not looked at the loader yet
    return TrainingLength(int(steps), trainer.num_training_batches / trainer.accumulate_grad_batches)


def sgd_cosine(
    lr: float,
    *,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
    nesterov: bool = False,
    warmup_epochs: float = 0,
    decay_bias_and_norm: bool = True,
    final_lr: float = 0.0,
    fixed_lr: Sequence[str] = (),
) -> MakeOptimizer:
    """SGD, as MoCo and SimSiam use it: the weight decay falls on every parameter, biases and norms included.

    Defaults: https://github.com/facebookresearch/moco, ``main_moco.py``.

    Args:
        lr: Learning rate.
        weight_decay: Added to the gradient, times the parameter.
        momentum: Of the gradient.
        nesterov: Whether the momentum is Nesterov's, as torch has it.
        warmup_epochs: Length of the linear warm-up.
        decay_bias_and_norm: Whether biases and norms are decayed too.
        final_lr: Where the cosine ends.
        fixed_lr: Names of the module's children that keep ``lr`` from the first step to the last, through a warm-up
            too: SimSiam's predictor (https://github.com/facebookresearch/simsiam, ``--fix-pred-lr``, without warm-up).
    """
    return _Cosine(
        functools.partial(torch.optim.SGD, momentum=_below_one("momentum", momentum), nesterov=nesterov),
        lr=lr,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        final_lr=final_lr,
        decay_bias_and_norm=decay_bias_and_norm,
        fixed_lr=fixed_lr,
    )


def adamw_cosine(
    lr: float,
    *,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    warmup_epochs: float = 40,
    final_lr: float = 0.0,
    final_weight_decay: float | None = None,
    layer_decay: float = 1.0,
) -> MakeOptimizer:
    """AdamW; no weight decay on biases and norms.

    Defaults: MoCo v3's ViT recipe, https://github.com/facebookresearch/moco-v3, ``CONFIG.md``.

    Args:
        lr: Learning rate.
        weight_decay: Of the weights.
        betas: Decay of AdamW's two averages.
        warmup_epochs: Length of the linear warm-up.
        final_lr: Where the cosine ends.
        final_weight_decay: Weight decay moves here by half a cosine over the whole run, warm-up included. DINO: from
            0.04 to 0.4 (https://github.com/facebookresearch/dino, ``main_dino.py``). None: it stays.
        layer_decay: For fine-tuning: each layer of the child ``encoder``, as timm's ``group_matcher`` counts them, has
            the rate of the layer above it times this; the layer on top, with the full rate, is what stands beside the
            encoder (a head), or else the encoder's own last. The rule of BEiT and MAE
            (https://github.com/facebookresearch/mae, ``util/lr_decay.py``), but for two things: timm counts a ViT's
            last norm to its last block and not to the head, and position embeddings and class tokens are decayed, like
            any other weights.
    """
    return _Cosine(
        functools.partial(
            torch.optim.AdamW, betas=(_below_one("betas[0]", betas[0]), _below_one("betas[1]", betas[1]))
        ),
        lr=lr,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        final_lr=final_lr,
        final_weight_decay=final_weight_decay,
        layer_decay=layer_decay,
    )


def lars_cosine(
    lr: float,
    *,
    weight_decay: float = 1e-6,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    warmup_epochs: float = 10,
    final_lr: float = 0.0,
    clip: bool = False,
    bias_and_norm_lr: float | None = None,
) -> MakeOptimizer:
    """LARS for large batches; biases and norms are excluded from decay and adaptation.

    Defaults: SimCLR, section 2.2 and https://github.com/google-research/simclr, ``lars_optimizer.py``. SimCLR's
    own rules for the rate, which are the caller's to apply: 0.3 * global_batch_size / 256, or
    0.075 * sqrt(global_batch_size).

    Args:
        lr: Learning rate.
        weight_decay: Of the weights.
        momentum: Of the adapted gradient.
        trust_coefficient: The norm of a weight's adapted gradient, as a part of the weight's own norm.
        warmup_epochs: Length of the linear warm-up.
        final_lr: Where the cosine ends. SwAV: lr / 1000 (https://github.com/facebookresearch/swav, ``scripts``);
            Barlow Twins and VICReg too (their ``adjust_learning_rate``).
        clip: No adapted gradient is longer than it was before; see ``LARS``.
        bias_and_norm_lr: Another rate for biases and norms, with the same warm-up and cosine: it ends at
            ``final_lr / lr`` of itself. Barlow Twins: 0.0048 where the weights have 0.2
            (https://github.com/facebookresearch/barlowtwins, ``main.py``). None: ``lr``.
    """
    return _Cosine(
        functools.partial(
            LARS, momentum=_below_one("momentum", momentum), trust_coefficient=trust_coefficient, clip=clip
        ),
        lr=lr,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        final_lr=final_lr,
        bias_and_norm_lr=bias_and_norm_lr,
    )


def warmup_cosine(step: int, *, warmup_steps: int, steps: int, final: float = 0.0) -> float:
    """The factor on the learning rate at ``step`` (from 0): 1/warmup_steps ... 1, then a cosine from 1 to ``final``.

    The codes of SwAV, DINO, Barlow Twins and VICReg warm up from a first step of zero (of 0.3 in SwAV's scripts),
    which here is the first that moves; from the end of the warm-up on, the rates are theirs.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class LARS(Optimizer):
    """SGD with momentum whose step on each weight is proportional to the weight's norm.

    You, Gitman, Ginsburg. Large Batch Training of Convolutional Networks. https://arxiv.org/abs/1708.03888,
    Algorithm 1, in the form of PyTorch's SGD: the rate multiplies the momentum buffer instead of entering it, so
    the two differ only while the rate changes. ``g' = g + decay w``; ``v = momentum v + trust |w| / |g'| g'``;
    ``w = w - lr v``. Biases and norms take plain SGD steps, as in SimCLR.

    With ``clip``, ``trust |w| / |g'|`` becomes ``min(trust |w| / (lr |g'|), 1)`` with the ``lr`` of this step, which
    then only bounds the step. This is LARC (https://github.com/vturrisi/solo-learn, ``solo/utils/lars.py``, its
    ``clip_lars_lr``; https://github.com/NVIDIA/apex, ``apex/parallel/LARC.py``), except that their denominator is
    ``|g| + decay |w| + 1e-8``, never less than ours, and that a weight whose gradient is all zeros is not decayed.

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
        clip: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "clip": clip,
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
            if group["clip"]:
                ratios = (ratios / group["lr"]).clamp(max=1)
            # A weight or a gradient that is all zeros has no ratio: SimCLR's code then takes a plain step.
            ratios = ratios.where((weight_norms > 0) & (update_norms > 0), 1.0)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        velocities = [self.state[w].setdefault("velocity", torch.zeros_like(w)) for w in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        torch._foreach_add_(weights, velocities, alpha=-group["lr"])


class ScheduleWarning(UserWarning):
    """A resumed run's schedule is not the one that its checkpoint was trained by."""


class _Schedule(LambdaLR):
    """LambdaLR for weight decay too: ``weight_decays``, like ``factors``, has a function of the step for each group.

    A checkpoint holds the step alone: rates are the run's, as they would be had it been so from its first step on.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factors: list[Callable[[int], float]],
        weight_decays: list[Callable[[int], float]],
    ) -> None:
        self.weight_decays = weight_decays
        super().__init__(optimizer, factors)

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        for group, weight_decay in zip(self.optimizer.param_groups, self.weight_decays, strict=True):
            group["weight_decay"] = weight_decay(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "_last_lr": self.get_last_lr()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = self.last_epoch + 1  # torch counts the call in its own constructor too
        rates = [base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        self._last_lr = rates
        for group, rate, weight_decay in zip(self.optimizer.param_groups, rates, self.weight_decays, strict=True):
            group["lr"], group["weight_decay"] = rate, weight_decay(self.last_epoch)
        before = state_dict["_last_lr"]
        if not all(math.isclose(rate, old, rel_tol=1e-9) for rate, old in zip(rates, before, strict=True)):
            moves = "climbs back" if max(rates) > max(before) else "falls"
            rank_zero_warn(
                f"At optimizer step {self.last_epoch} the learning rate {moves} from {max(before):.6g} to "
                f"{max(rates):.6g}: this run's schedule has another length or other rates than the checkpoint's.",
                category=ScheduleWarning,
            )


class _Kind(NamedTuple):
    """What a parameter's rate and weight decay depend on. The first kind in order: weights at the full rate."""

    fixed: bool
    layers_above: int
    bias_or_norm: bool


@dataclass(frozen=True)
class _Cosine:
    """A MakeOptimizer: the optimizer over everything that trains, and its schedule."""

    optimizer: Callable[..., Optimizer]
    lr: float
    weight_decay: float
    warmup_epochs: float
    final_lr: float
    final_weight_decay: float | None = None
    decay_bias_and_norm: bool = False
    bias_and_norm_lr: float | None = None
    fixed_lr: Sequence[str] = ()
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        _require(self.lr > 0, "lr must be positive", self.lr)
        _require(self.weight_decay >= 0, "weight_decay must be zero or more", self.weight_decay)
        _require(self.warmup_epochs >= 0, "warmup_epochs must be zero or more", self.warmup_epochs)
        _require(0 <= self.final_lr <= self.lr, f"final_lr must lie between zero and lr={self.lr}", self.final_lr)
        _require(0 < self.layer_decay <= 1, "layer_decay must lie in (0, 1]", self.layer_decay)
        if self.final_weight_decay is not None:
            _require(self.final_weight_decay >= 0, "final_weight_decay must be zero or more", self.final_weight_decay)
        if self.bias_and_norm_lr is not None:
            _require(self.bias_and_norm_lr > 0, "bias_and_norm_lr must be positive", self.bias_and_norm_lr)

    def __call__(self, module: nn.Module, length: TrainingLength) -> tuple[Optimizer, LRScheduler]:
        warmup_steps = round(self.warmup_epochs * length.steps_per_epoch)
        if warmup_steps >= length.steps and self.warmup_epochs > 0:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs:g} takes {warmup_steps} optimizer steps, but the run has only "
                f"{length.steps}. Train longer or shorten the warm-up."
            )
        rate = functools.partial(
            warmup_cosine, warmup_steps=warmup_steps, steps=length.steps, final=self.final_lr / self.lr
        )
        decay = functools.partial(self._weight_decay, steps=length.steps)
        groups: list[dict[str, Any]] = []
        factors: list[Callable[[int], float]] = []
        weight_decays: list[Callable[[int], float]] = []
        for kind, parameters in sorted(self._kinds(module).items()):
            lr = (self.bias_and_norm_lr or self.lr) if kind.bias_or_norm else self.lr
            groups.append({"params": parameters, "lr": lr * self.layer_decay**kind.layers_above})
            factors.append((lambda _: 1.0) if kind.fixed else rate)
            decayed = self.decay_bias_and_norm or not kind.bias_or_norm
            weight_decays.append(decay if decayed else lambda _: 0.0)
        optimizer = self.optimizer(groups, lr=self.lr)
        return optimizer, _Schedule(optimizer, factors, weight_decays)

    def _weight_decay(self, step: int, *, steps: int) -> float:
        if self.final_weight_decay is None:
            return self.weight_decay
        left = warmup_cosine(step, warmup_steps=0, steps=steps)  # of the way from the first to the final one
        return self.final_weight_decay + (self.weight_decay - self.final_weight_decay) * left

    def _kinds(self, module: nn.Module) -> dict[_Kind, list[nn.Parameter]]:
        """The parameters that train, by kind."""
        trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        children = {name.partition(".")[0] for name in trained}
        for child in self.fixed_lr:
            if child not in children:
                raise ValueError(
                    f"fixed_lr names {child!r}, which is no child of {type(module).__name__} that trains. Those are "
                    f"{sorted(children)}."
                )
        above = _layers_above(module, trained) if self.layer_decay != 1 else {}
        kinds: dict[_Kind, list[nn.Parameter]] = {}
        for name, parameter in trained.items():
            kind = _Kind(name.partition(".")[0] in self.fixed_lr, above.get(name, 0), parameter.ndim < 2)
            kinds.setdefault(kind, []).append(parameter)
        return kinds


def _layers_above(module: nn.Module, trained: Collection[str]) -> dict[str, int]:
    """How many layers lie above each parameter of the encoder; what stands beside the encoder is the top layer."""
    encoder = getattr(module, "encoder", None)
    if encoder is None or not hasattr(encoder, "group_matcher"):
        raise ValueError(
            f"layer_decay needs an encoder that says which layers it has, by timm's group_matcher, and that of "
            f"{type(module).__name__} ({type(encoder).__name__}) does not. Use a timm model, or layer_decay=1."
        )
    from timm.models import group_parameters

    numbers = group_parameters(encoder, encoder.group_matcher(coarse=False), reverse=True)  # from 0, the stem
    layers = {f"encoder.{name}": number for name, number in numbers.items()}
    top = max(layers.values()) + any(name not in layers for name in trained)
    return {name: top - layer for name, layer in layers.items()}


def _below_one(name: str, value: float) -> float:
    _require(0 <= value < 1, f"{name} must lie in [0, 1)", value)
    return value


def _require(condition: bool, rule: str, value: float) -> None:
    if not condition:
        raise ValueError(f"{rule}, got {value}.")
