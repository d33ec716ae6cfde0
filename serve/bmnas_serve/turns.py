"""Long work in a thread that takes turns with the event loop."""

from __future__ import annotations

import threading
import time

#: After so many seconds the others have a turn.
_TURN_SECONDS = 0.001
#: Long enough for another thread to wake up.
_PAUSE_SECONDS = 0.00005

_since = threading.local()


def take_turns() -> None:
    """Let other threads go on, where this one has worked for a while.

    Called between the steps of long work. Python's own switching is not enough: numpy gives the
    interpreter away for some microseconds in every step and takes it back before a thread that
    waits for it has woken up; that thread then waits anew, for hundreds of milliseconds in all.
    """
    now = time.perf_counter()
    if now - getattr(_since, "start", 0.0) > _TURN_SECONDS:
        time.sleep(_PAUSE_SECONDS)
        _since.start = time.perf_counter()
