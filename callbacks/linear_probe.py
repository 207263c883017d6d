"""Linear probe: how linearly separable are the features, at every point of training?"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from contrastive.callbacks.bank import bank_features, bank_loader, num_classes_of
from contrastive.callbacks.classifiers import L2_GRID, Classifier, fit_lda, fit_logistic
from contrastive.callbacks.contract import was_skipped
from contrastive.callbacks.loops import check_every_n_epochs, is_due, log_epoch
from contrastive.callbacks.transfer import Transfer
from contrastive.callbacks.watcher import Watcher
from contrastive.evaluation import LinearHeads

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
COUNTS = "train_counts"  # in the checkpoint, beside the heads'
NAMES = {"sgd": "linear_probe", "lda": "lda", "logistic": "linear_evaluation"}


class LinearProbe(Watcher):
    """Score the validation images by linear classifiers of the features, while the encoder is being trained.

    - ``solver="sgd"`` trains heads beside the method, on its detached features of the training views, one a learning
      rate and all at once (``contrastive.evaluation.LinearHeads``). The head that reports is the one that has done best
      on recent training batches, each scored before it was learned from. While the encoder moves, it lags behind.
    - ``solver="lda"`` is linear discriminant analysis (``contrastive.evaluation.lda``), fitted before each validation
      on the bank: all training images, unaugmented, by the encoder as it stands. It is the instant one: closed form,
      from sums over images, so that features stay on the rank that encoded them.
    - ``solver="logistic"`` is logistic regression on the bank at its optimum, its strength chosen on a held-out tenth,
      as in ``contrastive.evaluation.linear_evaluation`` and in its name. Every rank holds the bank, N x D x 4 bytes.

    The validation labels have no say in what is learned and chosen. Every validation image counts once, however
    samplers pad the ranks. The run is left as it is: no gradient reaches the encoder, and the heads, their optimizer
    and their state live here, in the checkpoint under this callback's name.

    Logs, as fractions: ``linear_probe/top1``, ``lda/top1`` or ``linear_evaluation/top1`` and, with more than 5 classes,
    ``.../top5`` on the validation loader (``.../top1/0``, ``/1``, ..., or ``/key`` of a mapping, where there are
    several). Of "sgd" also ``linear_probe/train_top1`` over the epoch's training views, scored before learning from
    them, and ``linear_probe/lr``, the reporting head's learning rate; with ``data``, ``linear_probe/transfer_top1``,
    ``transfer_top5`` and ``transfer_l2``. Of "logistic" also ``linear_evaluation/l2`` and ``l2_at_edge``, 1 where the
    chosen strength is the grid's first or last: a wider grid might do better.

    Args:
        num_classes: Classes of the labels. None asks the data module or else the labels, but for "sgd": there None
            trains no heads and needs no labels, for measuring ``data`` alone.
        solver: See above.
        learning_rates: Of "sgd": one head each; features are standardised first, so that they suit any encoder.
        momentum: Of "sgd".
        weight_decay: Of "sgd".
        l2: Of "logistic": the grid of strengths.
        bank: Of "lda" and "logistic": loader of the labelled bank's images, batches as in training; by default the
            ``bank_dataloader()`` of the data module the run is trained on. Over ranks it may be sharded or not.
        data: Of "sgd": another labelled data module, of ``contrastive.data``: transfer to it is measured by linear
            evaluation on frozen features (``contrastive.evaluation.linear_evaluation``), after validation, or after
            the training epoch where there is no validation. The trainer need not know it.
        every_n_epochs: How often the bank is fitted, and how often ``data`` is measured; the last epoch is, too.
        layer: A submodule, by its name in ``named_modules()``, whose outputs in the steps are the features; so any
            LightningModule can be watched as it is, whatever its steps return. Calls follow each other as views;
            tokens [B, T, D] and maps [B, D, H, W] are averaged to [B, D]; of a tuple the first tensor counts. Labels,
            and an index if there is one, come from the batch: a mapping with "label" or "labels" and "index", or
            (images, labels). The bank's images, "image" or "images" or the first of the tuple, go through
            ``module(images)``. The layer is read through a hook, which splits a compiled network's graph there.
        labels: With ``layer``: a function of the batch that returns its labels, int [B], where they lie elsewhere.
        name: The metrics' prefix, and the checkpoint's key: give each probe of a run its own. By default the
            solver's: "linear_probe", "lda", "linear_evaluation".
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        solver: Literal["sgd", "lda", "logistic"] = "sgd",
        learning_rates: Sequence[float] = LEARNING_RATES,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        l2: Sequence[float] = L2_GRID,
        bank: Iterable[Any] | None = None,
        data: pl.LightningDataModule | None = None,
        every_n_epochs: int = 1,
        layer: str | None = None,
        labels: Callable[[Any], Tensor] | None = None,
        name: str | None = None,
    ) -> None:
        if solver not in NAMES:
            raise ValueError(f"solver = {solver!r} is none of {', '.join(map(repr, NAMES))}.")
        super().__init__(NAMES[solver] if name is None else name, layer, labels)
        if solver == "sgd" and num_classes is None and data is None:
            raise ValueError("LinearProbe needs num_classes, the classes of the training labels, or data, or both.")
        if (bank if solver == "sgd" else data) is not None:
            raise ValueError(
                f"LinearProbe(solver={solver!r}) has no use for {'bank' if solver == 'sgd' else 'data'}=. 'sgd' learns "
                "from training views and may measure transfer to data=; 'lda' and 'logistic' are fitted on bank=."
            )
        self.solver = solver
        self.num_classes = num_classes
        self.heads = (
            LinearHeads(num_classes, learning_rates, momentum=momentum, weight_decay=weight_decay)
            if solver == "sgd" and num_classes is not None
            else None
        )
        self.l2 = tuple(l2)
        self.bank = bank
        self.transfer = None if data is None else Transfer(data)
        self.every_n_epochs = check_every_n_epochs(every_n_epochs)
        self._train_counts: Tensor | None = None  # right and all rows of this epoch
        self._measured_epoch: int | None = None

    @property
    def state_key(self) -> str:
        """The checkpoint's key."""
        return f"{type(self).__name__}[{self.name}]"

    def reads(self, hook: str, batch_idx: int) -> bool:
        """Training batches to learn from, validation batches to score."""
        return self.heads is not None or (self.solver != "sgd" and hook == "validation_step")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that there is a bank, if one is needed."""
        super().on_fit_start(trainer, pl_module)
        if self.solver != "sgd":
            bank_loader(trainer, self.bank, reader="LinearProbe")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Get heads and ``data`` ready."""
        super().on_train_start(trainer, pl_module)
        if self.heads is not None:
            self.heads.to(pl_module.device)
        if self._train_counts is not None:
            self._train_counts = self._train_counts.to(pl_module.device)
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
        watched = self.read(outputs, batch, ("features", "labels"), hook="training_step", module=pl_module)
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

    def classifier(self, trainer: pl.Trainer, module: pl.LightningModule) -> Classifier | None:
        """The reporting head, or what is fitted on the bank if its turn has come."""
        if self.solver != "sgd":
            return self._fitted(trainer, module) if is_due(trainer, self.every_n_epochs) else None
        if self.heads is None or trainer.sanity_checking:
            return None
        if not self.heads.is_trained:
            rank_zero_warn("LinearProbe scores nothing, being untrained: validate a checkpoint of a run that had it.")
            return None
        self.heads.to(module.device)
        return Classifier(self.heads.logits, self.heads.num_classes)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the accuracies, and measure ``data``."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._measure_transfer(trainer, pl_module)

    def _fitted(self, trainer: pl.Trainer, module: pl.LightningModule) -> Classifier | None:
        gather = self.solver != "lda"  # which is fitted from sums over ranks
        bank = bank_features(
            trainer, module, self.bank, reader="LinearProbe", name=self.name, layer=self.layer, gather=gather
        )
        if bank is None:
            return None
        num_classes = num_classes_of(trainer, bank) if self.num_classes is None else self.num_classes
        if self.solver == "lda":
            return fit_lda(bank, num_classes)
        return fit_logistic(bank, num_classes, self.l2)

    def _measure_transfer(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.transfer is None or not is_due(trainer, self.every_n_epochs):
            return
        values = self.transfer.measure(trainer, module, self.layer)
        log_epoch(module, {f"{self.name}/{key}": value for key, value in values.items()})
        self._measured_epoch = trainer.current_epoch

    def state_dict(self) -> dict[str, Any]:
        """The heads and their optimizer, and the counts of an epoch that is not over."""
        if self.heads is None:
            return {}
        counts = {} if self._train_counts is None else {COUNTS: self._train_counts.cpu()}
        return {**self.heads.state_dict(), **counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: It was saved with another number of heads or classes.
        """
        if self.heads is not None:
            self._train_counts = state_dict.get(COUNTS)
            self.heads.load_state_dict({key: value for key, value in state_dict.items() if key != COUNTS})
