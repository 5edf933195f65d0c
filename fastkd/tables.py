"""The one way to write tables, bytes and durations: on a terminal, as plain text, as Markdown."""

import contextlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.table

Line = Sequence[str]


@dataclass(frozen=True)
class Table:
    """Lines of as many cells as the header; the first column to the left, the others to the right.

    `rules` are the numbers of lines that a rule stands before; `remarks` follow the table.
    rich's `Console.print` takes it as it is.
    """

    title: str
    header: Line
    lines: Sequence[Line]
    remarks: Sequence[str] = ()
    rules: Sequence[int] = ()

    def text(self) -> str:
        parts = [self.title, text_table(self.header, self.lines), "; ".join(self.remarks)]
        return "\n".join(part for part in parts if part)

    def markdown(self) -> str:
        table = markdown_table(self.header, self.lines) if self.lines else ""
        parts = [f"`{self.title}`", table, "; ".join(self.remarks)]
        return "\n\n".join(part for part in parts if part)

    def __rich__(self) -> "rich.table.Table":
        import rich.table
        from rich.text import Text  # as it stands: in a str [bold] is markup

        caption = Text("; ".join(self.remarks)) if self.remarks else None
        table = rich.table.Table(
            title=Text(self.title), title_justify="left", caption=caption, caption_justify="left"
        )
        for place, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if place else "left")
        for number, line in enumerate(self.lines):
            if number in self.rules:
                table.add_section()
            table.add_row(*map(Text, line))
        return table


def show(tables: Iterable[Table]) -> None:
    """On standard output: on a terminal by rich, where it is installed, else as plain text."""
    console = None
    if sys.stdout.isatty():
        with contextlib.suppress(ModuleNotFoundError):
            from rich.console import Console

            console = Console(highlight=False)
    for table in tables:
        if console is None:
            print(f"{table.text()}\n", flush=True)
        else:
            console.print(table)


def text_table(header: Line, lines: Sequence[Line]) -> str:
    """Columns aligned, the first to the left."""
    widths = [max(len(line[place]) for line in (header, *lines)) for place in range(len(header))]

    def aligned(line: Line) -> str:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join(aligned(line) for line in (header, *lines))


def markdown_table(header: Line, lines: Sequence[Line]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def size(count: float | None) -> str:
    """Bytes to three digits, in units of 1024: 1.5 GiB is "1.50 GiB"; None: nothing."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 999.5 or unit == "GiB":
            break
        count /= 1024
    if unit == "B":
        return f"{count:.0f} B"
    digits = 2 if abs(count) < 9.995 else 1 if abs(count) < 99.95 else 0
    return f"{count:,.{digits}f} {unit}"


def duration(seconds: float) -> str:
    """Of "0 s" and "2 min 5 s" to "35 min" and "2.5 h"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
