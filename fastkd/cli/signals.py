"""Signals that end a process as reasons to clean up first."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from fastkd.train.interrupt import terminating


class _Terminated(BaseException):
    """Raised where the main thread is at, so that everything cleans up behind itself."""


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """On a signal deletes what is temporary and then ends the process by that signal.

    What is raised in the middle of an extension may come out as an error of its own: an error after
    a signal is that signal, a KeyboardInterrupt where it was Ctrl-C. Has no effect outside of the
    main thread, which alone hears of signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    raised: dict[int, type[BaseException]] = dict.fromkeys(terminating(), _Terminated)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        raised[signal.SIGINT] = KeyboardInterrupt

    def take(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise raised[number]

    before = {number: signal.signal(number, take) for number in raised}
    try:
        yield
    except (_Terminated, Exception) as error:
        if not came:
            raise
        ending = [number for number in came if raised[number] is _Terminated]
        if not ending:
            raise KeyboardInterrupt from error
        signal.signal(ending[0], signal.SIG_DFL)
        os.kill(os.getpid(), ending[0])
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
