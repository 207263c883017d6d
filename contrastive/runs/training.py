"""A recipe trained in a run's folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only

from contrastive.data.module import ImageData
from contrastive.recipes.recipe import Recipe
from contrastive.runs.checkpoints import WholeCheckpoints
from contrastive.runs.continuity import Continuity, NothingLeftError
from contrastive.runs.finite import FiniteLoss
from contrastive.runs.folder import RunFolder, Status
from contrastive.runs.last_checkpoint import LastCheckpoint
from contrastive.runs.metrics_file import MetricsFile, RowsOfCheckpoints
from contrastive.runs.signals import Preempted
from contrastive.runs.signature import JSON
from contrastive.runs.watch import LogProgress

LOG_EVERY_STEPS = 10  # and at least once an epoch
KEEP_EVERY_EPOCHS = 50  # a 200-epoch run keeps four checkpoints beside the newest


def trainer_of(
    recipe: Recipe,
    data: ImageData,
    folder: RunFolder,
    *,
    name: str,
    arguments: Mapping[str, JSON],
    skip_non_finite: int = 0,
    callbacks: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """A trainer whose metrics and checkpoints go to a run's folder, and whose run survives; nothing is written yet.

    Args:
        recipe: What to train.
        data: The recipe's images.
        folder: The run's.
        name: The recipe's name, for the checkpoints.
        arguments: The recipe's arguments, for the checkpoints.
        skip_non_finite: How many steps may be left out because their loss or gradient is not finite.
        callbacks: More of them, such as a progress bar.
    """
    steps = data.num_images("train") // (data.batch_size * recipe.trainer.get("devices", 1))  # an epoch
    logger = MetricsFile(folder.metrics_file)
    every_callback = [
        Continuity(name, arguments),  # first: what cannot go on changes nothing
        *recipe.callbacks,
        *callbacks,
        LogProgress(),
        FiniteLoss(folder.path, budget=skip_non_finite),
        RowsOfCheckpoints(logger),
        _kept(folder),
        LastCheckpoint(folder.checkpoints),
    ]
    settings = {
        "logger": logger,
        "callbacks": every_callback,
        "plugins": [WholeCheckpoints()],
        "default_root_dir": folder.path,
        "log_every_n_steps": max(1, min(LOG_EVERY_STEPS, steps)),
        "enable_model_summary": False,
    }
    return pl.Trainer(**{**settings, **recipe.trainer})


def train(
    trainer: pl.Trainer, recipe: Recipe, data: ImageData, folder: RunFolder, checkpoint: Path | None = None
) -> None:
    """Fit the recipe's method, and write how that ended into ``run.json``.

    Args:
        trainer: See ``trainer_of``.
        recipe: What to train.
        data: The recipe's images.
        folder: Where ``run.json`` says already that an attempt has begun.
        checkpoint: Where to go on from; None: from the start.

    Raises:
        Preempted: A signal stopped it, and a checkpoint was written.
        KeyboardInterrupt: The user did not wait for that.
        ContinuityError: The run cannot go on from the checkpoint, or has nothing left to do.
        NonFiniteError: A loss or gradient is not finite, and no more steps may be left out.
        OSError: Checkpoints cannot be written to the folder; nothing has been trained then.
    """
    try:
        fit(trainer, recipe.method, data, checkpoint)
    except Preempted:
        _end(folder, trainer, "preempted")
        raise
    except KeyboardInterrupt:
        _end(folder, trainer, "interrupted")
        raise
    except BaseException as error:
        killed_at_its_end = isinstance(error, NothingLeftError) and not folder.has_finished()
        if not killed_at_its_end:
            _end(folder, trainer, "failed", f"{type(error).__name__}: {error}")
            raise
    _end(folder, trainer, "finished")


def fit(trainer: pl.Trainer, module: pl.LightningModule, data: ImageData, checkpoint: Path | None = None) -> None:
    """``trainer.fit`` that leaves the user's interrupt what it is: Lightning turns the key into an exit with code 1.

    Raises:
        KeyboardInterrupt: The user stopped it.
    """
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:
        if isinstance(stop, Preempted) or not trainer.interrupted:
            raise
        raise KeyboardInterrupt from stop


def _kept(folder: RunFolder) -> ModelCheckpoint:
    """Checkpoints to look back at, beside the newest."""
    return ModelCheckpoint(
        folder.checkpoints,
        filename="epoch-{epoch:04d}",
        auto_insert_metric_name=False,
        every_n_epochs=KEEP_EVERY_EPOCHS,
        save_top_k=-1,
        save_on_train_epoch_end=True,
    )


@rank_zero_only
def _end(folder: RunFolder, trainer: pl.Trainer, status: Status, error: str | None = None) -> None:
    folder.end(status, step=trainer.global_step, error=error)
