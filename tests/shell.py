"""The shell as a process to be killed: ``python -m tests.shell SIGTERM 20 fit ...`` sends itself that after step 20."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from contrastive.cli import main
from contrastive.runs import training
from contrastive.runs.watch import LogProgress


def draw_images(folder: Path, *, train: int = 2, test: int = 2) -> Path:
    """Ten classes of solid colours with noise, 32x32: so many images of each to train on and to test."""
    noise = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label in range(10):
            (folder / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 60, (32, 32, 3)) + 19 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"class{label}" / f"{number}.png")
    return folder


class Signalling(LogProgress):
    """Sends this process signals when a step's batch ends, before what the step logs is written."""

    signals: tuple[signal.Signals, ...] = ()
    step = 0

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        super().on_train_batch_end(trainer, *rest)
        for number in self.signals if trainer.global_step == self.step else ():
            os.kill(os.getpid(), number)


if __name__ == "__main__":
    names, step, *words = sys.argv[1:]
    Signalling.signals, Signalling.step = tuple(signal.Signals[name] for name in names.split("+")), int(step)
    training.LogProgress = Signalling
    sys.exit(main(words))
