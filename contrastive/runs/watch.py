"""What every run writes down besides what its recipe asks for."""

import time
from typing import Any

import pytorch_lightning as pl
import torch


class LogProgress(pl.Callback):
    """Logs the learning rate (``train/lr``) and, once an epoch, the training speed (``train/images_per_s``).

    The speed counts the images of all ranks over the time spent in training batches and between them; validation and
    probes that run outside of the batches are not in it.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock starts, also in the middle of an epoch, where a run may go on."""
        self.images, self.started = 0, time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock starts anew."""
        self.images, self.started = 0, time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The rate that this batch's optimizer step will use."""
        pl_module.log("train/lr", trainer.optimizers[0].param_groups[0]["lr"], batch_size=len(batch["image"]))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and read the clock after the epoch's last batch."""
        self.images += len(batch["image"])
        if trainer.is_last_batch:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)  # once an epoch; the clock must not run ahead of the device
            seconds = time.perf_counter() - self.started
            speed = self.images * trainer.world_size / seconds
            pl_module.log("train/images_per_s", speed, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
