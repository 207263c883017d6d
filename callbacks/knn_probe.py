"""kNN probe: do an image's nearest neighbours share its class?"""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from contrastive.callbacks.contract import read_step
from contrastive.callbacks.loops import (
    check_every_n_epochs,
    frozen_features,
    is_due,
    require_validation,
    validation_loaders,
)
from contrastive.callbacks.tally import Tally, log_accuracies
from contrastive.evaluation import KNNClassifier, top_hits


class KNNProbe(pl.Callback):
    """Classify the validation images by their nearest training images, in cosine similarity, and log the accuracy.

    The bank holds the features of all training images, unaugmented, by the encoder as it stands: encoded again before
    every validation that is measured, N x D x 4 bytes on every rank. A neighbour of similarity s casts exp(s / T) votes
    (Wu et al. 2018, section 3.4). Every validation image counts once, however samplers pad the ranks.

    Logs, as fractions: ``knn/top1`` and, with more than 5 classes, ``knn/top5`` (``knn/top1/0``, ``/1``, ..., or
    ``/key`` of a mapping, where there are several validation loaders). The accuracy depends on k and T, so
    both are logged with the run's hyper-parameters, as ``knn/k`` and ``knn/temperature``.

    Args:
        k: Neighbours that vote; 20 is DINO's best (Caron et al. 2021, section 4.1), Wu et al. take 200.
        temperature: T; Wu et al.'s.
        bank: Loader of the labelled bank's images, batches as in training; by default the ``bank_dataloader()`` of the
            data module the run is trained on. With several ranks, it may be sharded or not.
        every_n_epochs: How often to measure; the last epoch is measured too.
        name: The metrics' prefix: give each probe of a run its own.
    """

    def __init__(
        self,
        k: int = 20,
        temperature: float = 0.07,
        *,
        bank: Iterable[Any] | None = None,
        every_n_epochs: int = 1,
        name: str = "knn",
    ) -> None:
        if k < 1 or temperature <= 0:
            raise ValueError(f"k = {k} must be 1 or more, and temperature = {temperature} greater than 0.")
        self.k = k
        self.temperature = temperature
        self.bank = bank
        self.every_n_epochs = check_every_n_epochs(every_n_epochs)
        self.name = name
        self._classifier: KNNClassifier | None = None
        self._tallies: dict[str, Tally] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the setting; check that there is a bank."""
        self._bank_loader(trainer)
        setting = {f"{self.name}/k": self.k, f"{self.name}/temperature": self.temperature}
        for logger in trainer.loggers:
            logger.log_hyperparams(setting)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that there will be something to score."""
        require_validation(trainer, "KNNProbe")

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Encode the bank."""
        self._tallies = {}
        if not is_due(trainer, self.every_n_epochs):
            return
        bank = frozen_features(trainer, pl_module, self._bank_loader(trainer))
        if not bool(bank.features.isfinite().all()):
            rank_zero_warn(f"{self.name} was not measured in epoch {trainer.current_epoch}: features are not finite.")
            return
        self._classifier = KNNClassifier(bank)
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
        """Let the bank vote on this batch."""
        needs = ("features", "labels")
        watched = read_step(outputs, needs, reader="KNNProbe", hook="validation_step", module=pl_module)
        if self._classifier is not None and self._tallies:
            labels = watched.labels_of_rows
            votes = self._classifier.votes(watched.features, k=self.k, temperature=self.temperature)
            list(self._tallies.values())[dataloader_idx].add(top_hits(votes, labels), labels, watched.index)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the accuracies, and let go of the bank."""
        if self._classifier is not None:
            log_accuracies(pl_module, self._tallies, self.name, self._classifier.num_classes)
        self._classifier = None

    def _bank_loader(self, trainer: pl.Trainer) -> Iterable[Any]:
        if self.bank is not None:
            return self.bank
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "bank_dataloader"):
            got = "no data module" if data is None else f"a {type(data).__name__}, which has no bank_dataloader()"
            raise TypeError(
                f"KNNProbe compares with the training images, unaugmented, but the trainer has {got}. Fit with a data "
                "module of contrastive.data, or pass KNNProbe(bank=a loader of them)."
            )
        loader: Iterable[Any] = data.bank_dataloader()
        return loader
