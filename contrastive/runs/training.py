"""A recipe trained in a run's folder."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only

from contrastive.data.module import ImageData
from contrastive.recipes.recipe import Recipe
from contrastive.runs.checkpoints import WholeCheckpoints, prepare
from contrastive.runs.folder import RunFolder, now
from contrastive.runs.signature import JSON
from contrastive.runs.watch import LogProgress, NameRecipe

LOG_EVERY_STEPS = 10  # and at least once an epoch
KEEP_EVERY_EPOCHS = 50  # a 200-epoch run keeps four checkpoints beside the newest


def train(
    recipe: Recipe,
    data: ImageData,
    folder: RunFolder,
    *,
    name: str,
    arguments: Mapping[str, JSON],
    callbacks: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Fit the recipe's method; metrics and checkpoints go to the folder, the outcome to its ``run.json``.

    Args:
        recipe: What to train.
        data: The recipe's images.
        folder: Made by ``contrastive.runs.folder.create``.
        name: The recipe's name, for the checkpoints.
        arguments: The recipe's arguments, for the checkpoints.
        callbacks: More of them, such as a progress bar.

    Returns:
        The trainer, when training is over.

    Raises:
        KeyboardInterrupt: The user stopped it.
        OSError: Checkpoints cannot be written to the folder; nothing has been trained then.
    """
    rank_zero_only(prepare)(folder.checkpoints)
    trainer = pl.Trainer(
        **trainer_settings(recipe, data, folder),
        callbacks=[*recipe.callbacks, *callbacks, *_checkpoints(folder), NameRecipe(name, arguments), LogProgress()],
    )
    try:
        fit(trainer, recipe.method, data)
    except KeyboardInterrupt:
        _write_end(folder, status="interrupted")
        raise
    except BaseException as error:
        _write_end(folder, status="failed", error=f"{type(error).__name__}: {error}")
        raise
    _write_end(folder, status="finished")
    return trainer


def fit(trainer: pl.Trainer, module: pl.LightningModule, data: ImageData) -> None:
    """``trainer.fit`` that leaves the user's interrupt what it is: Lightning turns the key into an exit with code 1.

    Raises:
        KeyboardInterrupt: The user stopped it.
    """
    try:
        trainer.fit(module, data)
    except SystemExit as stop:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from stop


def trainer_settings(recipe: Recipe, data: ImageData, folder: RunFolder) -> Mapping[str, Any]:
    """Keywords of Lightning's Trainer: the recipe's own, and those that belong to a run's folder."""
    logger = CSVLogger(save_dir=folder.path, name="", version="")  # the three join to the folder itself
    steps = data.num_images("train") // (data.batch_size * recipe.trainer.get("devices", 1))  # an epoch
    return {
        "logger": logger,
        "default_root_dir": folder.path,
        "log_every_n_steps": max(1, min(LOG_EVERY_STEPS, steps)),
        "enable_model_summary": False,
        "plugins": [WholeCheckpoints()],
        **recipe.trainer,
    }


def _checkpoints(folder: RunFolder) -> list[ModelCheckpoint]:
    """The newest after every epoch, in place; and some to look back at."""
    newest = ModelCheckpoint(
        folder.checkpoints, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    kept = ModelCheckpoint(
        folder.checkpoints,
        filename="epoch-{epoch:04d}",
        auto_insert_metric_name=False,
        every_n_epochs=KEEP_EVERY_EPOCHS,
        save_top_k=-1,
        save_on_train_epoch_end=True,
    )
    return [newest, kept]


@rank_zero_only
def _write_end(folder: RunFolder, **outcome: str) -> None:
    (folder.path / "hparams.yaml").unlink(missing_ok=True)  # CSVLogger's, empty: run.json holds the arguments
    folder.update(finished=now(), **outcome)
