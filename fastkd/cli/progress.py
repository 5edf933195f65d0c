"""Progress on standard error: a bar while the work lasts, or a line now and then.

Lines where there is no terminal, or where rich is not installed, which the losses do not need.
"""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator

from fastkd.tables import duration

Stages = Callable[[str, int, int | None], None]  # stage, items done, items in all
EVERY = 30.0  # seconds between lines


@contextlib.contextmanager
def counting(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """The function it gives takes the number of items done since its last call."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        tell(title, done, total)

    with stages() as tell:
        tell(title, 0, total)
        yield advance


@contextlib.contextmanager
def stages() -> Iterator[Stages]:
    """For work in stages; the function it gives takes (stage, items done, items in all)."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if not terminal or importlib.util.find_spec("rich") is None:
        yield Lines()
        return
    with bar() as tell:
        yield tell


class Lines:
    """Says how far the work is, and how long it goes on, every `EVERY` seconds at most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage: str | None = None
        self._told = self._begin = clock()
        self._first = 0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        now = self._clock()
        if stage != self._stage:
            self._stage, self._begin, self._first = stage, now, done
        if now - self._told < EVERY or sys.stderr is None:
            return
        self._told = now
        of = "" if total is None else f" of {total:,}"
        left = ""
        if total is not None and total > done > self._first:
            seconds = (now - self._begin) / (done - self._first) * (total - done)
            left = f", about {duration(seconds)} to go"
        print(f"{stage}: {done:,}{of}{left}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def bar() -> Iterator[Stages]:
    """A bar on a terminal, above which goes what is printed meanwhile."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # What is printed into a file must not go through the terminal.
    above = sys.stdout is not None and sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=above) as progress:
        task = None

        def tell(stage: str, done: int, total: int | None) -> None:
            nonlocal task
            if task is None:  # of work that is none no bar is shown
                task = progress.add_task(stage, total=None)
            progress.update(task, description=stage, completed=done, total=total)

        yield tell
