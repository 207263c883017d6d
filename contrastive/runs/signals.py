"""Signals that ask a run to stop, remembered until it can."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # of a scheduler, of SLURM's --signal, of a keyboard


REQUEUE = 75  # the exit code that says: call me again (EX_TEMPFAIL of sysexits.h)


class Preempted(SystemExit):
    """A signal stopped the run, and it can go on; the process ends with code 75 unless this is caught.

    From ``LastCheckpoint``, ranks that the first one has started end with 0: Lightning kills it if one of them fails.

    Attributes:
        file: The checkpoint that was written; None before the first step, when there was nothing to write.
    """

    def __init__(self, file: Path | None, code: int = REQUEUE) -> None:
        super().__init__(code)
        self.file = file


class StopSignals:
    """Handlers that set a flag and do nothing else: whoever asks it decides when to stop.

    A second SIGINT raises KeyboardInterrupt at once, as Ctrl-C does without these handlers.

    Args:
        signals: Which.

    Attributes:
        received: The first that came; None before.
    """

    def __init__(self, signals: Sequence[signal.Signals] = STOPPING) -> None:
        self.signals = tuple(signals)
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Install the handlers, where this thread may: only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread() or self._before:
            return
        self.received = None
        self._before = {number: signal.signal(number, self._remember) for number in self.signals}

    def stop_listening(self) -> None:
        """Put the handlers back that were there before, unless somebody else has done so."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._remember:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.received = self.received or signal.Signals(number)


@contextmanager
def preempted_at_once() -> Iterator[None]:
    """Within it, SIGTERM and SIGUSR1 raise ``Preempted`` wherever the process is, until somebody else listens.

    For what comes before the first step, when nothing has to be written: reading a large folder takes minutes.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted(None)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
