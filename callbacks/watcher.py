"""What all callbacks share: reading features from a module's steps, and scoring those of the validation images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from contrastive.callbacks.classifiers import Classifier
from contrastive.callbacks.contract import Watched, read_layer, read_step
from contrastive.callbacks.layer import Layer
from contrastive.callbacks.loops import log_epoch, require_validation
from contrastive.callbacks.tally import Tallies
from contrastive.evaluation import from_rank_zero


class Watcher(pl.Callback, ABC):
    """Base of the callbacks that read features: what the steps return, or what a submodule returns while they run.

    A subclass that scores the validation images gives a classifier of their features. It logs ``name/top1`` and, with
    more than 5 classes, ``name/top5``, of every validation loader; and what was chosen for the classifier.

    Args:
        name: The metrics' prefix.
        layer: The submodule; None reads what the steps return.
        labels: Labels of a batch, int [B], for batches that hold them elsewhere than ``batches.labels_of`` looks.
    """

    def __init__(self, name: str, layer: str | None = None, labels: Callable[[Any], Tensor] | None = None) -> None:
        if labels is not None and layer is None:
            raise ValueError(
                "labels= is a function of the batch, for features by layer=. Without layer=, labels are what the steps "
                "return beside 'features'."
            )
        self.name = name
        self.layer = None if layer is None else Layer(layer, labels)
        self._classifier: Classifier | None = None
        self._tallies: Tallies | None = None

    @abstractmethod
    def reads(self, hook: str, batch_idx: int) -> bool:
        """Whether this batch's features are wanted; ``hook`` is ``training_step`` or ``validation_step``."""

    def classifier(self, trainer: pl.Trainer, module: pl.LightningModule) -> Classifier | None:
        """What scores the validation that begins; None leaves it unscored."""
        return None

    def read(self, outputs: Any, batch: Any, needs: Sequence[str], *, hook: str, module: pl.LightningModule) -> Watched:
        """What the step showed.

        Raises:
            TypeError, ValueError: See ``read_step`` and ``read_layer``.
        """
        reader = type(self).__name__
        if self.layer is None:
            return read_step(outputs, needs, reader=reader, hook=hook, module=module)
        return read_layer(self.layer, batch, needs, reader=reader, hook=hook, module=module)

    # Where features are

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layer before anything has been computed."""
        if self.layer is not None:
            self.layer.attach(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same in ``trainer.validate``."""
        if self.layer is not None:
            self.layer.attach(pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The step begins."""
        if self.layer is not None and self.reads("training_step", batch_idx):
            self.layer.open()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """The step has ended, or is interrupted where the module optimizes by hand."""
        if self.layer is not None:
            self.layer.pause()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A step that optimizes by hand goes on."""
        if self.layer is not None and not pl_module.automatic_optimization:
            self.layer.resume()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The step begins."""
        if self.layer is not None and self.reads("validation_step", batch_idx):
            self.layer.open()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        if self.layer is not None:
            self.layer.detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        if self.layer is not None:
            self.layer.detach()

    # What they are worth

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that there will be something to score."""
        if self.reads("validation_step", 0):
            require_validation(trainer, type(self).__name__)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have a classifier, and begin the counts of every loader."""
        self._classifier = self.classifier(trainer, pl_module)
        self._tallies = None if self._classifier is None else Tallies(trainer, pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score this batch."""
        if not self.reads("validation_step", batch_idx):
            return
        watched = self.read(outputs, batch, ("features", "labels"), hook="validation_step", module=pl_module)
        if self._classifier is not None and self._tallies is not None:
            self._tallies.add(dataloader_idx, self._classifier.logits(watched.features), watched)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the accuracies, and let go of the classifier."""
        if self._classifier is not None and self._tallies is not None:
            self._tallies.log(pl_module, self.name, self._classifier.num_classes)
            for key, value in self._classifier.chosen.items():
                chosen = from_rank_zero(torch.tensor(float(value), device=pl_module.device))
                log_epoch(pl_module, {f"{self.name}/{key}": chosen})
        self._classifier = self._tallies = None
