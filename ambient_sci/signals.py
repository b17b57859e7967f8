"""Requests to stop, obeyed where nothing is lost.

A batch system sends SIGTERM some time before it kills; a person presses Ctrl-C. Within `Signals` both are noted only,
and work that can stop asks `asked_to_stop` at moments when its state is whole.
"""

import signal
import threading
from types import FrameType
from typing import Any, ClassVar, Self

__all__ = ["Interrupted", "Signals", "asked_to_stop"]


class Interrupted(BaseException):
    """Work stopped at a moment when its state is whole.

    Parameters
    ----------
    number
        The signal that asked for it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    def obeyed(self) -> BaseException:
        """Give what the signal asked for, to be raised now: ``KeyboardInterrupt``, or exit status 143 for SIGTERM."""
        return KeyboardInterrupt() if self.number == signal.SIGINT else SystemExit(128 + self.number)


class Signals:
    """Context in which SIGTERM and the first Ctrl-C are noted instead of obeyed.

    Signals that the process ignores stay ignored, earlier handlers come back at the end, and in a thread that is not
    the main one, to which Python gives no signals, nothing happens. A second Ctrl-C is obeyed at once.
    """

    _active: ClassVar["Signals | None"] = None

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._outer: Signals | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._outer, Signals._active = Signals._active, self
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if Signals._active is self:
            Signals._active = self._outer

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


def asked_to_stop() -> int:
    """Tell the number of the signal that was noted, or 0."""
    active = Signals._active
    return 0 if active is None or active.received is None else active.received
