"""The newest state of a run in one file, from which it goes on as if it had never stopped."""

import signal
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_info

from contrastive.runs import random_states
from contrastive.runs.checkpoints import WholeCheckpoints, check_whole, keep_as, prepare
from contrastive.runs.loop_progress import epochs_ahead, go_on_after_epoch_end, validate_anew
from contrastive.runs.signals import REQUEUE, Preempted, StopSignals

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt``: before the first step, at every epoch's end, every few minutes, on signals, on failures.

    ``Trainer(plugins=[WholeCheckpoints()], callbacks=[..., LastCheckpoint("run/checkpoints")])``, and to go on,
    ``trainer.fit(module, data, ckpt_path=newest("run/checkpoints").path)``. The one before stays as ``previous.ckpt``.

    - Only between two optimizer steps, after all other callbacks. A validation cut short is done again, all of it; so
      the last one of a run by ``max_steps``, from a checkpoint written before the last step.
    - SIGTERM, SIGUSR1 or SIGINT to any rank stops all of them after the batch that each is at, in training, in
      validation and while a probe reads its bank: the checkpoint is written and ``Preempted`` raised. What takes long
      inside of one batch, or is a solver, is waited for; a second SIGINT waits for nothing. Ranks agree by one number
      after every batch.
    - An exception between two steps, such as a reader's, leaves a checkpoint of the last step, in runs of one process.
      Over several ranks nobody can tell where the others stand, and the newest of before is what counts.
    - The ranks' global random states are part of it.

    Args:
        folder: Where to write, on a local disk.
        every_minutes: Of training, by the first rank's clock; None: only at the other moments.

    Raises:
        TypeError: The trainer does not write by ``WholeCheckpoints``. When a fit begins.
        OSError: The folder cannot be written to. When a fit begins.
        CheckpointError: The checkpoint to go on from was altered. When a fit begins.
    """

    def __init__(self, folder: str | Path, *, every_minutes: float | None = 10.0) -> None:
        if every_minutes is not None and every_minutes <= 0:
            raise ValueError(f"every_minutes must be more than 0, or None, got {every_minutes}.")
        self.folder = Path(folder)
        self.every_minutes = every_minutes
        self.signals = StopSignals()
        self._saved_at = 0.0  # seconds of a clock that is never set
        self._between_steps = False
        self._position: Any = None  # of the loaders when the last step ended
        self._due = False  # a checkpoint, once the validation that follows has begun
        self._stopping = False
        self._ahead = 0  # epochs, as Lightning counts them, within one
        self._random: dict[str, Any] | None = None  # of this rank when the validation began
        self._random_to_restore: Any = None

    @property
    def file(self) -> Path:
        """Where the newest state is written."""
        return self.folder / LAST

    # A fit begins and ends

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that checkpoints can be written, and clear away halves that a killed run left."""
        if stage != "fit":
            return
        if not isinstance(trainer.strategy.checkpoint_io, WholeCheckpoints):
            raise TypeError(
                f"LastCheckpoint overwrites {LAST}, which only WholeCheckpoints does without ever leaving half of one. "
                "Give the trainer plugins=[contrastive.runs.WholeCheckpoints()]."
            )
        if trainer.is_global_zero:
            prepare(self.folder)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen from here on: Lightning's own handlers, which were just installed, wait for other ranks."""
        self._listen(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the random states, or write the first checkpoint: what cannot be written fails now."""
        self._listen(trainer)
        if trainer.ckpt_path is not None and trainer.strategy.restore_checkpoint_after_setup:
            check_whole(Path(trainer.ckpt_path))  # strategies of sharded weights have read it around WholeCheckpoints
        self._stopping = self._due = False
        self._ahead = epochs_ahead(trainer)
        self._saved_at = time.monotonic()
        if self._random_to_restore is not None:
            random_states.restore(self._random_to_restore)
            self._random_to_restore = None
        if trainer.ckpt_path is None:
            self._save(trainer)
        self._step_ends(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Signals mean again what they meant before, and failures from here on are none of the training's."""
        self._between_steps = False
        self.signals.stop_listening()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep what was trained until a failure between two steps."""
        at_rest = self._between_steps and self._position == _position(trainer) and not _steps_are_done(trainer)
        if isinstance(exception, Exception) and at_rest and trainer.world_size == 1:
            self._save(trainer)
            rank_zero_info(f"{self.file} holds the state after step {trainer.global_step}.")
        self._between_steps = False
        self.signals.stop_listening()

    # Training

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A step begins, of one batch or of several whose gradients are accumulated."""
        self._between_steps = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save or stop, if any rank asks for it and the step is complete."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        self._step_ends(trainer)
        if _steps_are_done(trainer) or not self._agree(trainer, self._asked or self._is_late(trainer)):
            return
        self._stopping = self._agree(trainer, self._asked)
        if _validation_follows(trainer, batch_idx):
            self._due = True  # of a state before it, Lightning would leave it out
        else:
            self._save_or_stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and stop if any rank asks for it; but nothing where somebody has ended the epoch inside of a step."""
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        self._stopping = self._agree(trainer, self._asked)
        self._step_ends(trainer)
        self._save_or_stop(trainer)

    # Validation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how the random states were; save or stop, if that was put off until now."""
        if trainer.sanity_checking or not self._between_steps:
            return
        self._random = random_states.of_this_rank()
        self._shared_batches = [self._shared(trainer, number) for number in trainer.num_val_batches]
        if self._due:
            self._due = False
            self._save_or_stop(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop, if any rank asks for it."""
        if self._random is not None and batch_idx < self._shared_batches[dataloader_idx]:
            self._stop_if_asked(trainer)

    def between_batches(self, trainer: pl.Trainer, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches that a probe reads in a validation; the run may stop after each."""
        number = len(batches) if self._random is not None and isinstance(batches, Sized) else 0
        shared = self._shared(trainer, number) if self._random is not None else 0
        for place, batch in enumerate(batches):
            yield batch
            if place < shared:
                self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What is saved from here on need not validate again."""
        self._random = None

    # What is saved

    def state_dict(self) -> dict[str, Any]:
        """The ranks' random states; when a validation is cut short, those it began with."""
        mine = random_states.of_this_rank() if self._random is None else self._random
        return {"random": random_states.of_all_ranks(mine)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them once training starts."""
        self._random_to_restore = state_dict["random"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say where the loops stand so that Lightning goes on from there."""
        if self._random is not None:
            validate_anew(checkpoint)
        elif self._epoch_ends(trainer):
            go_on_after_epoch_end(trainer, checkpoint)

    def _save(self, trainer: pl.Trainer) -> None:
        self._between_steps = False  # a checkpoint that cannot be written is not tried again
        for logger in trainer.loggers:
            logger.save()  # no row may be lost that a resumed run does not write again
        if trainer.is_global_zero and self.file.exists():
            keep_as(self.file, PREVIOUS)
        trainer.save_checkpoint(self.file)
        self._saved_at = time.monotonic()
        self._between_steps = True

    def _save_or_stop(self, trainer: pl.Trainer) -> None:
        self._save(trainer)
        if self._stopping and not self._is_complete(trainer):
            self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        received = self.signals.received
        told = "A signal to another rank" if received is None else received.name
        rank_zero_info(
            f"{told} stopped the run after step {trainer.global_step}. Call the same command again to go on from "
            f"{self.file}."
        )
        started_others = trainer.strategy.broadcast(bool(getattr(trainer.strategy.launcher, "procs", [])))
        raise Preempted(self.file, 0 if started_others and trainer.local_rank else REQUEUE)

    # When to

    def _listen(self, trainer: pl.Trainer) -> None:
        self.signals.listen()
        if trainer.received_sigterm:  # for which Lightning would end the run as if it were done, without a checkpoint
            trainer._signal_connector.received_sigterm = False
            self.signals.received = signal.SIGTERM

    @property
    def _asked(self) -> bool:
        return self.signals.received is not None

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        """In a validation."""
        self._stopping = self._agree(trainer, self._asked)
        if not self._stopping:
            return
        if not _steps_are_done(trainer):
            self._save(trainer)
        self._stop(trainer)

    def _step_ends(self, trainer: pl.Trainer) -> None:
        self._between_steps, self._position = True, _position(trainer)

    def _is_complete(self, trainer: pl.Trainer) -> bool:
        """Whether nothing is left but to end, which no signal need hurry."""
        last_epoch = self._epoch_ends(trainer) and trainer.current_epoch + 1 == trainer.max_epochs
        return _steps_are_done(trainer) or last_epoch

    def _epoch_ends(self, trainer: pl.Trainer) -> bool:
        return epochs_ahead(trainer) > self._ahead

    def _is_late(self, trainer: pl.Trainer) -> bool:
        if trainer.global_step == trainer.max_steps - 1:  # from here the last validation can be done again
            return True
        if self.every_minutes is None or not trainer.is_global_zero:
            return False
        return time.monotonic() - self._saved_at > 60 * self.every_minutes

    @staticmethod
    def _agree(trainer: pl.Trainer, wanted: bool) -> bool:
        """Whether any rank wants it; all ranks call this."""
        return trainer.strategy.reduce_boolean_decision(wanted, all=False)

    @staticmethod
    def _shared(trainer: pl.Trainer, number: float) -> float:
        """The least of the ranks' numbers of batches: up to it they can agree after each."""
        least = torch.tensor(float(number), device=trainer.strategy.root_device)
        return float(trainer.strategy.reduce(least, reduce_op="min"))


def _steps_are_done(trainer: pl.Trainer) -> bool:
    """Whether ``max_steps`` are: Lightning does nothing more from a checkpoint of then, be there a validation left."""
    return trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps


def _position(trainer: pl.Trainer) -> Any:
    """Where the loaders are: a batch that was fetched and not trained on moves them."""
    data = getattr(trainer, "datamodule", None)
    return None if data is None else data.state_dict()


def _validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this training batch."""
    every_epochs = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or not sum(trainer.num_val_batches):
        return False
    if every_epochs is not None and (trainer.current_epoch + 1) % every_epochs:
        return False
    every = trainer.val_check_batch
    if every is None:  # by the clock, which nobody can foresee
        return False
    if every == float("inf"):
        return trainer.is_last_batch
    done = batch_idx + 1 if every_epochs is not None else trainer.fit_loop.total_batch_idx + 1
    return done % every == 0
