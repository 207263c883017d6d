"""What a run saw and what became of it, written down as it happens; compared with a run that nothing happened to."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from contrastive.module import Batch, Step, Views

PARTS = ("encoder", "momentum_encoder", "queue")  # of methods that have them
Line = dict[str, Any]


class TraceWriter(pl.Callback):
    """Writes a line of JSON for each batch, epoch and end of a training, at once, to ``FOLDER/trace-RANK.jsonl``.

    Args:
        folder: Where.
        probes: Whose heads are looked at too.
    """

    def __init__(self, folder: Path, probes: Sequence[pl.Callback]) -> None:
        self.folder = folder
        self.probes = probes
        self.views: list[str] = []  # a digest for each image
        self.is_validated = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the views of every step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = (self.folder / f"trace-{trainer.global_rank}.jsonl").open("a")
        step = pl_module.step

        def seen(views: Views, batch: Batch) -> Step:
            self.views = [digest([view[place] for view in views])[:16] for place in range(len(batch["index"]))]
            return step(views, batch)

        pl_module.step = seen

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._write(
            at=f"epoch {trainer.current_epoch}, batch {batch_idx}",
            epoch=trainer.current_epoch,
            step=self.step,
            lr=self.lr.hex(),
            index=batch["index"].tolist(),
            views=self.views,
            loss=outputs["loss"].item().hex(),
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.is_validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        of_epoch = {  # neither those of an earlier validation nor the last batch's loss, which stands in its own line
            name: value.item().hex()
            for name, value in sorted(trainer.callback_metrics.items())
            if name != "train/loss" and (self.is_validated or name == "linear_probe/train_top1")
        }
        self._write(at=f"end of epoch {trainer.current_epoch}", metrics=of_epoch, **self._digests(pl_module))
        self.is_validated = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = {"optimizer": trainer.optimizers[0], "schedule": trainer.lr_scheduler_configs[0].scheduler}
        digests = {name: digest(part.state_dict()) for name, part in state.items()}
        self._write(at="the end", step=trainer.global_step, **digests, **self._digests(pl_module))

    def _digests(self, module: pl.LightningModule) -> dict[str, str]:
        parts = {name: getattr(module, name).state_dict() for name in PARTS if hasattr(module, name)}
        held = {"method": module.state_dict(), "probes": [probe.state_dict() for probe in self.probes]}
        return {name: digest(part) for name, part in (parts | held).items()}

    def _write(self, **line: Any) -> None:
        print(json.dumps(line), file=self.file, flush=True)


def digest(nested: Any) -> str:
    """SHA-256 of all that mappings and lists hold, bit for bit."""
    found = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype}{list(part.shape)}".encode())
            found.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, Mapping):
            for key, value in part.items():
                add(key)
                add(value)
        elif isinstance(part, list | tuple):
            for value in part:
                add(value)
        else:
            found.update(repr(part).encode())
        found.update(b";")

    add(nested)
    return found.hexdigest()


def read(folder: Path, rank: int = 0) -> list[Line]:
    """All lines, of all processes that were this rank, in the order in which they were written."""
    lines = (folder / f"trace-{rank}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def last(lines: Sequence[Line]) -> dict[str, Line]:
    """By what they are of; of steps that were done again, the last."""
    return {line["at"]: line for line in lines}


def difference(found: Sequence[Line], reference: Sequence[Line]) -> str:
    """What is not as in the run that nothing happened to, in words; empty where all is.

    Steps that were done, lost and done again must have been the same each time.
    """
    expected = last(reference)
    for line in found:
        if line["at"] not in expected:
            return f"{line['at']} is in no uninterrupted run"
        for name, value in expected[line["at"]].items():
            if line.get(name) != value:
                return f"{name} at {line['at']} is {line.get(name)}, and {value} without interruption"
    missing = [at for at in expected if at not in last(found)]
    return f"{len(missing)} are missing, first {missing[0]}" if missing else ""
