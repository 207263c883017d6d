"""What a person sees in the shell: progress, tables, and no noise."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

TALKERS = ("utilities.rank_zero", "trainer.connectors.checkpoint_connector")  # modules of Lightning
# Parts of Lightning's messages that tell the user of the shell nothing to act on, each with the reason.
IRRELEVANT_MESSAGES = (
    "GPU available",  # the header says what the run uses
    "TPU available",  # likewise
    "litlogger",  # an advertisement
    "Using bfloat16 Automatic Mixed Precision",  # the header says it
    "`Trainer.fit` stopped",  # the table that follows says it
    "to estimate number of stepping batches",  # how the schedule learns its length
    "that has Tensor Cores",  # --precision is the shell's way to use them
    "LOCAL_RANK",  # the header says which devices are used
    "Detected KeyboardInterrupt",  # the shell's own line says it
    "from the checkpoint at",  # the shell's own line says it: where a run goes on
    "Restoring states from",  # likewise
    "`weights_only` was not set",  # nothing is ever loaded otherwise
)
IRRELEVANT_WARNINGS = (
    ".*treespec, LeafSpec.*deprecated",  # between Lightning and torch; nothing of the user's or ours
    ".*Checkpoint directory .* exists and is not empty",  # of a run that goes on
    ".*The dirpath has changed",  # of a run's folder that was moved: what it has kept stays
    ".*does not have many workers",  # their number is a recipe's option
    ".*stopped short of the optimum",  # the table says so
)
REFRESH_EVERY_STEPS = 10


class RunProgress(ProgressBar):
    """One bar for the whole run; where the output is no terminal, one line per epoch.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self.bar = Progress(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal)
        self.prints_lines = not console.is_terminal

    def disable(self) -> None:
        """Draw nothing: Lightning asks this of every rank but the first."""
        self.bar.disable, self.prints_lines = True, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The bar appears."""
        self.started = time.perf_counter()
        self.bar.start()
        steps = trainer.estimated_stepping_batches
        self.task = self.bar.add_task(self._text(trainer), total=steps, completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The bar moves; the numbers beside it only now and then, as reading one waits for the device."""
        self.bar.update(self.task, completed=trainer.global_step)
        if trainer.global_step % REFRESH_EVERY_STEPS == 0:
            self.bar.update(self.task, description=self._text(trainer))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A line for files and pipes."""
        if self.prints_lines:
            self.console.print(self._text(trainer), highlight=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The bar gives way to one line."""
        self.bar.stop()
        if trainer.is_global_zero:
            minutes, seconds = divmod(round(time.perf_counter() - self.started), 60)
            self.console.print(f"Trained in {minutes} min {seconds} s: {self._text(trainer)}", highlight=False)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The terminal's cursor is given back."""
        self.bar.stop()

    @staticmethod
    def _text(trainer: pl.Trainer) -> str:
        metrics = trainer.progress_bar_metrics
        shown = [f"epoch {_epoch_number(trainer)}/{trainer.max_epochs}"]
        if "train/loss" in metrics:
            shown.append(f"loss {metrics['train/loss']:.3f}")
        for name, value in metrics.items():
            if name.endswith("/top1") and isinstance(value, int | float):
                shown.append(f"{probe_name(name)} {100 * value:.1f} %")
        return "  ".join(shown)


class Told:
    """A bar for what takes long, told of by ``(what, done, total)``; nothing is drawn where the output is no terminal.

    One bar at a time: what is told of next takes its place.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal)
        self.task: TaskID | None = None
        self.what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Move the bar."""
        if self.task is None or what != self.what:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task, self.what = self.bar.add_task(what, total=total), what
        self.bar.update(self.task, completed=done, total=total)

    def __enter__(self) -> "Told":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def top1_table(rows: Mapping[str, Sequence[float]], *, num_images: int) -> Table:
    """Top-1 accuracies in percent, one line for each network; of several seeds the mean and the range.

    Args:
        rows: Names of the networks, and what they reached, one number a seed.
        num_images: How many images they are of.
    """
    table = Table(box=SIMPLE_HEAD, header_style="")
    table.add_column("")
    table.add_column(f"top-1 accuracy on\n{num_images:,} unseen images", justify="right")
    for name, values in rows.items():
        mean = f"{100 * sum(values) / len(values):.1f} %"
        spread = f" ({100 * min(values):.1f} to {100 * max(values):.1f}, {len(values)} seeds)"
        table.add_row(name, mean + (spread if len(values) > 1 else ""))
    return table


def probe_name(metric: str) -> str:
    """What people call the probe that logs ``.../top1``."""
    name = metric.removesuffix("/top1")
    return {"knn": "kNN", "linear_probe": "linear probe"}.get(name, name)


@contextmanager
def without_noise() -> Iterator[None]:
    """Keeps the named messages and warnings off the screen; the other warnings take one line each."""
    loggers = [logging.getLogger(f"pytorch_lightning.{name}") for name in TALKERS]
    for logger in loggers:
        logger.addFilter(_is_relevant)
    try:
        with warnings.catch_warnings():
            for message in IRRELEVANT_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            warnings.showwarning = _show_in_one_line
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_relevant)


def _epoch_number(trainer: pl.Trainer) -> int:
    """From 1; when training has ended, Lightning already counts one more than there was."""
    return min(trainer.current_epoch + 1, trainer.max_epochs or 1)


def _show_in_one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _is_relevant(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in IRRELEVANT_MESSAGES)
