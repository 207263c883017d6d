"""What the probes ask of Lightning's loops."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor


def is_due(trainer: pl.Trainer, every_n_epochs: int) -> bool:
    """Whether to measure now: in every n-th epoch and the last; in ``trainer.validate``; never as a sanity check."""
    if trainer.sanity_checking:
        return False
    if trainer.state.fn != TrainerFn.FITTING:
        return True
    epoch = trainer.current_epoch + 1
    return epoch % every_n_epochs == 0 or epoch == trainer.max_epochs


def check_every_n_epochs(every_n_epochs: int) -> int:
    """The argument.

    Raises:
        ValueError: It is less than 1.
    """
    if every_n_epochs < 1:
        raise ValueError(f"every_n_epochs = {every_n_epochs} must be 1 or more.")
    return every_n_epochs


def require_validation(trainer: pl.Trainer, reader: str) -> None:
    """Complain, once training starts, if there is nothing to score.

    Raises:
        TypeError: There is no validation loader, or no ``validation_step``, and validation was not switched off.
    """
    if trainer.limit_val_batches == 0:
        return
    loaded_none = trainer.val_dataloaders is not None and not sum(trainer.num_val_batches)
    if not trainer.enable_validation or loaded_none:
        raise TypeError(
            f"{reader} scores the features that validation_step returns, but there is no validation loader or no "
            "validation_step. Give trainer.fit a validation loader (with contrastive.data: val images); or pass "
            "limit_val_batches=0 to the Trainer to do without the score."
        )


def validation_loaders(trainer: pl.Trainer) -> dict[str, Any]:
    """The loaders being validated, under the suffixes of their metrics: "" for a single one, else "/0", "/1", ..., or
    "/key" where they came as a mapping.
    """
    fitting = trainer.state.fn == TrainerFn.FITTING
    loop = trainer.fit_loop.epoch_loop.val_loop if fitting else trainer.validate_loop
    combined = loop._combined_loader
    assert combined is not None  # validation is running
    if len(combined.flattened) == 1:
        return {"": combined.flattened[0]}
    keys = list(combined.iterables) if isinstance(combined.iterables, Mapping) else []
    names = keys if len(keys) == len(combined.flattened) else range(len(combined.flattened))
    return {f"/{name}": loader for name, loader in zip(names, combined.flattened, strict=True)}


def log_epoch(module: pl.LightningModule, values: Mapping[str, Tensor], *, prog_bar: bool = False) -> None:
    """Log values that are the same on every rank already.

    ``sync_dist`` averages equal numbers; without it Lightning warns that ranks might differ.
    """
    for key, value in values.items():
        module.log(key, value.float(), prog_bar=prog_bar, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
