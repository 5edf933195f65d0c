"""The memory of training steps as tables for a terminal."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fastkd.memory.profiling import size
from fastkd.memory.step.report import StepMemory

# Rows in the order in which a step builds them up.
_PARTS = (
    "parameters",
    "teacher",
    "optimizer",
    "moving average",
    "batch",
    "gradients",
    "activations",
    "teacher's activations",
    "losses",
)


def step_table(title: str, columns: Sequence[tuple[str, StepMemory]]) -> Group:
    """Where the peak of each column's step comes from, then modules and losses."""
    return Group(
        _peaks(title, columns),
        _by_name(
            "Saved by the forward pass for the backward pass, by module",
            columns,
            lambda memory: memory.activations,
        ),
        _by_name(
            "Each loss's own memory at its most",
            columns,
            lambda memory: {name: loss.peak for name, loss in memory.losses.items()},
        ),
    )


def _peaks(title: str, columns: Sequence[tuple[str, StepMemory]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("at the peak")
    for name, _ in columns:
        table.add_column(name, justify="right")
    known = {part for _, m in columns for part in (*m.at_peak.parts, *m.held)}
    parts = [part for part in _PARTS if part in known]
    parts += sorted(known - set(parts))
    for part in parts:
        table.add_row(part, *(size(memory.at_peak.parts.get(part, 0)) for _, memory in columns))
    table.add_section()
    table.add_row("peak", *(size(memory.peak) for _, memory in columns), style="bold")
    table.add_row("  of it above the start of the step", *(size(m.rise) for _, m in columns))
    table.add_row(
        "  reached in", *(f"{m.at_peak.phase}, {m.at_peak.operation}" for _, m in columns)
    )
    table.add_row("  of", *(m.at_peak.scope for _, m in columns))
    if any(memory.resident is not None for _, memory in columns):
        table.add_row(
            "resident memory rose by",
            *("" if m.resident is None else size(m.resident) for _, m in columns),
        )
    for figure in dict.fromkeys(name for _, memory in columns for name in memory.allocator):
        cells = [
            size(memory.allocator[figure]) if figure in memory.allocator else ""
            for _, memory in columns
        ]
        table.add_row(f"CUDA: {figure}", *cells)
    return table


def _by_name(title: str, columns: Sequence[tuple[str, StepMemory]], figures) -> Table | Text:
    sums = [(name, figures(memory)) for name, memory in columns]
    names = dict.fromkeys(name for _, found in sums for name in found)
    if not names:
        return Text("")
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name, _ in sums:
        table.add_column(name, justify="right")
    last = sums[-1][1]
    for name in sorted(names, key=lambda name: -last.get(name, 0)):
        if any(found.get(name, 0) >= 1024 for _, found in sums):
            table.add_row(name, *(size(found.get(name, 0)) for _, found in sums))
    return table
