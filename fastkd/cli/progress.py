"""Progress bars on standard error, gone when the work is done."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextlib.contextmanager
def counting(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar; the function it gives takes the number of items done since its last call."""
    with _bar() as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work in stages; the function it gives takes (stage, items done, items in all)."""
    with _bar() as progress:
        task = progress.add_task("")
        yield lambda stage, done, total: progress.update(
            task, description=stage, completed=done, total=total
        )


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
