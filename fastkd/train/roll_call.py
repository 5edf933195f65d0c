"""Names the process that holds up the others of a run, and ends the run."""

import atexit
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from torch.distributed.distributed_c10d import Store

_SECONDS = 5.0  # between two looks, at most; at least ten fall into the patience


def _end(message: str) -> None:
    """Of the whole process: its main thread waits in a library, and would not hear."""
    print(f"fastkd: {message}", file=sys.stderr, flush=True)
    os._exit(1)


class RollCall:
    """Every process tells in a store how far it is, and looks how far the others are.

    A thread of each does so, whatever its main thread waits for. Where a process has not gone on
    for `patience` seconds, and no other one has either, those are to blame whose threads are not
    heard of, as they have stopped; else those that came to the fewest meeting places.

    store: of this object's own, as another thread may wait in the one of the process group
    give_up: called once, with one line that names who is to blame
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        patience: float,
        give_up: Callable[[str], Any] = _end,
    ) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._patience, self._give_up = patience, give_up
        self._pause = min(_SECONDS, patience / 10)
        self._met = self._steps = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="roll call", daemon=True)
        self._thread.start()
        atexit.register(self.end)

    def met(self) -> None:
        """At places that all processes come to, equally often."""
        self._met += 1

    def went_on(self) -> None:
        """Wherever this process has done something that may take long."""
        self._steps += 1

    def end(self) -> None:
        """The others hear of this process no more."""
        atexit.unregister(self.end)
        self._over.set()
        if self._thread is not threading.current_thread():
            self._thread.join(self._pause)

    def _watch(self) -> None:
        now = time.monotonic()
        others = [_Heard(now) for _ in range(self._size)]
        beat = 0
        while not self._over.wait(self._pause):
            beat += 1
            for heard, told in zip(others, self._exchanged(beat), strict=True):
                heard.take(told)
            if blame := self._blame(others):
                self.end()
                self._give_up(blame)

    def _exchanged(self, beat: int) -> list[dict[str, Any] | None]:
        """What each process told last; None of those that the store knows nothing of."""
        mine = {"beat": beat, "met": self._met, "steps": self._steps}
        where = {"host": socket.gethostname(), "pid": os.getpid()}
        keys = [f"fastkd.roll_call.{rank}" for rank in range(self._size)]
        try:
            self._store.set(keys[self._rank], json.dumps({**mine, **where}))
            known = [key for key in keys if self._store.check([key])]
            found = dict(zip(known, self._store.multi_get(known), strict=True))
        except RuntimeError:  # the process that keeps the store has stopped, or ended
            return [None] * self._size
        return [json.loads(found[key]) if key in found else None for key in keys]

    def _blame(self, others: list["_Heard"]) -> str | None:
        """One line, where nobody has gone on for too long."""
        now = time.monotonic()
        if any(now - heard.moved < self._patience for heard in others):
            return None
        silent = [r for r, heard in enumerate(others) if now - heard.alive > self._patience / 2]
        least = min(heard.met for heard in others)
        behind = [rank for rank, heard in enumerate(others) if heard.met == least]
        for_long = f"for {self._patience:g} s (training.process_timeout)"
        if len(silent) == self._size:
            why = f"nothing has been heard of the launcher, or process 0, {for_long}"
        elif silent:
            why = f"{_named(silent, others)} has not answered {for_long}"
        elif len(behind) < self._size:
            why = f"{_named(behind, others)} has not gone on {for_long}, and the others wait for it"
        else:
            why = f"no process has gone on {for_long}, though all answer"
        return f"process {self._rank}: {why}; the same command goes on from the newest checkpoint"


class _Heard:
    """What was heard of one process, and when it was something new."""

    def __init__(self, now: float) -> None:
        self.alive = self.moved = now
        self.told: dict[str, Any] = {"beat": 0, "met": 0, "steps": 0}

    @property
    def met(self) -> int:
        return int(self.told["met"])

    def take(self, told: dict[str, Any] | None) -> None:
        if told is None:
            return
        now, before = time.monotonic(), self.told
        if told["beat"] != before["beat"]:
            self.alive = now
        if (told["met"], told["steps"]) != (before["met"], before["steps"]):
            self.moved = now
        self.told = told


def _named(ranks: list[int], others: list[_Heard]) -> str:
    names = []
    for rank in ranks:
        told = others[rank].told
        names.append(
            f"process {rank} ({told['host']}, pid {told['pid']})"
            if "pid" in told
            else f"process {rank}"
        )
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
