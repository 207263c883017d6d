"""A run's folder belongs to one process."""

import errno
import fcntl
import os
import signal
import sys
from pathlib import Path

import pytest

from contrastive.runs.lock import FolderInUseError, only_process_in
from tests.drills.process import started

HOLDER = """
import os, sys, time
from pathlib import Path
from contrastive.runs.lock import only_process_in
with only_process_in(Path(sys.argv[1])):
    if os.fork():  # as a loader's worker, which outlives its parent for seconds
        print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_told_who_holds_the_folder_until_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with started([sys.executable, "-c", HOLDER, folder], tmp_path / "output") as holder:
        holder.line("held")
        with pytest.raises(FolderInUseError) as error, only_process_in(folder):
            pass
        assert str(error.value) == (
            f"{folder} is in use: process {holder.pid} trains in it. Wait until it has ended, or name another folder "
            "with --run-dir."
        )
        holder.signal(signal.SIGKILL)
        while holder.codes == [None]:
            os.sched_yield()
        assert holder.alive()  # the child
        with only_process_in(folder):
            pass


def test_a_process_may_hold_a_folder_again_and_again_but_once_at_a_time(tmp_path: Path) -> None:
    for _ in range(2):
        refused = pytest.raises(FolderInUseError, match=f"process {os.getpid()} trains in it")
        with only_process_in(tmp_path), refused, only_process_in(tmp_path):
            pass


def test_where_a_file_system_has_no_locks_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = pytest.warns(UserWarning, match="nothing keeps a second process from training in it")
    with told, only_process_in(tmp_path):
        pass
