"""A step whose loss or gradient is not finite never reaches the weights: it ends the run, or is left out."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from contrastive.callbacks.batches import index_of
from contrastive.callbacks.loops import log_epoch
from contrastive.runs.checkpoints import newest
from contrastive.runs.disk import write_text

RECORD = "non_finite.json"  # a list, the newest step last
CALMER = (
    'Lower the learning rate or lengthen its warm-up; train in a wider precision ("bf16-mixed" or "32-true" in place '
    'of "16-mixed")'
)
SHOWN = 5  # names and images in a message; the record has all images


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or a weight became infinite or not a number; the message says where, and what to do."""


class NonFiniteWarning(UserWarning):
    """An optimizer step was left out, because its loss or its gradient was not finite."""


@dataclass
class _Batch:
    """One batch of the step: its number in the epoch, its images' numbers, and its loss as it is propagated back."""

    number: int
    index: Tensor | None
    loss: Tensor | None = None


class FiniteLoss(pl.Callback):
    """Stops a run at the first step that is not finite, or leaves up to ``budget`` such steps out.

    ``Trainer(callbacks=[..., FiniteLoss("run")])``. Before every optimizer step, each rank looks at the losses of the
    step's batches and at the gradients, and all ranks agree: what one of them finds counts for all.

    - **Stop** (the default): ``NonFiniteError`` on every rank. Weights, the optimizer's state and all buffers (queues,
      centres, BatchNorm's statistics) are as they were before the step's first batch, so that nothing can save others.
    - **Leave out**, up to ``budget`` steps in a run, resumed ones included: the same, a ``NonFiniteWarning``, and the
      run goes on; the step counts, and the schedule moves on. The gradients are set to None, by which every optimizer
      that calls its closure once leaves parameters and their state alone, and so do ``ContrastiveModule``'s momentum
      branches. What else a module changes in ``training_step`` or in hooks of its own, such as parameters, is not
      brought back; nor are the global random states, and a gradient scaler lowers its scale.

    Either is recorded in ``folder/non_finite.json``: step, epoch, and of each rank the losses, the images' ``index``,
    and the names of the gradients and weights that are not finite. No checkpoint of weights that are not finite is
    written (but Lightning does not ask for checkpoints of weights alone).

    With ``precision="16-mixed"`` only the losses count: infinite gradients are how its scaler finds its scale, and it
    leaves those steps out by itself.

    Costs one pass over the gradients, a copy of all buffers, with several ranks a collective of one number, and one
    read by the host, for which a GPU's queue runs empty once a step.

    Logs ``train/skipped_steps`` of the run, where there is a budget.

    Args:
        folder: Where to record; the trainer's ``default_root_dir`` by default.
        budget: How many steps a run may leave out.

    Raises:
        NonFiniteError: See above.
        TypeError: The module optimizes by hand, or, with a budget, an optimizer calls its closure more than once or
            unscales gradients by itself. When training starts.
    """

    def __init__(self, folder: str | Path | None = None, *, budget: int = 0) -> None:
        if budget < 0:
            raise ValueError(f"budget = {budget}: it is how many steps may be left out, 0 or more.")
        self.folder = None if folder is None else Path(folder)
        self.budget = budget
        self.skipped_steps = 0
        self._batches: list[_Batch] = []  # whose gradients the next optimizer step accumulates
        self._decided = False
        self._buffers = _Buffers()  # as they were before the first of them

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A new run has left out nothing; a resumed one says so next."""
        if stage == "fit":
            self.skipped_steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what cannot be watched."""
        if not pl_module.automatic_optimization:
            raise TypeError(
                f"{type(pl_module).__name__} optimizes by hand (automatic_optimization=False): FiniteLoss cannot tell "
                "which losses a step is of. Remove it, and check the losses in training_step."
            )
        for optimizer in trainer.optimizers if self.budget else []:
            unscales = getattr(optimizer, "_step_supports_amp_scaling", False) and _scaler(trainer) is not None
            if isinstance(optimizer, torch.optim.LBFGS) or unscales:
                raise TypeError(
                    f"FiniteLoss(budget={self.budget}) cannot leave out steps of {type(optimizer).__name__}, which "
                    f"{'unscales gradients by itself (fused=True)' if unscales else 'calls its closure repeatedly'}. "
                    f"Use FiniteLoss(), which stops, or {'fused=False' if unscales else 'another optimizer'}."
                )
        self._batches, self._decided = [], False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the images, and before a step's first batch what the buffers hold."""
        if self._decided or not self._batches:
            self._batches, self._decided = [], False
            self._buffers.remember(pl_module)
        self._batches.append(_Batch(batch_idx, index_of(batch)))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Note the loss."""
        self._batches[-1].loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Let the step happen, leave it out, or stop."""
        self._decided = True
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        losses = [batch.loss for batch in self._batches if batch.loss is not None]
        if _all_finite(trainer, losses if _scaler(trainer) is not None else [*losses, *gradients]):
            return
        skip = self.skipped_steps < self.budget
        ranks = self._found(trainer, pl_module)
        optimizer.zero_grad(set_to_none=True)
        self._buffers.restore()
        event = {
            "step": trainer.global_step + 1,
            "epoch": trainer.current_epoch,
            "outcome": "skipped" if skip else "stopped",
            "ranks": ranks,
        }
        file = (Path(trainer.default_root_dir) if self.folder is None else self.folder) / RECORD
        if trainer.is_global_zero:
            _write(event, file)
        what = f"Step {event['step']}, in epoch {event['epoch']}, is not finite: {_told(ranks)}. {file} has all."
        if not skip:
            spent = f"The budget of {self.budget} is spent. " if self.budget else ""
            raise NonFiniteError(
                f"{what} {_newest_checkpoint(trainer)} {spent}{CALMER}; look at these images; or have some such steps "
                "left out: FiniteLoss(budget=10), --skip-non-finite 10."
            )
        self.skipped_steps += 1
        rank_zero_warn(
            f"{what} It is left out, as {self.skipped_steps} of at most {self.budget}.", category=NonFiniteWarning
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log how many steps were left out so far."""
        if self.budget:
            log_epoch(
                pl_module,
                {"train/skipped_steps": torch.tensor(float(self.skipped_steps), device=trainer.strategy.root_device)},
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to overwrite good weights by such that are not finite.

        Raises:
            NonFiniteError: They are not, on any rank; all of them call this.
        """
        if not _all_finite(trainer, [p.detach() for p in pl_module.parameters()]):
            names = _listed(_not_finite(dict(pl_module.named_parameters()))) or "those of another rank"
            raise NonFiniteError(
                f"Weights are not finite after step {trainer.global_step}: {names}. No checkpoint of them is written. "
                f"{_newest_checkpoint(trainer)} {CALMER}."
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the run's tensors."""
        self._batches, self._buffers = [], _Buffers()

    def state_dict(self) -> dict[str, Any]:
        """How much of the budget is spent."""
        return {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.skipped_steps = state_dict["skipped_steps"]

    def _found(self, trainer: pl.Trainer, module: pl.LightningModule) -> list[dict[str, Any]]:
        """What each rank knows of the step, on every rank, as plain values."""
        scaler = _scaler(trainer)
        factor = trainer.accumulate_grad_batches / (1 if scaler is None else scaler.get_scale())
        parameters = dict(module.named_parameters())
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        mine = {
            "batches": [
                {
                    "batch": batch.number,
                    "loss": None if batch.loss is None else _plain(float(batch.loss) * factor),
                    "images": None if batch.index is None else batch.index.tolist(),
                }
                for batch in self._batches
            ],
            "gradients": _not_finite(gradients),
            "weights": _not_finite(parameters),
        }
        if trainer.world_size == 1:
            return [mine]
        every: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(every, mine)
        return every


class _Buffers:
    """What a module's buffers hold, to be brought back."""

    def __init__(self) -> None:
        self._places: list[tuple[nn.Module, str, Tensor]] = []
        self._copies: list[Tensor] = []

    def remember(self, module: nn.Module) -> None:
        """In copies that are used again as long as the buffers are the same tensors."""
        places = [
            (owner, name, buffer) for owner in module.modules() for name, buffer in owner.named_buffers(recurse=False)
        ]
        if [id(buffer) for *_, buffer in places] != [id(buffer) for *_, buffer in self._places]:
            self._places, self._copies = places, [torch.empty_like(buffer) for *_, buffer in places]
        _copy([buffer for *_, buffer in places], self._copies)

    def restore(self) -> None:
        """Also where another tensor was put in a buffer's place."""
        _copy(self._copies, [buffer for *_, buffer in self._places])
        for owner, name, buffer in self._places:
            setattr(owner, name, buffer)


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """One kernel for all tensors of a type, where a BatchNorm alone has three."""
    for dtype in {source.dtype for source in sources}:
        pairs = [(target, source) for target, source in zip(targets, sources, strict=True) if source.dtype == dtype]
        torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])


def _scaler(trainer: pl.Trainer) -> Any:
    """The gradient scaler, where there is one."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _all_finite(trainer: pl.Trainer, tensors: Sequence[Tensor]) -> bool:
    """Whether they are, on every rank; all ranks call this, and the host waits for the device."""
    parts = [_local(tensor) for tensor in tensors if tensor.is_floating_point()]
    # The norm is a quick pass, which finite numbers may overflow; only then each of them is asked.
    if _agreed(trainer, nn.utils.get_total_norm(parts).isfinite()):
        return True
    return _agreed(trainer, torch.tensor(all(bool(part.isfinite().all()) for part in parts)))


def _agreed(trainer: pl.Trainer, holds: Tensor) -> bool:
    """Whether it holds on every rank."""
    agreed = holds.int().to(trainer.strategy.root_device)
    if trainer.world_size > 1:
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return bool(agreed)


def _local(tensor: Tensor) -> Tensor:
    """This rank's numbers of a tensor that may be sharded or sparse."""
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def _not_finite(named: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in named.items() if not _local(tensor.detach()).isfinite().all()]


def _told(ranks: Sequence[Mapping[str, Any]]) -> str:
    """In words, the likeliest cause first."""
    named = "rank {}: " if len(ranks) > 1 else ""
    broken = sorted({name for found in ranks for name in found["weights"]})
    if broken:
        return f"weights were not before it, {_listed(broken)}"
    causes = [
        f"{named.format(rank)}the loss is {batch['loss']} for {_images(batch)}"
        for rank, found in enumerate(ranks)
        for batch in found["batches"]
        if isinstance(batch["loss"], str)
    ]
    if causes:
        return "; ".join(causes)
    gradients = list(dict.fromkeys(name for found in ranks for name in found["gradients"]))
    images = "; ".join(
        f"{named.format(rank)}{_images(batch)}" for rank, found in enumerate(ranks) for batch in found["batches"]
    )
    return f"the gradient of {_listed(gradients)}, with finite losses, for {images}"


def _images(batch: Mapping[str, Any]) -> str:
    where = f"batch {batch['batch']}"
    return where if batch["images"] is None else f"the images {_listed(batch['images'])} of {where}"


def _listed(things: Iterable[Any]) -> str:
    names = [str(thing) for thing in things]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _plain(number: float) -> float | str:
    """As JSON has it, which knows no nan."""
    return number if math.isfinite(number) else str(number)


def _write(event: Mapping[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    lines = ",\n".join(json.dumps(one) for one in [*earlier, event])
    write_text(file, f"[{lines}]\n")


def _newest_checkpoint(trainer: pl.Trainer) -> str:
    """Of the folders that this run's callbacks write to, in a sentence."""
    folders = {getattr(one, "dirpath", getattr(one, "folder", None)) for one in trainer.checkpoint_callbacks}
    files = [newest(Path(folder)).path for folder in folders if folder]
    file = max((file for file in files if file), key=lambda file: file.stat().st_mtime_ns, default=None)
    return "There is no checkpoint yet." if file is None else f"The newest checkpoint is {file}."
