"""FSDP2: weights, gradients and the optimizer's state dealt out over the ranks, for what does not fit on each of them.

    strategy = ModelParallelStrategy(data_parallel_size=8, tensor_parallel_size=1, save_distributed_checkpoint=False)

and ``ContrastiveModule.configure_model`` shards the method. Losses, gradients and running statistics are those of DDP.
"""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.optimizer import Optimizer

from contrastive.distributed import from_rank_zero


def shard_(module: pl.LightningModule) -> None:
    """Shard every child of the module that has parameters, each whole; those that are sharded already stay as they are.

    Outside of their forward and backward passes their parameters are sharded, also while momentum branches move.

    Args:
        module: In ``configure_model``, where its ``device_mesh`` is that of ``ModelParallelStrategy``.

    Raises:
        ValueError: Parameters lie on the module itself, where nothing would add their gradients up; images would not be
            each on one rank; or checkpoints would be folders, which are not read safely.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh, strategy = module.device_mesh, module.trainer.strategy
    if mesh is None:
        raise ValueError("There is no device mesh: use the strategy ModelParallelStrategy.")
    ranks = mesh.size()
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"{mesh['tensor_parallel'].size()} ranks would share their images (tensor_parallel_size), and the losses "
            f"join the images of all ranks. {_advice(ranks)}"
        )
    if getattr(strategy, "_save_distributed_checkpoint", False):
        raise ValueError(
            "Checkpoints would be folders (save_distributed_checkpoint), which torch unpickles unsafely, and kills "
            f"leave torn. {_advice(ranks)}"
        )
    if own := [name for name, _ in module.named_parameters(recurse=False)]:
        raise ValueError(
            f"{type(module).__name__} has parameters of its own, {own}, which cannot be sharded: put them into a child "
            "module that uses them in its forward."
        )
    for child in module.children():
        if any(True for _ in child.parameters()) and not isinstance(child, FSDPModule):
            fully_shard(child, mesh=mesh["data_parallel"], reshard_after_forward=True)


def check_all_sharded(module: pl.LightningModule) -> None:
    """Of a module in parts, only what is sharded has the same gradients on all ranks.

    Raises:
        ValueError: Some parameters are sharded and others are not.
    """
    sharded = {name: isinstance(parameter, DTensor) for name, parameter in module.named_parameters()}
    left_out = sorted({name.partition(".")[0] for name, is_sharded in sharded.items() if not is_sharded})
    if left_out and any(sharded.values()):
        raise ValueError(
            f"Each rank would train {', '.join(left_out)} of {type(module).__name__} by itself, as only other parts "
            "are sharded. Call contrastive.sharding.shard_(self) in configure_model, or fully_shard on all of them."
        )


@torch.no_grad()
def share_running_statistics_(module: nn.Module) -> None:
    """Give all ranks the first one's running statistics of BatchNorm, as DDP does before every step."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    both = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]
    if both:
        shared = from_rank_zero(torch.cat(both)).split([len(buffer) for buffer in both])
        torch._foreach_copy_(both, list(shared))


def sharded_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A value for a parameter, dealt out as that is, if it is; the first rank's counts."""
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def register_step_post_hook(optimizer: Optimizer, hook: Callable[..., None], num_steps: Callable[[], int]) -> None:
    """Have a hook called after each step, but for the one by which torch makes an optimizer's state.

    To write a checkpoint before the first step, or to read one, torch takes a step at rate 0 with gradients of 0. That
    leaves a count, and momenta of the weight decay; so the run's first step begins without any state.

    Args:
        optimizer: Of sharded parameters.
        hook: Called with the optimizer, and the arguments of its step.
        num_steps: How many steps the run has taken.
    """
    had_state = False

    def before(optimizer: Optimizer, *_: Any) -> None:
        nonlocal had_state
        if num_steps() == 0:
            optimizer.state.clear()
        had_state = bool(optimizer.state)

    def after(optimizer: Optimizer, *arguments: Any) -> None:
        if had_state or not _moves_nothing(optimizer):  # gradients are there now: the step may have made them
            hook(optimizer, *arguments)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _moves_nothing(optimizer: Optimizer) -> bool:
    """Whether all rates and gradients are 0."""
    if any(group["lr"] for group in optimizer.param_groups):
        return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not any((g.to_local() if isinstance(g, DTensor) else g).any() for g in gradients)


def _advice(ranks: int) -> str:
    return (
        f"Use ModelParallelStrategy(data_parallel_size={ranks}, tensor_parallel_size=1, "
        "save_distributed_checkpoint=False)."
    )
