"""SIGTERM and Ctrl-C as a request to stop after the update, or the batch of dev, at hand."""

import signal
from types import FrameType


class StopRequest:
    """True once a signal came; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the first signal that came
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
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
