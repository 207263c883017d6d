"""Online linear probe: how linearly separable are the features, at every point of training?"""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from contrastive.callbacks.contract import read_step, was_skipped
from contrastive.callbacks.loops import check_every_n_epochs, is_due, log_epoch, require_validation, validation_loaders
from contrastive.callbacks.tally import Tally, log_accuracies
from contrastive.callbacks.transfer import Transfer
from contrastive.evaluation import LinearHeads, top_hits

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
NEEDS = ("features", "labels")


class LinearProbe(pl.Callback):
    """Train linear classifiers beside the method, on its detached features, and log how well they do.

    One head a learning rate, all trained at once on the training views (``contrastive.evaluation.LinearHeads``). The
    head that reports is the one that has done best on recent training batches, each scored before it was learned from:
    the validation labels have no say in it. Every validation image counts once, however samplers pad the ranks.

    The run is left as it is: no gradient reaches the encoder, and the heads, their optimizer and their state live here,
    in the checkpoint under this callback's name. While the encoder moves, the probe lags behind it; report the accuracy
    of ``contrastive evaluate``.

    Logs, as fractions: ``linear_probe/top1`` and, with more than 5 classes, ``linear_probe/top5`` on the validation
    loader (``linear_probe/top1/0``, ``/1``, ..., or ``/key`` of a mapping, where there are several);
    ``linear_probe/train_top1`` over the epoch's training views, scored before learning from them; ``linear_probe/lr``,
    the reporting head's learning rate; with ``data``, ``linear_probe/transfer_top1``, ``transfer_top5`` and
    ``transfer_l2``.

    Args:
        num_classes: Classes of the labels that ``training_step`` and ``validation_step`` return. None trains no heads
            and needs no labels there: for measuring ``data`` alone.
        learning_rates: One head each; features are standardised first, so that they suit any encoder.
        momentum: Of the heads' SGD.
        weight_decay: Of the heads' SGD.
        data: Another labelled data module, of ``contrastive.data``: transfer to it is measured by linear evaluation on
            frozen features (``contrastive.evaluation.linear_evaluation``), after validation, or after the training
            epoch where there is no validation. The trainer need not know it.
        every_n_epochs: How often ``data`` is measured; the last epoch is measured too.
        name: The metrics' prefix, and the checkpoint's key: give each probe of a run its own.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        learning_rates: Sequence[float] = LEARNING_RATES,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        data: pl.LightningDataModule | None = None,
        every_n_epochs: int = 1,
        name: str = "linear_probe",
    ) -> None:
        if num_classes is None and data is None:
            raise ValueError("LinearProbe needs num_classes, the classes of the training labels, or data, or both.")
        self.heads = (
            None
            if num_classes is None
            else LinearHeads(num_classes, learning_rates, momentum=momentum, weight_decay=weight_decay)
        )
        self.transfer = None if data is None else Transfer(data)
        self.every_n_epochs = check_every_n_epochs(every_n_epochs)
        self.name = name
        self._train_counts: Tensor | None = None  # right and all rows of this epoch
        self._tallies: dict[str, Tally] = {}
        self._measured_epoch: int | None = None

    @property
    def state_key(self) -> str:
        """The checkpoint's key."""
        return f"{type(self).__name__}[{self.name}]"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that there will be something to score, and get ``data`` ready."""
        if self.heads is not None:
            require_validation(trainer, "LinearProbe")
            self.heads.to(pl_module.device)
        if self.transfer is not None:
            self.transfer.prepare(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin this epoch's counts."""
        self._train_counts = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score the heads on this batch's views, then train them on it."""
        if self.heads is None or was_skipped(outputs, pl_module):
            return
        watched = read_step(outputs, NEEDS, reader="LinearProbe", hook="training_step", module=pl_module)
        counts = torch.stack(self.heads.update(watched.features, watched.labels_of_rows))
        self._train_counts = counts if self._train_counts is None else self._train_counts + counts

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what training the heads showed; measure ``data`` if no validation of this epoch did."""
        if self.heads is not None and self._train_counts is not None:
            right, rows = self._train_counts
            if int(rows):
                values = {"train_top1": right / rows, "lr": self.heads.chosen_learning_rate}
                log_epoch(pl_module, {f"{self.name}/{key}": value for key, value in values.items()})
            else:
                rank_zero_warn(f"{self.name} learned nothing in epoch {trainer.current_epoch}: no image has a label.")
        if self._measured_epoch != trainer.current_epoch:
            self._measure_transfer(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the counts of every loader."""
        self._tallies = {}
        if self.heads is None or trainer.sanity_checking:
            return
        if not self.heads.is_trained:
            rank_zero_warn("LinearProbe scores nothing, being untrained: validate a checkpoint of a run that had it.")
            return
        self.heads.to(pl_module.device)
        for suffix, loader in validation_loaders(trainer).items():
            self._tallies[suffix] = Tally(loader, pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the reporting head on this batch."""
        if self.heads is None:
            return
        watched = read_step(outputs, NEEDS, reader="LinearProbe", hook="validation_step", module=pl_module)
        if self._tallies:
            tally = list(self._tallies.values())[dataloader_idx]
            labels = watched.labels_of_rows
            tally.add(top_hits(self.heads.logits(watched.features), labels), labels, watched.index)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the accuracies, and measure ``data``."""
        if self.heads is not None:
            log_accuracies(pl_module, self._tallies, self.name, self.heads.num_classes)
        self._measure_transfer(trainer, pl_module)

    def _measure_transfer(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.transfer is None or not is_due(trainer, self.every_n_epochs):
            return
        values = self.transfer.measure(trainer, module)
        log_epoch(module, {f"{self.name}/{key}": value for key, value in values.items()})
        self._measured_epoch = trainer.current_epoch

    def state_dict(self) -> dict[str, Any]:
        """The heads and their optimizer."""
        return {} if self.heads is None else self.heads.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: It was saved with another number of heads or classes.
        """
        if self.heads is not None:
            self.heads.load_state_dict(state_dict)
