"""A small training that goes on by itself where it was stopped: ``python -m tests.drills.trainee FOLDER --epochs 3``.

It trains as any trainer script does, with the protections of ``contrastive.runs``, and writes down all that it sees. It
can be told to kill itself at a chosen moment.
"""

import os
import signal
import time
from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torchvision.transforms.functional import to_pil_image

from contrastive.callbacks import KNNProbe, LinearProbe
from contrastive.data import ImageFolders
from contrastive.data.module import ImageData
from contrastive.module import ContrastiveModule
from contrastive.runs import Continuity, FiniteLoss, LastCheckpoint, Preempted, WholeCheckpoints, newest
from tests import tiny
from tests.drills.trace import TraceWriter

COLLECTIVE = timedelta(seconds=100)  # a rank that waits longer for another has waited in vain


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is trained, and what happens to it.

    A moment is ``HOOK:N``, the N-th call in this process of a hook that Lightning calls, or of one of the functions in
    ``functions``.

    Attributes:
        folder: Of the run: ``checkpoints`` and the traces.
        method: A file of tests/methods.
        dropout: Whether the encoder ends with one.
        alone: Whether what an image becomes depends on it alone: LayerNorm for BatchNorm, whose running statistics are
            each rank's own until the next step, and in a checkpoint those of the first.
        files: A folder that ``draw`` made; images are in memory unless given.
        workers: That read the files.
        images: How many are trained on.
        batch_size: Per rank.
        epochs: To train for.
        steps: To train for, instead of epochs.
        accumulate: Batches in a step.
        ranks: How many.
        precision: Of Lightning.
        sanity: Validation batches before training.
        validations: In an epoch.
        minutes: Between checkpoints; 0 for one after every step.
        kill: The moment at which the first rank sends itself a signal.
        kill_by: The signal; SIGKILL.
        kill_group: Whether it takes the other ranks and all workers with it.
        tell: The moment at which to write ``at HOOK:N, PID`` and wait for a signal.
        tell_rank: The rank that does.
        pause: Seconds to wait then.
        linger: Seconds for which the first rank does not end after a fit that was stopped.
    """

    folder: Path
    method: str = "simclr"
    dropout: bool = False
    alone: bool = False
    files: Path | None = None
    workers: int = 0
    images: int = 48
    batch_size: int = 8
    epochs: int = 2
    steps: int = -1
    accumulate: int = 1
    ranks: int = 1
    precision: str = "32-true"
    sanity: int = 0
    validations: int = 1
    minutes: float = 0.0
    kill: str = ""
    kill_by: int = signal.SIGKILL.value
    kill_group: bool = False
    tell: str = ""
    tell_rank: int = 0
    pause: float = 0.4
    linger: float = 0.0

    @property
    def checkpoints(self) -> Path:
        """Where they are written."""
        return self.folder / "checkpoints"

    def words(self) -> list[str]:
        """The command line that says the same."""
        said = [str(self.folder)]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                name = f"--{field.name.replace('_', '-')}"
                said += [name] if value is True else [name, str(value)]
        return said

    @classmethod
    def of_words(cls) -> Self:
        """Of this process's command line."""
        parser = ArgumentParser()
        for field in fields(cls):
            if field.default is MISSING:
                parser.add_argument(field.name, type=Path)
            elif isinstance(field.default, bool):
                parser.add_argument(f"--{field.name.replace('_', '-')}", action=BooleanOptionalAction, default=False)
            else:
                kind = Path if field.default is None else type(field.default)
                parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
        return cls(**vars(parser.parse_args()))


def draw(folder: Path, count: int = 48) -> Path:
    """Image files in four class folders, to train on and to validate."""
    for split, number in (("train", count), ("val", count // 2)):
        for place, image in enumerate(tiny.images(number)):
            file = folder / split / f"class_{place % 4}" / f"{place:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(image).save(file)
    return folder


def train(options: Options) -> pl.Trainer:
    """Train to the end, from where an earlier call came to."""
    torch.set_num_threads(1)
    torch.manual_seed(3)  # the first weights are the same in every process
    module, data = module_of(options), data_of(options)
    trainer = trainer_of(options, module, data)
    print(f"rank {trainer.global_rank} is {os.getpid()}", flush=True)
    try:
        trainer.fit(module, data, ckpt_path=newest(options.checkpoints).path, weights_only=True)
    except Preempted:
        if trainer.is_global_zero:
            time.sleep(options.linger)
        raise
    return trainer


def module_of(options: Options) -> ContrastiveModule:
    """The method, of the first weights."""
    encoder = tiny.DenseEncoder() if options.alone else tiny.ConvEncoder()
    if options.dropout:
        encoder.append(nn.Dropout(0.3))
    module: ContrastiveModule = import_module(f"tests.methods.{options.method}").build(encoder)
    return tiny.without_batch_norm(module) if options.alone else module


def data_of(options: Options) -> ImageData:
    """The images, from files or in memory."""
    if options.files is None:
        return tiny.data(options.images, options.batch_size)
    train, val = options.files / "train", options.files / "val"
    return ImageFolders(train, val, image_size=8, batch_size=options.batch_size, num_workers=options.workers)


def trainer_of(options: Options, module: ContrastiveModule, data: ImageData) -> pl.Trainer:
    """Lightning's, with the protections on, told what is to happen when."""
    probes = [LinearProbe(num_classes=4), KNNProbe(k=3)]
    callbacks = [Continuity(), *probes, FiniteLoss(options.folder), TraceWriter(options.folder, probes)]

    def kill() -> None:
        if options.kill_group:
            os.killpg(os.getpgrp(), options.kill_by)
        os.kill(os.getpid(), options.kill_by)

    def tell() -> None:
        print(f"at {options.tell}, {os.getpid()}", flush=True)
        time.sleep(options.pause)

    strategy = "auto"
    if options.ranks > 1:
        strategy = DDPStrategy(process_group_backend="gloo", timeout=COLLECTIVE)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    functions = {
        "replace": (os, "replace"),
        "fsync": (os, "fsync"),
        "bank": (data, "bank_dataloader"),
        "forward": (module, "forward"),
    }
    for moment, act, of_rank in ((options.kill, kill, 0), (options.tell, tell, options.tell_rank)):
        hook, _, number = moment.partition(":")
        if not hook or rank != of_rank:
            continue
        if hook in functions:
            owner, name = functions[hook]
            setattr(owner, name, at_call(int(number), act, getattr(owner, name)))
        else:
            watcher = pl.Callback()
            setattr(watcher, hook, at_call(int(number), act, getattr(watcher, hook)))
            callbacks.append(watcher)
    return tiny.trainer(
        [*callbacks, LastCheckpoint(options.checkpoints, every_minutes=options.minutes or 1e-9)],
        plugins=[WholeCheckpoints()],
        devices=options.ranks,
        strategy=strategy,
        max_epochs=-1 if options.steps > 0 else options.epochs,
        max_steps=options.steps,
        accumulate_grad_batches=options.accumulate,
        precision=options.precision,
        num_sanity_val_steps=options.sanity,
        val_check_interval=1 / options.validations,
        log_every_n_steps=1,
        enable_checkpointing=True,
    )


def at_call(number: int, act: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; before its call of that number, something happens."""
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return function(*arguments, **named)

    return counted


if __name__ == "__main__":
    train(Options.of_words())
