"""Signals as a request to stop after the update, or the batch of dev, at hand."""

import signal
from types import FrameType

# Asked to end, a terminal that is gone, and a batch system's limit of time.
TERMINATING = (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)


def terminating() -> list[int]:
    """Those that are not ignored, as `nohup` has it for one."""
    return [number for number in TERMINATING if signal.getsignal(number) != signal.SIG_IGN]


class StopRequest:
    """True once a signal came; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the first signal that came
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (*terminating(), signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return self.number is not None

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number
