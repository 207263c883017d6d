"""Linear evaluation on another data set, while the encoder is still being pretrained."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from contrastive.callbacks.bank import are_finite, frozen_features
from contrastive.callbacks.classifiers import L2_GRID
from contrastive.callbacks.layer import Layer
from contrastive.evaluation import from_rank_zero, linear_evaluation


class Transfer:
    """Scores a module's features on a labelled data module that the trainer knows nothing of.

    Args:
        data: Has ``bank_dataloader()``, the training images unaugmented, and ``val_dataloader()``, one loader.

    Raises:
        TypeError: It has not.
    """

    def __init__(self, data: pl.LightningDataModule) -> None:
        missing = [name for name in ("bank_dataloader", "val_dataloader") if not hasattr(data, name)]
        if missing:
            raise TypeError(
                f"data={type(data).__name__} has no {' and no '.join(missing)}. Transfer is measured on its training "
                "images, unaugmented and in order (bank_dataloader), and its validation images; contrastive.data's "
                "modules have both."
            )
        self.data: Any = data
        self._is_ready = False

    def prepare(self, trainer: pl.Trainer) -> None:
        """What the trainer does for its own data module, once."""
        if self._is_ready:
            return
        rank = trainer.local_rank if self.data.prepare_data_per_node else trainer.global_rank
        with isolate_rng():
            if rank == 0:
                self.data.prepare_data()
            trainer.strategy.barrier("transfer_prepare_data")
            self.data.setup("fit")
        self._is_ready = True

    def measure(self, trainer: pl.Trainer, module: pl.LightningModule, layer: Layer | None) -> dict[str, Tensor]:
        """``transfer_top1``, ``transfer_top5`` where there are more than 5 classes, and the strength chosen.

        Empty, with a warning, where features are not finite.
        """
        self.prepare(trainer)
        loaders = self.data.bank_dataloader(), _only(self.data.val_dataloader())
        train, test = (frozen_features(trainer, module, loader, layer=layer) for loader in loaders)
        if not all(are_finite(features, "Transfer", trainer.current_epoch) for features in (train, test)):
            return {}
        result = linear_evaluation(train, test, num_classes=self.data.num_classes, l2=L2_GRID)
        values = {"transfer_top1": result.top1, "transfer_l2": result.l2}
        if result.top5 is not None:
            values["transfer_top5"] = result.top5
        return {key: from_rank_zero(train.features.new_tensor(value)) for key, value in values.items()}


def _only(loaders: Any) -> Any:
    if not isinstance(loaders, list | tuple):
        return loaders
    if len(loaders) != 1:
        raise TypeError(f"Transfer is measured on one validation loader, but data.val_dataloader() has {len(loaders)}.")
    return loaders[0]
