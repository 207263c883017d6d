"""Checkpoint files: killed while they are written, on full disks, after power cuts, flipped, hostile."""

import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest
import torch

from contrastive import load_encoder
from contrastive.callbacks import KNNProbe, LinearProbe, RepresentationMonitor
from contrastive.cli import main
from contrastive.runs.checkpoints import DIGESTS, WholeCheckpoints, newest, prepare
from contrastive.runs.continuity import Continuity
from contrastive.runs.finite import FiniteLoss
from contrastive.runs.last_checkpoint import LastCheckpoint
from tests import tiny
from tests.drills.drill import Drill, promise
from tests.drills.process import forked
from tests.drills.runs import SECONDS, ended, finished
from tests.drills.trainee import Options, train
from tests.methods import METHODS
from tests.shell import draw_images
from tests.test_runs_checkpoints import flip, served

__all__ = ["served"]  # a fixture

NEVER = 10**9  # a boundary that no process reaches
NUMBERS = 500_000  # of a checkpoint, 2 MB
TO_THE_DISK = {os.fsync, os.replace, os.rename, os.sendfile, os.link, os.unlink}


def content(step: int) -> dict[str, Any]:
    """A checkpoint whose every number tells its step."""
    return {"global_step": step, "state_dict": {"weight": torch.full((NUMBERS,), float(step))}}


def is_whole(checkpoint: dict[str, Any]) -> bool:
    """Whether all of it is of one step."""
    return bool((checkpoint["state_dict"]["weight"] == checkpoint["global_step"]).all())


# Kills


def save_on(file: Path, step: int, boundary: int) -> None:
    """Save again and again; from the second time on, kill this process at one boundary of what reaches the disk.

    Args:
        file: Where.
        step: Of the last checkpoint before.
        boundary: The place in the list of calls, twice: before and after each. -1: it is told how many there are.
    """
    io, seen = WholeCheckpoints(), 0

    def watch(frame: FrameType, event: str, called: Any) -> None:
        nonlocal seen
        writes = getattr(called, "__name__", "") == "write" and hasattr(getattr(called, "__self__", None), "fileno")
        if event in ("c_call", "c_return") and (writes or called in TO_THE_DISK):
            if seen == boundary:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    for number in itertools.count(step + 1):
        io.save_checkpoint(content(number), file)
        sys.setprofile(None)
        print(f"saved {number}", flush=True)
        if boundary == -1 and seen:
            print(f"boundaries {seen}", flush=True)
            return
        sys.setprofile(watch)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose temporary folder is on another file system than the checkpoints."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert os.stat(folder).st_dev != os.stat(tmp_path).st_dev
        yield {"TMPDIR": folder}


@promise(
    "Whenever a process is killed while it writes a checkpoint, also with the temporary folder on another file system, "
    "the newest checkpoint is whole and of the last completed save or a later one; what is left over is cleared away."
)
@pytest.mark.parametrize("kills", [15, pytest.param(50, marks=pytest.mark.exhaustive)])
def test_kills_while_saving(drill: Drill, tmp_path: Path, elsewhere: dict[str, str], kills: int) -> None:
    folder, output, random, reached = tmp_path / "checkpoints", tmp_path / "output", Random(kills), 0
    file = folder / "last.ckpt"
    with forked(save_on, file, reached, -1, folder=output, environments=[elsewhere]) as process:
        boundaries = int(process.line("boundaries", SECONDS))
    reached = WholeCheckpoints().load_checkpoint(file)["global_step"]
    ends = [*range(8), *range(boundaries - 20, boundaries)]  # the rest is the many writes of one file
    planned = random.sample(ends, min(len(ends), kills * 2 // 3))
    planned += random.sample(range(8, boundaries - 20), (kills - len(planned)) // 2)
    for boundary in [*planned, *[None] * (kills - len(planned))]:
        place = NEVER if boundary is None else boundary
        with forked(save_on, file, reached, place, folder=output, environments=[elsewhere]) as process:
            process.line("saved", SECONDS)
            if boundary is None:
                time.sleep(random.uniform(0, 0.05))
                process.signal(signal.SIGKILL)
            end = process.ended(SECONDS)
        told = [int(line.split()[1]) for line in end.stdout.splitlines() if line.startswith("saved")]
        found, note = newest(folder), f"killed at {boundary} of {boundaries} after step {told[-1]}"
        if found.path is None or end.code != -signal.SIGKILL:
            drill.trial(lost=True, note=f"{note}: {end.code}, {found}")
            continue
        loaded = WholeCheckpoints().load_checkpoint(found.path)
        reached = loaded["global_step"]
        kept = found.path == file and not found.skipped and is_whole(loaded) and reached in (told[-1], told[-1] + 1)
        drill.trial(lost=not kept, note=f"{note}: {found}, step {reached}")
    orphans = prepare(folder)
    left = {path.name for path in folder.iterdir()} - {"last.ckpt", DIGESTS}
    drill.trial(lost=not orphans or bool(left), note=f"{len(orphans)} halves swept, {left} left")


# Power cuts


class Disk:
    """What of a folder has reached the disk: contents by fsync of a file, names by fsync of the folder.

    Args:
        folder: That is written to.
        after: Called after everything that may reach the disk.
    """

    def __init__(self, folder: Path, after: Callable[[], None]) -> None:
        self.folder = folder
        self.after = after
        self.contents: dict[int, bytes] = {}
        self.names: dict[str, int] = {}

    @contextmanager
    def watched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Within it, what the disk has is known."""
        real = {name: getattr(os, name) for name in ("fsync", "replace", "link")}

        def fsync(number: int) -> None:
            real["fsync"](number)
            path = Path(os.readlink(f"/proc/self/fd/{number}"))
            if path == self.folder:
                self.names = self.named()
            elif path.is_file():
                self.contents[path.stat().st_ino] = path.read_bytes()
            self.after()

        def renamed(name: str) -> Callable[..., None]:
            def call(*arguments: Any) -> None:
                real[name](*arguments)
                self.after()

            return call

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fsync)
            for name in ("replace", "link"):
                patched.setattr(os, name, renamed(name))
            yield

    def named(self) -> dict[str, int]:
        """The files that a process sees now, with their numbers."""
        return {path.name: path.stat().st_ino for path in self.folder.iterdir()}

    def cut(self, names: dict[str, int], folder: Path) -> Path:
        """The folder after a power cut."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, number in names.items():
            (folder / name).write_bytes(self.contents.get(number, b""))
        return folder


@promise(
    "After a power cut (simulated) at any moment of saving, whatever of the names reached the disk, the newest "
    "checkpoint is whole and not older than the last completed save."
)
def test_power_cuts_while_saving(drill: Drill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, folder, completed = WholeCheckpoints(), tmp_path / "checkpoints", 0

    def look() -> None:
        for names in (disk.names, {**disk.names, **disk.named()}, disk.named()) if completed else ():
            found = newest(disk.cut(names, tmp_path / "cut"))
            step = -1 if found.path is None else io.load_checkpoint(found.path)["global_step"]
            drill.trial(lost=step < completed, note=f"step {step} after {completed}: {sorted(names)}, {found.skipped}")

    folder.mkdir()
    disk = Disk(folder, look)
    with disk.watched(monkeypatch):
        for step in range(1, 4):
            for name in ("last.ckpt", "epoch.ckpt") if step == 2 else ("last.ckpt",):
                io.save_checkpoint({"global_step": step}, folder / name)
                completed = step


# Disks that are full, folders that cannot be written to


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Within it the folder is on a disk of so many bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def limited(options: Options, size: int) -> None:
    """Train, and write no file of more bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    train(options)


@promise(
    "A checkpoint for which there is no room (files may not grow so large) ends a run with an error that says so, and "
    "leaves the last one whole; the run then goes on."
)
@pytest.mark.exhaustive
def test_no_room_for_a_checkpoint(drill: Drill, tmp_path: Path) -> None:
    options = Options(folder=tmp_path / "run", epochs=1)
    finished(options)
    longer = Options(folder=options.folder, epochs=2)
    last = options.checkpoints / "last.ckpt"
    before = last.read_bytes()
    for size in (len(before) // 2, len(before) * 3 // 4, len(before) - 1):  # more than is printed
        with forked(limited, longer, size, folder=tmp_path / "output") as process:
            end = process.ended(SECONDS)
        drill.trial(
            lost=end.code <= 0 or "could not be written: [Errno 27]" not in end.stderr or last.read_bytes() != before,
            note=f"{size} bytes: exit {end.code}, {end.stderr[-1500:]}",
        )
    finished(longer)
    drill.trial(lost=newest(options.checkpoints).path != last or last.read_bytes() == before, note="it does not go on")


@promise("A full disk is an error that says so, and the last checkpoint on it stays whole.")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk; RLIMIT_FSIZE is drilled beside it")
def test_full_file_system(drill: Drill, tmp_path: Path) -> None:
    folder, io = tmp_path / "disk", WholeCheckpoints()
    with small_disk(folder, 5_000_000):
        io.save_checkpoint(content(1), folder / "last.ckpt")
        for filled in range(0, 900_000, 100_000):
            (folder / "other").write_bytes(bytes(500_000 + filled))
            failed = ""
            try:
                for step in (2, 3):
                    io.save_checkpoint(content(step), folder / f"epoch-{step}.ckpt")
            except OSError as error:
                failed = str(error)
            found = newest(folder)
            whole = found.path is not None and not found.skipped and is_whole(io.load_checkpoint(found.path))
            drill.trial(lost=not whole or "No space left on device" not in failed, note=f"{failed}, {found}")
            for file in folder.glob("epoch-*"):
                io.remove_checkpoint(file)


@promise("A folder that cannot be written to is an error before the first step of training.")
def test_unwritable_before_training(drill: Drill, tmp_path: Path) -> None:
    options = Options(folder=tmp_path / "run", epochs=1)
    options.folder.mkdir()
    options.checkpoints.write_text("a file")
    end = ended(options)
    trained = (options.folder / "trace-0.jsonl").exists() and (options.folder / "trace-0.jsonl").stat().st_size
    lost = end.code <= 0 or trained or "Nothing can be written to" not in end.stderr
    drill.trial(lost=bool(lost), note=f"exit {end.code}, {end.stderr[-1500:]}")


# Damage


@promise(
    "One flipped bit anywhere in a checkpoint is found, and the one before is used; without the list of digests, it is "
    "found wherever it would change what is loaded."
)
@pytest.mark.parametrize("flips", [40, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_flipped_bits(drill: Drill, tmp_path: Path, flips: int) -> None:
    io, random = WholeCheckpoints(), Random(flips)
    older, newer = tmp_path / "epoch-0001.ckpt", tmp_path / "last.ckpt"
    weights = {"weight": torch.rand(2000)}
    for step, file in enumerate((older, newer)):
        io.save_checkpoint({"global_step": step, "state_dict": weights}, file)
    whole, listed = newer.read_bytes(), (tmp_path / DIGESTS).read_bytes()
    for trial in range(flips):
        newer.write_bytes(whole)
        (tmp_path / DIGESTS).write_bytes(listed)
        flip(newer, random.randrange(len(whole)))
        if trial % 2:
            (tmp_path / DIGESTS).unlink()
        found = newest(tmp_path)
        unharmed = found.path == newer and bool(trial % 2)  # bytes of the archive that nothing reads
        if unharmed:
            loaded = io.load_checkpoint(newer)
            unharmed = torch.equal(loaded["state_dict"]["weight"], weights["weight"]) and loaded["global_step"] == 1
        said = trial % 2 or list(found.skipped) == [newer]  # without the list, what cannot be read counts as older
        lost = not unharmed and (found.path != older or not said)
        drill.trial(lost=lost, note=f"flip {trial}: {found}")


# Hostile files


class Malicious:
    """Unpickled, it leaves a canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def in_shell(words: list[str]) -> None:
    """A command of the shell."""
    sys.exit(main(words))


@promise("A checkpoint that would run code when it is unpickled never does, be it a file or at an http address.")
def test_malicious_files(drill: Drill, tmp_path: Path, served: str) -> None:
    canary, file, io = tmp_path / "canary", tmp_path / "last.ckpt", WholeCheckpoints()
    torch.save({"state_dict": Malicious(canary), "global_step": 3}, file)

    def refused(what: str, attempt: Callable[[Any], object], source: Path | str) -> None:
        message = "nothing was raised"
        try:
            attempt(source)
        except ValueError as error:
            message = str(error)
        lost = canary.exists() or "run code" not in message
        drill.trial(lost=lost, note=f"{what}({source}): {message}, {canary.exists()}")

    def fit(source: Path | str) -> None:
        trainer = tiny.trainer(plugins=[io], max_epochs=1)
        trainer.fit(METHODS["simclr"].build(), tiny.data(), ckpt_path=source)

    for source in (file, f"{served}/last.ckpt"):
        refused("load_checkpoint", io.load_checkpoint, source)
        refused("fit", fit, source)
    refused("load_encoder", load_encoder, file)
    found = newest(tmp_path)
    drill.trial(lost=canary.exists() or found.path is not None, note=f"{found}")


@promise(
    "Nor does one that lies in a run's folder, or is named instead, when the shell goes on with it, evaluates it, "
    "exports it or embeds with it: each ends with an error."
)
@pytest.mark.exhaustive
def test_malicious_run(drill: Drill, tmp_path: Path) -> None:
    images, run, canary = draw_images(tmp_path / "images"), tmp_path / "run", tmp_path / "canary"
    fit = f"fit simclr_resnet18_cifar10 --data-dir {images} --batch-size 2 --width 4 --run-dir {run} --max-epochs"
    with forked(in_shell, [*fit.split(), "1"], folder=tmp_path / "output") as process:
        end = process.ended(SECONDS)
    assert end.code == 0, end.stderr[-3000:]
    last, alone = run / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt"
    poisoned = {**torch.load(last, weights_only=True), "hyper_parameters": Malicious(canary)}
    shutil.rmtree(last.parent)
    last.parent.mkdir()
    for file in (last, last.with_name("previous.ckpt"), alone):
        torch.save(poisoned, file)
    commands = [
        f"{fit} 2",
        f"evaluate {run} --protocol knn-dino --data-dir {images}",
        f"evaluate {alone} --protocol knn-dino --data-dir {images}",
        f"export {run}",
        f"export {alone}",
        f"embed {run} --output {tmp_path / 'features.npz'}",
    ]
    for command in commands:
        with forked(in_shell, command.split(), folder=tmp_path / "output") as process:
            end = process.ended(SECONDS)
        told = "run code" in end.stdout + end.stderr
        lost = canary.exists() or end.code <= 0 or not told
        drill.trial(lost=lost, note=f"{command}: {end.code}, {end.stdout[-900:]} {end.stderr[-900:]}")


@promise(
    "Every checkpoint that this package writes, of every method with every callback, is loaded without running code."
)
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("moco", "swav", "dino") else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in METHODS
    ],
)
def test_own_checkpoints_load_safely(drill: Drill, tmp_path: Path, name: str) -> None:
    callbacks = [
        LinearProbe(num_classes=4),
        KNNProbe(k=3),
        RepresentationMonitor(),
        Continuity("recipe", {"seed": 0}),
        FiniteLoss(tmp_path, budget=1),
        LastCheckpoint(tmp_path, every_minutes=1e-9),
    ]
    trainer = tiny.trainer(callbacks, plugins=[WholeCheckpoints()], max_steps=2, enable_checkpointing=True)
    trainer.fit(METHODS[name].build(), tiny.data(32))
    files = sorted(tmp_path.glob("*.ckpt"))
    loaded = [torch.load(file, weights_only=True)["global_step"] for file in files]
    drill.trial(lost=len(loaded) < 2 or 2 not in loaded, note=f"{name}: {loaded} of {files}")
