"""Verbs in forked processes of their own, which may be hindered, stopped and waited for."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fastkd.__main__ import main

PATIENCE = 300  # seconds; a case takes about one where the machine is idle


class Processes:
    """They say what they say into files of `folder`."""

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
            out = os.open(self.folder / f"said.{os.getpid()}", os.O_WRONLY | os.O_CREAT)
            for stream in (1, 2):
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

    def end(self, process: int) -> tuple[int | None, str]:
        """Its status, None where it hangs and is killed, and what it said."""
        until, status = time.monotonic() + PATIENCE, None
        while time.monotonic() < until and status is None:
            done, code = os.waitpid(process, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if done else None
            time.sleep(0.005)
        if status is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        said = self.folder / f"said.{process}"
        text = said.read_text(errors="replace") if said.exists() else ""
        said.unlink(missing_ok=True)
        return status, text

    def status(
        self, command: list[str], hinder: Callable[[], None] | None = None
    ) -> tuple[int | None, str]:
        return self.end(self.begin(command, hinder))

    def wait(self, process: int, seconds: float) -> bool:
        """Whether it still runs after so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return False
            time.sleep(0.002)
        return True
