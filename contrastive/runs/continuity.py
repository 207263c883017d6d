"""Whether a resumed run is the run that its checkpoint is of: told where it differs, refused where it cannot go on."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import CombinedLoader, rank_zero_warn

from contrastive.runs.loop_progress import epoch_is_whole

CHECKPOINT_KEY = "contrastive"  # where a checkpoint says which run it is of
SPLIT = "train"


class ContinuityError(ValueError):
    """A run cannot go on from this checkpoint, or has nothing left to do; the message says why."""


class NothingLeftError(ContinuityError):
    """All of the run is trained already."""


class ContinuityWarning(UserWarning):
    """A resumed run is not quite the one that the checkpoint is of."""


class Continuity(pl.Callback):
    """Writes into every checkpoint which run it is of, and compares when it is resumed.

    - Another number of ranks goes on if the global batch is the same: every image still comes once an epoch, in the
      same order, with the same views; else, or where its size is not known, it is refused.
    - A global batch or an accumulation that changed within an epoch is refused: batches are what an epoch counts.
    - Of whatever else changed, a ``ContinuityWarning`` names the old and the new value.
    - A fit that takes no step is an error: no batch, or nothing left to train.

    Args:
        recipe: The recipe's name, if the run is one's; a checkpoint of another one is refused.
        arguments: All the recipe's arguments, as JSON holds them.
    """

    def __init__(self, recipe: str | None = None, arguments: Mapping[str, Any] | None = None) -> None:
        self.entry: dict[str, Any] = {} if recipe is None else {"recipe": recipe, "arguments": dict(arguments or {})}
        self._resumed: Mapping[str, Any] = {}
        self._images: dict[str, Any] = {}
        self._started = False
        self._inside_epoch = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look at the images, which may take minutes, before the run begins to listen to signals."""
        if stage == "fit":
            self._images = _images(getattr(trainer, "datamodule", None))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note which run it is of; one that was written without this callback says nothing."""
        self._resumed = checkpoint.get(CHECKPOINT_KEY, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare.

        Raises:
            ContinuityError: The run cannot go on so.
        """
        self._started = True
        self.entry["run"] = self._facts(trainer)
        before, self._resumed = self._resumed, {}
        self._inside_epoch = before.get("run", {}).get("inside an epoch", False)
        if "recipe" in before and before["recipe"] != self.entry.get("recipe", before["recipe"]):
            raise ContinuityError(
                f"The checkpoint is of recipe {before['recipe']}, and this run is of {self.entry['recipe']}. Give the "
                "new run a folder of its own."
            )
        if "run" in before:
            self._check_batches(before["run"])
            changed = [*_changes(before["run"], self.entry["run"], "")]
            changed += _changes(before.get("arguments", {}), self.entry.get("arguments", {}), "argument ")
            if changed:
                rank_zero_warn(
                    f"Since the checkpoint that this run goes on from, this changed: {'; '.join(changed)}.",
                    category=ContinuityWarning,
                )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """An epoch has begun."""
        self._inside_epoch = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A stream may have run dry.

        Raises:
            ContinuityError: The epoch had no batch.
        """
        if not trainer.fit_loop.epoch_loop.batch_progress.current.ready:
            raise ContinuityError(
                f"The training loader gave no batch in epoch {trainer.current_epoch}: it is empty, or a stream that "
                "was read to its end before. Make it begin anew each time it is iterated."
            )
        self._inside_epoch = not epoch_is_whole(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning ends a fit that had nothing to do as if all were well.

        Raises:
            ContinuityError: No step was taken.
        """
        step, epoch = trainer.global_step, trainer.current_epoch
        started, self._started = self._started, False
        if started or trainer.limit_train_batches == 0:
            return
        if trainer.max_steps != -1 and step >= trainer.max_steps:
            reason = f"Nothing is left to train: {step} steps are done, and max_steps is {trainer.max_steps}."
        elif trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epoch and step:
            reason = f"Nothing is left to train: {epoch} epochs are done, and max_epochs is {trainer.max_epochs}."
        elif trainer.max_epochs == 0:
            raise ContinuityError("Nothing was trained: max_epochs is 0.")
        else:
            raise ContinuityError(
                "Nothing was trained: the training loader gave no batch. Is the data set empty, or smaller than one "
                "batch, which drop_last=True leaves out? Give more images, or lower the batch size."
            )
        raise NothingLeftError(f"{reason} Raise it to train on, or give a new run a folder of its own.")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add which run it is of, and whether an epoch has begun that has not ended."""
        run = {**self.entry.get("run", {}), "inside an epoch": self._inside_epoch}
        checkpoint[CHECKPOINT_KEY] = {**self.entry, "run": run}

    def _facts(self, trainer: pl.Trainer) -> dict[str, Any]:
        data: Any = getattr(trainer, "datamodule", None)
        batch_size = _batch_size(data, trainer.train_dataloader)
        return {
            "ranks": trainer.world_size,
            "batch size": batch_size,
            "global batch": None if batch_size is None else batch_size * trainer.world_size,
            "accumulated batches": trainer.accumulate_grad_batches,
            "max_epochs": trainer.max_epochs,
            "max_steps": trainer.max_steps,
            "precision": str(trainer.precision),
            **self._images,
        }

    def _check_batches(self, before: Mapping[str, Any]) -> None:
        now = self.entry["run"]
        unknown = None in (before["global batch"], now["global batch"])
        if unknown and before["ranks"] != now["ranks"]:
            first = before["global batch"] is None
            whose, anew = ("that", ", and begin anew in another folder") if first else ("this", "")
            raise ContinuityError(
                f"The checkpoint is of a run on {before['ranks']} rank(s), and this one has {now['ranks']}, which "
                f"needs the same global batch; but the batch size of {whose} run could not be found. Resume on "
                f"{before['ranks']} rank(s), or give the data module an int attribute batch_size, the images per rank "
                f"and step{anew}."
            )
        same = unknown or before["global batch"] == now["global batch"]
        same = same and before["accumulated batches"] == now["accumulated batches"]
        if same or not (before["ranks"] != now["ranks"] or before["inside an epoch"]):
            return
        was, has = (
            f"{run['batch size']} images x {run['ranks']} rank(s) x {run['accumulated batches']} accumulated batch(es)"
            for run in (before, now)
        )
        why = (
            "another number of ranks goes on only with the same global batch"
            if before["ranks"] != now["ranks"]
            else "within an epoch, batches cannot change"
        )
        size = before["global batch"]
        fits = (
            f"Set the batch size to {size // now['ranks']}"
            if size is not None and size % now["ranks"] == 0
            else "Set ranks and batch size as they were"
        )
        raise ContinuityError(
            f"The checkpoint was trained on {was} a step, and this run has {has}; {why}. {fits} and "
            f"accumulate_grad_batches to {before['accumulated batches']}, or begin anew in another folder."
        )


def _batch_size(data: Any, loaders: Any) -> int | None:
    """Of a rank and step: what the data module says, else what all its training loaders say; None where that is none.

    Args:
        data: The data module, if any.
        loaders: One, or a collection of those whose batches make one.
    """
    says = [getattr(data, "batch_size", None)]
    if not isinstance(says[0], int):
        says = [getattr(loader, "batch_size", None) for loader in CombinedLoader(loaders).flattened]
    return says[0] if isinstance(says[0], int) and all(size == says[0] for size in says) else None


def _images(data: Any) -> dict[str, Any]:
    """How many images a run trains on, and which; nothing of what is no data module of ``contrastive.data``."""
    from contrastive.data.manifest import manifest
    from contrastive.data.module import ImageData

    if not isinstance(data, ImageData):
        return {}
    found = manifest(data, SPLIT)
    return {"training images": len(found.hashes), "their digest": f"{found.digest[:16]} by {found.by}"}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> Iterator[str]:
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            yield f"{what}{name} was {before[name]!r}, and is {now[name]!r}"
