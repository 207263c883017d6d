"""What a run logs, as one table that a killed and resumed run writes as if it had never stopped."""

import csv
import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from contrastive.runs.disk import sync, write_text

Row = Mapping[str, str]


class MetricsFile(Logger):
    """Writes a row each time something is logged, at once, so that no kill costs one: the columns are sorted by name.

    ``Trainer(logger=MetricsFile("run/metrics.csv"))``. Lightning's own ``CSVLogger`` deletes the file when a run goes
    on, and holds rows back.

    Args:
        file: Where to write.

    Attributes:
        num_rows: How many the file has.
    """

    def __init__(self, file: str | Path) -> None:
        super().__init__()
        self.file = Path(file)
        self.num_rows = 0
        self._columns: list[str] = []
        self._newest: Row = {}

    @property
    def name(self) -> str:
        """The file's."""
        return self.file.name

    @property
    def version(self) -> str:
        """None: a folder holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The file's folder."""
        return str(self.file.parent)

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """These are written elsewhere."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row, unless it is the one just added: see ``RowsOfCheckpoints``."""
        row = {name: str(value) for name, value in {**metrics, "step": step}.items()}
        if row == self._newest:
            return
        if not row.keys() <= set(self._columns):
            earlier = self._rows()
            self._columns = sorted({*self._columns, *row})
            self._write(earlier)
        with self.file.open("a", encoding="utf-8", newline="") as opened:
            csv.DictWriter(opened, self._columns).writerow(row)
        self._newest = row
        self.num_rows += 1

    @rank_zero_only
    def keep(self, num_rows: int) -> None:
        """Begin, or go on, with so many of the rows that the file has, and leave out the others."""
        rows = self._rows()[:num_rows]
        self._columns = sorted({name for row in rows for name in row})
        self._newest = {}
        self.num_rows = len(rows)
        if len(rows) < num_rows:
            warnings.warn(f"{self.file} had {num_rows} rows when the run stopped, {len(rows)} are there.", stacklevel=2)
        if rows:
            self._write(rows)
        else:
            self.file.unlink(missing_ok=True)

    @rank_zero_only
    def sync(self) -> None:
        """All rows are on the disk when this returns."""
        if self.file.exists():
            sync(self.file)

    def _rows(self) -> list[Row]:
        if not self.file.exists():
            return []
        with self.file.open(encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(lines))

    def _write(self, rows: Iterable[Row]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.file, text.getvalue())


class RowsOfCheckpoints(Checkpoint):
    """Each checkpoint holds how many rows were there, and these are on the disk before it is.

    Lightning logs what a step or an epoch came to only after the callbacks that save checkpoints. A run that went on
    from one of these would lack the row, so it is written before; ``MetricsFile`` leaves out Lightning's own, which is
    the same. Put this after all callbacks that log, and before those that save.

    Args:
        logger: The trainer's.
    """

    def __init__(self, logger: MetricsFile) -> None:
        self.logger = logger
        self._kept = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A new run has none; of a resumed one, the checkpoint is read next."""
        self._kept = 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Rows after this checkpoint come again."""
        self._kept = state_dict["num_rows"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave them out."""
        self.logger.keep(self._kept)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the step's row, where it has one."""
        trainer._logger_connector.update_train_step_metrics()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row, with the number of its last step, as Lightning does."""
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
        found = trainer._logger_connector.metrics["log"]
        if found:
            row: dict[str, Any] = {"epoch": trainer.current_epoch, **found}
            trainer._logger_connector.log_metrics(row, step=step)

    def state_dict(self) -> dict[str, Any]:
        """How many rows there are."""
        return {"num_rows": self.logger.num_rows}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Force them to the disk."""
        self.logger.sync()
