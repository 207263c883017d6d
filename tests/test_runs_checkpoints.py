"""Checkpoints through kills, full disks, flipped bits and hostile files."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.demos.boring_classes import BoringModel

from contrastive.runs.checkpoints import DIGESTS, CheckpointError, WholeCheckpoints, newest, prepare

SAVER = """
import sys, torch
from pathlib import Path
from contrastive.runs.checkpoints import WholeCheckpoints
step = int(sys.argv[2])
print("ready", flush=True)
while True:
    step += 1
    content = {"global_step": step, "weights": torch.full((500_000,), float(step))}
    WholeCheckpoints().save_checkpoint(content, sys.argv[1])
    print(step, flush=True)
"""


@pytest.fixture
def io() -> WholeCheckpoints:
    return WholeCheckpoints()


def some(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": torch.full((1000,), float(step))}, "epoch": 0}


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_what_is_saved_is_loaded_and_its_digest_is_that_of_the_file(io: WholeCheckpoints, tmp_path: Path) -> None:
    file = tmp_path / "new" / "last.ckpt"
    io.save_checkpoint(some(3), file)
    loaded = io.load_checkpoint(file)
    assert loaded["global_step"] == 3
    assert torch.equal(loaded["state_dict"]["weight"], torch.full((1000,), 3.0))
    assert json.loads((file.parent / DIGESTS).read_text()) == {
        "last.ckpt": [hashlib.sha256(file.read_bytes()).hexdigest()]
    }
    assert sorted(path.name for path in file.parent.iterdir()) == ["last.ckpt", DIGESTS]


def test_after_every_kill_in_the_middle_of_saving_the_newest_is_whole(io: WholeCheckpoints, tmp_path: Path) -> None:
    file, reached = tmp_path / "last.ckpt", 0
    for trial in range(6):
        saver = subprocess.Popen([sys.executable, "-c", SAVER, file, str(reached)], stdout=subprocess.PIPE, text=True)
        assert saver.stdout is not None
        assert saver.stdout.readline() == "ready\n"
        reported = saver.stdout.readline()  # one is whole for certain; the kill comes somewhere in the next ones
        time.sleep(0.0013 * 7 * trial)
        saver.kill()
        last_told = [int(line) for line in (reported + saver.communicate()[0]).split()][-1]
        found = newest(tmp_path)
        assert found.path == file
        assert found.skipped == {}
        reached = io.load_checkpoint(file)["global_step"]
        assert reached in (last_told, last_told + 1)
    assert prepare(tmp_path) in ([], [tmp_path / "last.ckpt.part"], [tmp_path / f"{DIGESTS}.part"])


@pytest.mark.parametrize("place", [0, 100, 2000, -1])
def test_a_flipped_bit_is_refused_and_the_next_newest_is_named(
    io: WholeCheckpoints, tmp_path: Path, place: int
) -> None:
    older, newer = tmp_path / "epoch-0001.ckpt", tmp_path / "last.ckpt"
    io.save_checkpoint(some(1), older)
    io.save_checkpoint(some(2), newer)
    os.utime(older, ns=(1, 1))
    flip(newer, place)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is torn or was altered"):
        io.load_checkpoint(newer)
    found = newest(tmp_path)
    assert found.path == older
    assert list(found.skipped) == [newer]
    assert "is torn or was altered" in found.skipped[newer]


def test_a_torn_file_that_no_digest_is_known_of_is_skipped_too(io: WholeCheckpoints, tmp_path: Path) -> None:
    whole, torn = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    io.save_checkpoint(some(1), whole)
    torn.write_bytes(whole.read_bytes()[:3000])
    found = newest(tmp_path)
    assert found.path == whole
    assert "cannot be read as a checkpoint" in found.skipped[torn]


def test_of_no_checkpoints_none_is_newest(tmp_path: Path) -> None:
    assert newest(tmp_path).path is None


def test_a_full_disk_is_an_error_that_keeps_the_old_checkpoint(io: WholeCheckpoints, tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    io.save_checkpoint(some(1), file)
    before = file.read_bytes()

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    saver = subprocess.run(
        [sys.executable, "-c", SAVER, file, "1"], preexec_fn=small_disk, capture_output=True, text=True, timeout=60
    )
    assert f"OSError: The checkpoint {file} could not be written: [Errno 27] File too large" in saver.stderr
    assert "What lay there before is whole." in saver.stderr
    assert file.read_bytes() == before
    assert io.load_checkpoint(file)["global_step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", DIGESTS]


def test_an_unwritable_folder_is_an_error_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Nothing can be written to .*file/checkpoints: .* --run-dir"):
        prepare(tmp_path / "file" / "checkpoints")


def test_halves_that_a_killed_run_left_are_swept(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt.part").write_bytes(b"half")
    assert prepare(tmp_path) == [tmp_path / "last.ckpt.part"]
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_loaded_again_is_refused_when_saved(io: WholeCheckpoints, tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    io.save_checkpoint(some(1), file)
    with pytest.raises(CheckpointError, match=r"holds an object of fractions\.Fraction, which could run code"):
        io.save_checkpoint({**some(2), "hyper_parameters": {"share": Fraction(1, 3)}}, file)
    assert io.load_checkpoint(file)["global_step"] == 1


class Malicious:
    """Unpickled, it leaves a canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.canary),))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_no_file_runs_code_be_it_local_or_of_an_address(
    io: WholeCheckpoints, tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    canary, file = tmp_path / "canary", tmp_path / "malicious.ckpt"
    torch.save({"state_dict": Malicious(canary)}, file)
    for source in (file, f"{served}/malicious.ckpt"):
        with pytest.raises(CheckpointError, match="which could run code and is therefore never loaded"):
            io.load_checkpoint(source)
        with pytest.raises(ValueError, match="weights_only=False would run code"):
            io.load_checkpoint(source, weights_only=False)
    assert newest(tmp_path).path is None
    assert not canary.exists()


def test_an_ordinary_checkpoint_is_loaded_from_an_address(
    io: WholeCheckpoints, tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    io.save_checkpoint(some(4), tmp_path / "good.ckpt")
    assert io.load_checkpoint(f"{served}/good.ckpt")["global_step"] == 4


def test_a_list_of_digests_that_cannot_be_read_says_what_to_do(io: WholeCheckpoints, tmp_path: Path) -> None:
    io.save_checkpoint(some(1), tmp_path / "last.ckpt")
    (tmp_path / DIGESTS).write_text("{")
    with pytest.raises(CheckpointError, match=r"sha256\.json cannot be read as JSON .* Delete it to use them"):
        io.load_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # where it resumes from
def test_a_trainer_saves_and_resumes_through_it(tmp_path: Path) -> None:
    def trained(epochs: int, ckpt_path: Path | None = None) -> pl.Trainer:
        trainer = pl.Trainer(
            plugins=[WholeCheckpoints()],
            max_epochs=epochs,
            limit_train_batches=2,
            limit_val_batches=0,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(tmp_path, filename="{epoch}")],
        )
        trainer.fit(BoringModel(), ckpt_path=ckpt_path)
        return trainer

    trained(2)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=1.ckpt"]  # the older one is deleted
    assert list(json.loads((tmp_path / DIGESTS).read_text())) == ["epoch=1.ckpt"]
    assert trained(3, tmp_path / "epoch=1.ckpt").global_step == 6
