"""Checkpoints through kills, full disks, flipped bits and hostile files."""

import hashlib
import json
import os
import resource
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.demos.boring_classes import BoringModel

from contrastive.runs import checkpoints, safe_load
from contrastive.runs.checkpoints import DIGESTS, CheckpointError, Newest, WholeCheckpoints, keep_as, newest, prepare


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
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert json.loads((file.parent / DIGESTS).read_text()) == [["last.ckpt", digest]]
    assert sorted(path.name for path in file.parent.iterdir()) == ["last.ckpt", DIGESTS]


@pytest.mark.parametrize("place", [0, 100, 2000, -1])
def test_a_flipped_bit_is_refused_and_the_next_newest_is_named(
    io: WholeCheckpoints, tmp_path: Path, place: int
) -> None:
    older, newer = tmp_path / "epoch-0001.ckpt", tmp_path / "last.ckpt"
    io.save_checkpoint(some(1), older)
    io.save_checkpoint(some(2), newer)
    flip(newer, place)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is torn or was altered"):
        io.load_checkpoint(newer)
    found = newest(tmp_path)
    assert found.path == older
    assert list(found.skipped) == [newer]
    assert "is torn or was altered" in found.skipped[newer]


def test_the_newest_is_the_one_written_last_whatever_clocks_say(io: WholeCheckpoints, tmp_path: Path) -> None:
    names = ["epoch-0002.ckpt", "last.ckpt", "epoch-0001.ckpt"]  # so, a run may go back to an earlier epoch and on
    for step, name in ((9, names[0]), (9, names[1]), (4, names[2]), (5, names[1])):
        io.save_checkpoint(some(step), tmp_path / name)
    for year, name in enumerate((names[1], names[0], names[2])):  # the clock was set back more than once
        os.utime(tmp_path / name, (year * 3e7, year * 3e7))
    copy = shutil.copytree(tmp_path, tmp_path / "copy", copy_function=shutil.copyfile)
    for folder in (tmp_path, copy):
        expected = [folder / "last.ckpt", folder / "epoch-0001.ckpt", folder / "epoch-0002.ckpt"]
        for file in expected:
            assert newest(folder).path == file
            file.unlink()


def test_where_no_list_says_the_order_the_one_with_the_most_steps_is_taken(
    io: WholeCheckpoints, tmp_path: Path
) -> None:
    for step, name in ((20, "b.ckpt"), (30, "a.ckpt"), (10, "c.ckpt")):
        io.save_checkpoint(some(step), tmp_path / name)
    (tmp_path / DIGESTS).unlink()
    assert newest(tmp_path).path == tmp_path / "a.ckpt"
    io.save_checkpoint(some(5), tmp_path / "last.ckpt")  # written since
    assert newest(tmp_path).path == tmp_path / "last.ckpt"


def test_after_saving_was_cut_short_the_old_content_keeps_its_place(io: WholeCheckpoints, tmp_path: Path) -> None:
    for step, name in ((1, "last.ckpt"), (2, "epoch-0002.ckpt")):
        io.save_checkpoint(some(step), tmp_path / name)
    content = (tmp_path / "last.ckpt").read_bytes()
    io.save_checkpoint(some(3), tmp_path / "last.ckpt")
    listed = json.loads((tmp_path / DIGESTS).read_text())
    old = ["last.ckpt", hashlib.sha256(content).hexdigest()]
    (tmp_path / DIGESTS).write_text(json.dumps([old, *listed]))  # as it is before the new one takes its place
    assert newest(tmp_path).path == tmp_path / "last.ckpt"
    (tmp_path / "last.ckpt").write_bytes(content)
    assert newest(tmp_path) == Newest(tmp_path / "epoch-0002.ckpt", {})
    io.load_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("cut", [0, 1, 3000, -1])
def test_a_torn_file_that_no_digest_is_known_of_is_skipped_too(io: WholeCheckpoints, tmp_path: Path, cut: int) -> None:
    whole, torn = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    io.save_checkpoint(some(1), whole)
    (tmp_path / DIGESTS).unlink()
    torn.write_bytes(whole.read_bytes()[:cut])
    assert newest(tmp_path).path == whole
    whole.unlink()
    assert "cannot be read as a checkpoint" in newest(tmp_path).skipped[torn]


def test_a_flipped_bit_is_found_without_a_digest_too(io: WholeCheckpoints, tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    io.save_checkpoint(some(1), file)
    (tmp_path / DIGESTS).unlink()
    content, random = file.read_bytes(), Random(0)
    for place in random.sample(range(len(content)), 300):
        file.write_bytes(content)
        flip(file, place)
        try:
            loaded = io.load_checkpoint(file)
        except CheckpointError:
            assert list(newest(tmp_path).skipped) == [file]
        else:  # in what the archive does not use
            assert loaded["global_step"] == 1
            assert torch.equal(loaded["state_dict"]["weight"], torch.full((1000,), 1.0))


def test_what_is_no_checkpoint_is_skipped_whatever_it_is(io: WholeCheckpoints, tmp_path: Path) -> None:
    (tmp_path / "folder.ckpt").mkdir()
    (tmp_path / "dangling.ckpt").symlink_to("nowhere")
    (tmp_path / "loop.ckpt").symlink_to("loop.ckpt")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "text.ckpt").write_text("text")
    torch.save([1], tmp_path / "list.ckpt")
    found = newest(tmp_path)
    assert found.path is None
    assert {
        file.name: why for file, why in found.skipped.items() if "cannot be read" in why or "Errno" in why
    }.keys() == {f"{name}.ckpt" for name in ("folder", "dangling", "loop", "empty", "text")}
    assert "holds a list and is no checkpoint" in found.skipped[tmp_path / "list.ckpt"]


def test_of_no_checkpoints_none_is_newest(tmp_path: Path) -> None:
    assert newest(tmp_path).path is None


def test_whatever_the_disk_says_at_any_byte_is_said_and_the_old_checkpoint_stays(
    io: WholeCheckpoints, tmp_path: Path
) -> None:
    file = tmp_path / "last.ckpt"
    io.save_checkpoint(some(1), file)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (*range(0, len(before["last.ckpt"]), 150), len(before["last.ckpt"]) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
        try:
            with pytest.raises(
                OSError, match=r"last\.ckpt could not be written: \[Errno 27\] File too large"
            ) as raised:
                io.save_checkpoint(some(2), file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert "What lies there is whole. Free some space" in str(raised.value)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupt_in_any_write_stays_one_and_the_old_checkpoint_stays(
    io: WholeCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        """Interrupts the write that asks for the digest of so manieth a part."""

        left = 0

        def update(self, part: object) -> None:
            Interrupted.left -= 1
            if Interrupted.left == 0:
                raise KeyboardInterrupt

        def hexdigest(self) -> str:
            return ""

    file = tmp_path / "last.ckpt"
    io.save_checkpoint(some(1), file)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr("hashlib.sha256", Interrupted)
        io.save_checkpoint(some(2), tmp_path / "other" / "last.ckpt")
        num_writes, Interrupted.left = -Interrupted.left, 0
        for write in range(1, num_writes + 1):
            Interrupted.left = write
            try:
                raise ValueError("Checkpoints are written on account of errors too.")
            except ValueError:
                with pytest.raises(KeyboardInterrupt):
                    io.save_checkpoint(some(2), file)
    assert num_writes > 20
    shutil.rmtree(tmp_path / "other")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_torch_itself_refuses_to_save_is_its_own_error(
    io: WholeCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("of torch's own")

    monkeypatch.setattr(torch, "save", refuse)
    try:
        raise ValueError("Checkpoints are written on account of errors too.")
    except ValueError:
        with pytest.raises(RuntimeError, match="of torch's own"):
            io.save_checkpoint(some(1), tmp_path / "last.ckpt")


def test_an_unwritable_folder_is_an_error_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Nothing can be written to .*file/checkpoints: .* --run-dir"):
        prepare(tmp_path / "file" / "checkpoints")


def test_halves_that_a_killed_run_left_are_swept(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt.part").write_bytes(b"half")
    assert prepare(tmp_path) == [tmp_path / "last.ckpt.part"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"hyper_parameters": {"lr": 0.1, "share": Fraction(1, 3)}},
            r"last\.ckpt was not written: hyper_parameters\['share'\] is an object of fractions\.Fraction, which could",
        ),
        ({"callbacks": {"X": [{"y": (1, print)}]}}, r"callbacks\['X'\]\[0\]\['y'\]\[1\] is an object of builtins\.bui"),
        ({"loops": defaultdict(list)}, r"loops is an object of collections\.defaultdict"),
        ({"hyper_parameters": {"views": lambda: 1}}, r"hyper_parameters\['views'\] is an object of builtins\.function"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused_when_saved(
    io: WholeCheckpoints, tmp_path: Path, part: dict[str, Any], message: str
) -> None:
    file = tmp_path / "last.ckpt"
    io.save_checkpoint(some(1), file)
    with pytest.raises(CheckpointError, match=message):
        io.save_checkpoint({**some(2), **part}, file)
    assert io.load_checkpoint(file)["global_step"] == 1


class Malicious:
    """Unpickled, it leaves a canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.canary),))


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the folder."""
    with serving(partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as address:
        yield address


def test_no_file_runs_code_be_it_local_or_of_an_address(io: WholeCheckpoints, tmp_path: Path, served: str) -> None:
    canary, file = tmp_path / "canary", tmp_path / "malicious.ckpt"
    torch.save({"state_dict": Malicious(canary)}, file)
    for source in (file, f"{served}/malicious.ckpt"):
        with pytest.raises(CheckpointError, match="which could run code and is therefore never loaded"):
            io.load_checkpoint(source)
        with pytest.raises(ValueError, match="weights_only=False would run code"):
            io.load_checkpoint(source, weights_only=False)
    assert newest(tmp_path).path is None
    assert not canary.exists()


def test_an_address_is_read_anew_each_time_and_not_taken_for_another(
    io: WholeCheckpoints, tmp_path: Path, served: str
) -> None:
    for step, folder in ((1, "one"), (2, "two")):
        io.save_checkpoint(some(step), tmp_path / folder / "last.ckpt")
    assert [io.load_checkpoint(f"{served}/{folder}/last.ckpt")["global_step"] for folder in ("one", "two")] == [1, 2]
    io.save_checkpoint(some(3), tmp_path / "one" / "last.ckpt")
    assert io.load_checkpoint(f"{served}/one/last.ckpt")["global_step"] == 3


class Odd(BaseHTTPRequestHandler):
    """Answers as its address says, never with a checkpoint."""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path != "/unknown":
            self.send_header("Content-Length", {"/huge": str(10**18)}.get(self.path, "100000"))
        self.end_headers()
        self.wfile.write(b"PK")
        if self.path == "/silent":
            self.rfile.read(1)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/unknown", "it does not say how many bytes it has"),
        ("/huge", f"it has {10**18} bytes, and .* has room for"),
        ("/short", "it broke off after 2 of 100000 bytes"),
        ("/silent", "timed out"),
    ],
)
def test_an_address_that_does_not_give_all_is_given_up(
    io: WholeCheckpoints, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.setattr(safe_load, "SILENCE_SECONDS", 0.3)
    with (
        serving(Odd) as address,
        pytest.raises(OSError, match=rf"{path} cannot be read: .*{message}.*Fetch it yourself"),
    ):
        io.load_checkpoint(f"{address}{path}")


def test_an_address_of_nothing_says_so(io: WholeCheckpoints, served: str) -> None:
    with pytest.raises(OSError, match=r"none\.ckpt cannot be read: HTTP Error 404: .* Fetch it yourself"):
        io.load_checkpoint(f"{served}/none.ckpt")


@pytest.mark.parametrize("content", ["{", "[1]", '[["last.ckpt"]]', "null", '{"last.ckpt": ["abc"]}', "\xff"])
def test_a_damaged_list_of_digests_stops_nothing_and_is_mended_by_the_next_checkpoint(
    io: WholeCheckpoints, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "last.ckpt"
    io.save_checkpoint(some(1), file)
    listed = (tmp_path / DIGESTS).read_text()
    (tmp_path / DIGESTS).write_text(content, encoding="latin-1")
    assert io.load_checkpoint(file)["global_step"] == 1
    assert newest(tmp_path) == Newest(file, {})
    io.save_checkpoint(some(1), file)
    assert (tmp_path / DIGESTS).read_text() == listed


def test_what_is_kept_under_a_second_name_is_whole_and_older(io: WholeCheckpoints, tmp_path: Path) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    io.save_checkpoint(some(1), last)
    for step in (2, 3):
        keep_as(last, previous.name)
        assert newest(tmp_path).path == last
        io.save_checkpoint(some(step), last)
        assert [io.load_checkpoint(file)["global_step"] for file in (last, previous)] == [step, step - 1]
        assert [name for name, _ in json.loads((tmp_path / DIGESTS).read_text())] == ["previous.ckpt", "last.ckpt"]
    flip(last, 2000)
    assert newest(tmp_path).path == previous
    flip(previous, 2000)
    assert newest(tmp_path).path is None


def test_a_link_gives_way_and_what_it_leads_to_stays(io: WholeCheckpoints, tmp_path: Path) -> None:
    io.save_checkpoint(some(1), tmp_path / "epoch-0001.ckpt")
    link = tmp_path / "last.ckpt"
    link.symlink_to("epoch-0001.ckpt")
    assert io.load_checkpoint(link)["global_step"] == 1
    io.save_checkpoint(some(2), link)
    assert [io.load_checkpoint(tmp_path / name)["global_step"] for name in ("epoch-0001.ckpt", "last.ckpt")] == [1, 2]
    link.unlink()
    link.symlink_to("epoch-0001.ckpt")
    io.remove_checkpoint(link)
    assert newest(tmp_path).path == tmp_path / "epoch-0001.ckpt"


def test_a_folder_and_an_address_are_no_place_for_a_checkpoint(io: WholeCheckpoints, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"would take the place of a folder\. Name it otherwise"):
        io.save_checkpoint(some(1), tmp_path)
    with pytest.raises(ValueError, match=r"local files, and s3://bucket/last\.ckpt is none\. Copy them"):
        io.save_checkpoint(some(1), "s3://bucket/last.ckpt")


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
    assert [name for name, _ in json.loads((tmp_path / DIGESTS).read_text())] == ["epoch=1.ckpt"]
    assert trained(3, tmp_path / "epoch=1.ckpt").global_step == 6


def test_a_checkpoint_that_a_run_writes_anew_while_somebody_checks_it_is_whole(
    io: WholeCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "last.ckpt"
    io.save_checkpoint(some(1), file)
    digest_of = checkpoints._digest_of

    def after_a_save(checked: Path) -> str:
        monkeypatch.undo()
        io.save_checkpoint(some(2), file)
        return digest_of(checked)

    monkeypatch.setattr(checkpoints, "_digest_of", after_a_save)
    found = newest(tmp_path)
    assert (found.path, found.skipped) == (file, {})
