"""Hostile files in a folder that is trained on, and worker processes that fail amid the training."""

import json
import os
import re
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from contrastive.data import ImageFolders, from_dataset
from contrastive.runs.checkpoints import WholeCheckpoints, newest
from contrastive.runs.last_checkpoint import LastCheckpoint
from tests import hostile, tiny
from tests.drills.drill import Drill, promise
from tests.drills.process import Ended, forked
from tests.drills.runs import SECONDS, environments
from tests.drills.trainee import COLLECTIVE
from tests.methods import simclr

NOBODY = 65534
MAX_PIXELS = 4_000_000
MOST_MEMORY = 512  # MiB that reading such a folder takes beside what Python and torch have
MOST_SECONDS = 60.0
TIMEOUT_S = 3.0
TO_END = 20.0  # seconds from a worker's death, or its time's end, to that of the run, on a busy machine


# Files


@pytest.fixture
def hostile_folder() -> Iterator[Path]:
    """Good files, odd ones and all the hostile ones, where others than the owner may look."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    before = Path.cwd()
    os.chdir(folder)  # a socket's path may have 107 bytes
    for k in range(8):
        Image.new("RGB", (16, 16), (k, 0, 0)).save(folder / f"good {k}.png")
    for name, contents in hostile.USABLE.items():
        (folder / name).write_bytes(contents())
    for name, (made, _) in hostile.FILES.items():
        (folder / name).write_bytes(made())
    for name, (make, _) in hostile.ENTRIES.items():
        make(folder / name)
    yield folder
    os.chdir(before)
    shutil.rmtree(folder)


def read(folder: Path) -> None:
    """Read all of it twice, as a user without rights beyond his own, where some library has unset Pillow's limit."""
    Image.MAX_IMAGE_PIXELS = None
    if os.getuid() == 0:
        os.setuid(NOBODY)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = ImageFolders(folder, image_size=16, batch_size=4, num_workers=0, max_bad_fraction=0.9, max_pixels=MAX_PIXELS)
    data.setup()
    seen = [number for batch in data.bank_dataloader() for number in batch["index"].tolist()]
    trained = [number for batch in data.train_dataloader() for number in batch["index"].tolist()]
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    found = {
        "bad": data.bad_files["train"],
        "read": [data.train_files[number] for number in seen],
        "trained": len(set(trained)),
        "MiB": (most - before) // 1024,
        "seconds": time.monotonic() - start,
    }
    print("found", json.dumps(found), flush=True)


@promise(
    "Files that are no images are named with the cause and left out, and odd ones are used: bombs by their header, "
    "files cut short, pipes, rings of links. None is waited for, passed over in silence, or takes much memory."
)
def test_hostile_files(drill: Drill, hostile_folder: Path, tmp_path: Path) -> None:
    with forked(read, hostile_folder, folder=tmp_path) as reader:
        end = reader.ended(SECONDS)
    assert end.code == 0, end.stderr
    found = json.loads(end.stdout.partition("found ")[2])
    for name, (_, cause) in (hostile.FILES | hostile.ENTRIES).items():
        said = found["bad"].pop(name, None)
        drill.trial(lost=said is None or not re.search(cause, said), note=f"{name} is said to be: {said}")
    for name in [*hostile.USABLE, *(f"good {k}.png" for k in range(8))]:
        drill.trial(lost=name not in found["read"], note=f"{name!a} was not read")
    rest = [name for name in found["bad"] if name != "ring.png"]
    drill.trial(lost=bool(rest), note=f"also left out: {rest}")
    drill.trial(lost=found["trained"] != len(found["read"]) // 4 * 4, note=f"{found['trained']} trained on")
    drill.trial(lost=found["MiB"] > MOST_MEMORY, note=f"{found['MiB']} MiB taken")
    drill.trial(lost=found["seconds"] > MOST_SECONDS, note=f"took {found['seconds']:.1f} s")


# Workers


class Fails(Dataset[Tensor]):
    """Images; a worker process that reads the last one of the fourth batch fails, if told how."""

    def __init__(self, how: str, rank: int) -> None:
        self.images = tiny.images(64)
        self.how = how if rank == int(os.environ.get("LOCAL_RANK", "0")) else ""
        self.left = 13

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        if get_worker_info() is not None:
            self.left -= 1
            if self.left == 0:
                self.fail()
        return self.images[index]

    def fail(self) -> None:
        """In the way that was chosen."""
        if self.how:
            os.write(1, b"fails now\n")
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "hangs":
            time.sleep(1e6)
        elif self.how == "leaves":
            os._exit(3)
        elif self.how == "raises":
            raise RuntimeError("the database is gone")


CAUSES = {
    "killed": r"LoadingError: Worker process 0 \(pid \d+\) was killed by SIGKILL\. Most often that is the kernel",
    "hangs": r"LoadingError: No batch came from worker process 0 \(pid \d+\) within worker_timeout_s=3\. ",
    "leaves": r"LoadingError: Worker process 0 \(pid \d+\) ended with exit code 3 amid its work",
    "raises": r"LoadingError: A batch could not be loaded\. RuntimeError: the database is gone",
}


def train(folder: Path, how: str, ranks: int = 1) -> None:
    """Train two epochs with one worker a rank; that of the last rank fails in the first."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = from_dataset(Fails(how, ranks - 1), batch_size=4, num_workers=1, worker_timeout_s=TIMEOUT_S)
    trainer = tiny.trainer(
        [LastCheckpoint(folder)],
        plugins=[WholeCheckpoints()],
        max_epochs=2,
        devices=ranks,
        strategy="auto" if ranks == 1 else DDPStrategy(process_group_backend="gloo", timeout=COLLECTIVE),
        enable_checkpointing=True,
    )
    trainer.fit(simclr.build(), data, ckpt_path=newest(folder).path)
    print(f"trained {trainer.global_step} steps", flush=True)


def failed(folder: Path, how: str, ranks: int = 1) -> tuple[Ended, float]:
    """How such a training ends, and how long after the failure."""
    with forked(train, folder, how, ranks, folder=folder / "output", environments=environments(ranks)) as trainer:
        trainer.line("fails now", SECONDS)
        start = time.monotonic()
        return trainer.ended(SECONDS), time.monotonic() - start


@promise(
    "A worker process that is killed, hangs, leaves or raises ends the run, at once or after worker_timeout_s: the "
    "cause is said, nothing is left running, and the run goes on from a checkpoint of the last step."
)
@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[pytest.mark.exhaustive] if how in ("leaves", "raises") else []) for how in CAUSES]
)
def test_failing_workers(how: str, drill: Drill, tmp_path: Path) -> None:
    end, seconds = failed(tmp_path, how)
    limit = TO_END + (TIMEOUT_S if how == "hangs" else 0)
    drill.trial(lost=end.code != 1, note=f"{how}: ended with {end.code}")
    drill.trial(lost=seconds > limit, note=f"{how}: ended after {seconds:.1f} s")
    drill.trial(lost=not re.search(CAUSES[how], end.stderr), note=f"{how}: said {end.stderr[-500:]}")
    kept = newest(tmp_path)
    steps = torch.load(kept.path, weights_only=True)["global_step"] if kept.path else None
    at_least = 1 if how in ("killed", "leaves") else 3  # what a dying worker has read may be lost with it
    drill.trial(lost=steps is None or steps < at_least or bool(kept.skipped), note=f"{how}: kept step {steps}")
    with forked(train, tmp_path, "", folder=tmp_path / "again") as again:
        drill.trial(lost="trained 32 steps" not in again.ended(SECONDS).stdout, note=f"{how}: did not go on")


@promise("A worker process that fails on one rank ends all ranks within half a minute, and it is said why.")
@pytest.mark.parametrize("how", [pytest.param("killed", marks=pytest.mark.exhaustive), "hangs"])
def test_failing_workers_of_one_rank(how: str, drill: Drill, tmp_path: Path) -> None:
    end, seconds = failed(tmp_path, how, ranks=2)
    drill.trial(lost=0 in end.codes, note=f"{how}: ended with {end.codes}")
    drill.trial(lost=seconds > 30 + TIMEOUT_S, note=f"{how}: ended after {seconds:.1f} s")
    drill.trial(lost=not re.search(CAUSES[how], end.stderr), note=f"{how}: said {end.stderr[-500:]}")
