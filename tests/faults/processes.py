"""Verbs in forked processes of their own, which may be hindered, stopped and waited for."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fastkd.__main__ import main

PATIENCE = 300  # seconds; a case takes about one where the machine is idle


class Ended(NamedTuple):
    """How a verb ended."""

    status: int | None  # None: it hung, and was killed
    printed: str  # on standard output
    said: str  # on standard error


class Processes:
    """What they print and say goes into files of `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, command: list[str], hinder: Callable[[], None] | None = None) -> int:
        """As the verb begins. hinder: called in the process before that"""
        begun, begins = os.pipe()
        process = os.fork()
        if process:
            os.close(begins)
            os.read(begun, 1)
            os.close(begun)
            return process
        status = 99
        try:
            os.close(begun)
            os.setsid()
            for stream in (1, 2):
                out = os.open(self._output(os.getpid(), stream), os.O_WRONLY | os.O_CREAT)
                os.dup2(out, stream)
                os.close(out)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.close(begins)
            if hinder is not None:
                hinder()
            status = main(command)
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        finally:
            os._exit(status)

    def end(self, process: int) -> Ended:
        """Waits for it, but not for ever."""
        until, status = time.monotonic() + PATIENCE, None
        while time.monotonic() < until and status is None:
            done, code = os.waitpid(process, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if done else None
            time.sleep(0.005)
        if status is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        texts = []
        for stream in (1, 2):
            output = self._output(process, stream)
            texts.append(output.read_text(errors="replace") if output.exists() else "")
            output.unlink(missing_ok=True)
        return Ended(status, *texts)

    def run(self, command: list[str], hinder: Callable[[], None] | None = None) -> Ended:
        return self.end(self.begin(command, hinder))

    def _output(self, process: int, stream: int) -> Path:
        return self.folder / f"{'printed' if stream == 1 else 'said'}.{process}"

    def wait(self, process: int, seconds: float) -> bool:
        """Whether it still runs after so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return False
            time.sleep(0.002)
        return True
