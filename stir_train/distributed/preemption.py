"""Leave in time: remember that a signal asked this process to stop, and say so at a boundary."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_PREEMPTED = 75
"""The exit status of a run that stopped when asked: temporary failure, run the same command again."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(Exception):  # noqa: N818 - not an error
    """The run stopped at a boundary because it was asked to; nothing finished is lost."""


class StopRequest:
    """Whether a signal has asked this process to stop."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None

    @property
    def received(self) -> signal.Signals | None:
        """The signal, if one came."""
        return self._received

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        """Remember a signal; a second one of the same kind ends the process at once."""
        self._received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def watching_signals() -> Iterator[StopRequest]:
    """Catch the signals by which schedulers ask for an orderly end; restores handlers after."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
