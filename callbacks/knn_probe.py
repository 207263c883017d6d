"""kNN probe: do an image's nearest neighbours share its class?"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from contrastive.callbacks.bank import bank_features, bank_loader
from contrastive.callbacks.classifiers import Classifier
from contrastive.callbacks.contract import Watched
from contrastive.callbacks.loops import check_every_n_epochs, is_due
from contrastive.callbacks.watcher import Watcher
from contrastive.evaluation import KNNClassifier


class KNNProbe(Watcher):
    """Classify the validation images by their nearest training images, in cosine similarity, and log the accuracy.

    The bank holds the features of all training images, unaugmented, by the encoder as it stands: encoded again before
    every validation that is measured, N x D x 4 bytes, of which each rank holds its part. Validation features are kept
    until the validation ends, when all ranks look up the neighbours together. A neighbour of similarity s casts
    exp(s / T) votes (Wu et al. 2018, section 3.4). Every validation image counts once, however samplers pad the ranks.

    Logs, as fractions: ``knn/top1`` and, with more than 5 classes, ``knn/top5`` (``knn/top1/0``, ``/1``, ..., or
    ``/key`` of a mapping, where there are several validation loaders). The accuracy depends on k and T, so
    both are logged with the run's hyper-parameters, as ``knn/k`` and ``knn/temperature``.

    Args:
        k: Neighbours that vote; 20 is DINO's best (Caron et al. 2021, section 4.1), Wu et al. take 200.
        temperature: T; Wu et al.'s.
        bank: Loader of the labelled bank's images, batches as in training; by default the ``bank_dataloader()`` of the
            data module the run is trained on. With several ranks, it may be sharded or not.
        every_n_epochs: How often to measure; the last epoch is measured too.
        layer: A submodule whose outputs are the features, as in ``LinearProbe``.
        labels: With ``layer``, a function of the batch that returns its labels, as in ``LinearProbe``.
        name: The metrics' prefix: give each probe of a run its own.
    """

    def __init__(
        self,
        k: int = 20,
        temperature: float = 0.07,
        *,
        bank: Iterable[Any] | None = None,
        every_n_epochs: int = 1,
        layer: str | None = None,
        labels: Callable[[Any], Tensor] | None = None,
        name: str = "knn",
    ) -> None:
        super().__init__(name, layer, labels)
        if k < 1 or temperature <= 0:
            raise ValueError(f"k = {k} must be 1 or more, and temperature = {temperature} greater than 0.")
        self.k = k
        self.temperature = temperature
        self.bank = bank
        self.every_n_epochs = check_every_n_epochs(every_n_epochs)
        self._queries: list[Tensor] = []
        self._seen: list[tuple[int, Watched]] = []  # the loader's number, and a batch

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the setting; check that there is a bank."""
        super().on_fit_start(trainer, pl_module)
        bank_loader(trainer, self.bank, reader="KNNProbe")
        setting = {f"{self.name}/k": self.k, f"{self.name}/temperature": self.temperature}
        for logger in trainer.loggers:
            logger.log_hyperparams(setting)

    def reads(self, hook: str, batch_idx: int) -> bool:
        """Validation batches."""
        return hook == "validation_step"

    def classifier(self, trainer: pl.Trainer, module: pl.LightningModule) -> Classifier | None:
        """The bank's votes, if its turn has come."""
        if not is_due(trainer, self.every_n_epochs):
            return None
        bank = bank_features(
            trainer, module, self.bank, reader="KNNProbe", name=self.name, layer=self.layer, gather=False
        )
        if bank is None:
            return None
        neighbours = KNNClassifier(bank, over_ranks=True)
        self._queries, self._seen = [bank.features[:0]], []  # a rank without a batch has queries of this width
        return Classifier(partial(neighbours.votes, k=self.k, temperature=self.temperature), neighbours.num_classes)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the batch: ranks may have different numbers of them, and look up neighbours together."""
        watched = self.read(outputs, batch, ("features", "labels"), hook="validation_step", module=pl_module)
        if self._classifier is not None:
            self._queries.append(watched.features)
            self._seen.append((dataloader_idx, watched))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the bank vote, and log the accuracies."""
        if self._classifier is not None and self._tallies is not None:
            votes = self._classifier.logits(torch.cat(self._queries))
            sizes = [len(watched.features) for _, watched in self._seen]
            for (dataloader_idx, watched), part in zip(self._seen, votes.split(sizes), strict=True):
                self._tallies.add(dataloader_idx, part, watched)
        self._queries, self._seen = [], []
        super().on_validation_epoch_end(trainer, pl_module)
