"""SIGTERM as a reason to clean up first."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class _Terminated(BaseException):
    """Raised where the main thread is at, so that everything cleans up behind itself."""


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """On SIGTERM deletes what is temporary and then ends the process by that signal.

    Has no effect outside of the main thread, which alone hears of signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated
