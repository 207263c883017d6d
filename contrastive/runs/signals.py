"""Signals that ask a run to stop, remembered until it can."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # of a scheduler, of SLURM's --signal, of a keyboard


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
