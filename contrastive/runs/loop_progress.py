"""Where a checkpoint says that Lightning's loops stand, put so that a resumed run does all that was left, and once.

Tried with Lightning 2.6: at two moments what it writes by itself makes it leave a validation or an epoch out.
"""

from typing import Any


def validate_anew(checkpoint: dict[str, Any]) -> None:
    """Of a checkpoint written inside a validation: all of it is done again, and then what follows it.

    By itself, Lightning leaves it out, as if it had been finished.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):  # as if it stood in its first batch
        counts.update(ready=1, started=1, processed=0, completed=0)


def begin_next_epoch(checkpoint: dict[str, Any]) -> None:
    """Of a checkpoint of a run by ``max_steps`` written when an epoch ended: the next one is begun.

    By itself, Lightning takes the run for one that stopped inside of an epoch, and counts one too many.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    for counts in (epochs["total"], epochs["current"]):
        counts["completed"] = counts["processed"]
    for counts in (batches["total"], batches["current"]):  # as if it stood at the end of its last batch
        counts["completed"] = counts["processed"] - 1
    batches["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # which is added again for that batch
