"""Watches the training features for collapse."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from contrastive.callbacks.contract import was_skipped
from contrastive.callbacks.loops import log_epoch
from contrastive.callbacks.watcher import Watcher
from contrastive.evaluation import alignment, effective_rank, feature_std, gather_rows, uniformity

COLLAPSED_STD = 0.05


class CollapseWarning(UserWarning):
    """The encoder gives nearly the same features for every image."""


class RepresentationMonitor(Watcher):
    """Log what training features show without labels, and warn once if they have collapsed.

    Measured on the first batch of every epoch and every n-th after it, over the images of all ranks; logged are the
    epoch's means:

    - ``collapse/feature_std``: 1 for features spread evenly over the sphere, 0 for features all the same.
    - ``collapse/effective_rank``: how many directions the features use, at most ``collapse/num_rows``, of which the
      value depends.
    - ``collapse/uniformity``: lower is more even; mean of the views'.
    - ``collapse/alignment``: how far apart an image's views lie; where a batch has two views or more.
    - ``collapse/projection_std``: ``feature_std`` of ``projections``, where ``training_step`` returns them too.

    Return them from a method that has no negatives: BatchNorm at an encoder's end spreads even collapsed features over
    the batch, and then only what the loss compares shows it.

    ``contrastive.evaluation.representation`` has the definitions and their sources.

    Args:
        every_n_steps: Training batches between measurements.
        collapsed_std: Warn where ``feature_std`` or ``projection_std`` is lower. The mean cosine
            similarity of two images is then above 1 - collapsed_std**2, 0.9975: a network so far gone hardly tells
            images apart, while untrained ones lie far above.
        layer: A submodule whose outputs in ``training_step`` are the features, as in ``LinearProbe``; how many views
            they are of shows in the batch, whose first tensor has a row an image.
    """

    def __init__(
        self, *, every_n_steps: int = 100, collapsed_std: float = COLLAPSED_STD, layer: str | None = None
    ) -> None:
        super().__init__("collapse", layer)
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps = {every_n_steps} must be 1 or more.")
        self.every_n_steps = every_n_steps
        self.collapsed_std = collapsed_std
        self._has_warned = False
        self._measured: dict[str, list[float]] = {}  # in this epoch

    @property
    def state_key(self) -> str:
        """Tells monitors apart in a checkpoint."""
        layer = None if self.layer is None else self.layer.name
        return self._generate_state_key(layer=layer, every_n_steps=self.every_n_steps)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A new run may warn again."""
        super().on_fit_start(trainer, pl_module)
        self._has_warned = False

    def reads(self, hook: str, batch_idx: int) -> bool:
        """Training batches whose turn has come."""
        return hook == "training_step" and batch_idx % self.every_n_steps == 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is measured yet. A run that goes on within an epoch does not come here."""
        self._measured = {}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure this batch, if its turn has come."""
        if not self.reads("training_step", batch_idx) or was_skipped(outputs, pl_module):
            return
        watched = self.read(outputs, batch, ("features",), hook="training_step", module=pl_module)
        with torch.autocast(watched.features.device.type, enabled=False):
            per_image = watched.features.float().unflatten(0, (watched.num_views, -1)).transpose(0, 1)  # [B, V, D]
            per_image = gather_rows(per_image.contiguous())
            per_image = per_image[per_image.isfinite().all(-1).all(-1)]  # 16-bit overflow is no collapse
            if len(per_image) < 2:
                return
            values = _measures(per_image.transpose(0, 1))
            if watched.projections is not None:
                projections = gather_rows(watched.projections.float().contiguous())
                values["projection_std"] = feature_std(projections[projections.isfinite().all(1)])
        for key, value in values.items():
            self._measured.setdefault(key, []).append(float(value))
        for what in ("feature", "projection"):
            if f"{what}_std" in values:
                self._warn_once(trainer, f"{what.capitalize()}s", float(values[f"{what}_std"]), len(per_image))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's means."""
        means = {key: torch.tensor(values, device=pl_module.device).mean() for key, values in self._measured.items()}
        log_epoch(pl_module, {f"{self.name}/{key}": mean for key, mean in means.items()})

    def state_dict(self) -> dict[str, Any]:
        """What was measured in an epoch that is not over."""
        return {"measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._measured = state_dict["measured"]

    def _warn_once(self, trainer: pl.Trainer, what: str, std: float, num_images: int) -> None:
        if self._has_warned or not std < self.collapsed_std:
            return
        self._has_warned = True
        rank_zero_warn(
            f"{what} have collapsed: at step {trainer.global_step} their standard deviation is {std:.2g} over "
            f"{num_images} images, where 1 is an even spread and 0 means the same for every image; the warning comes "
            f"below {self.collapsed_std}. Lower the learning rate or lengthen its warm-up, and check that the loss has "
            "something that keeps images apart: negatives, a stop-gradient, a momentum encoder.",
            category=CollapseWarning,
        )


def _measures(views: Tensor) -> dict[str, Tensor]:
    """All measures of features [V, N, D]."""
    rows = views.flatten(0, 1)
    values = {
        "feature_std": feature_std(rows),
        "effective_rank": effective_rank(rows),
        "num_rows": torch.tensor(float(len(rows)), device=rows.device),
        "uniformity": torch.stack([uniformity(view) for view in views]).mean(),
    }
    if len(views) > 1:
        values["alignment"] = alignment(views)
    return values
