"""Where Lightning's loops stand, put so in a checkpoint that a resumed run does all that was left, and once.

Tried with Lightning 2.6: at some moments what it writes by itself makes it leave out a validation, an epoch or the rest
of one. Exact for loaders that know their length.
"""

from typing import Any

import pytorch_lightning as pl


def validate_anew(checkpoint: dict[str, Any]) -> None:
    """Of a checkpoint written inside a validation: all of it is done again, and then what follows it.

    By itself, Lightning leaves it out, as if it had been finished.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):  # as if it stood in its first batch
        counts.update(ready=1, started=1, processed=0, completed=0)


def epochs_ahead(trainer: pl.Trainer) -> int:
    """One more while the hooks ``on_train_epoch_end`` are called than before; what it was before, Lightning decides."""
    counts: Any = trainer.fit_loop.epoch_progress.current  # whose type says less than it has
    return int(counts.processed - counts.completed)


def epoch_is_whole(trainer: pl.Trainer) -> bool:
    """Whether the batch that was trained on last is its epoch's last; ``max_steps`` may end one before."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def go_on_after_epoch_end(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Of a checkpoint written when an epoch ends: the next one is begun, or what is left of this one done.

    By itself, Lightning takes a run by ``max_steps`` for one that stopped inside of an epoch, and counts one too many;
    and an epoch that was cut short for one that is whole.
    """
    loops, whole = checkpoint["loops"]["fit_loop"], epoch_is_whole(trainer)
    if whole and trainer.max_steps == -1:
        return
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    for counts in (epochs["total"], epochs["current"]):
        if whole:
            counts["completed"] = counts["processed"]
        else:
            counts["processed"] = counts["completed"]
    for counts in (batches["total"], batches["current"]):  # as if it stood at the end of its last batch
        counts["completed"] = counts["processed"] - 1
    batches["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # which is added again for that batch
