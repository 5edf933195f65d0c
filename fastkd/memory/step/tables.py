"""The memory of training steps as tables."""

from collections.abc import Callable, Mapping, Sequence

from fastkd.memory.step.report import StepMemory
from fastkd.tables import Table, size

# Rows in the order in which a step builds them up.
_PARTS = (
    "parameters",
    "teacher",
    "optimizer",
    "moving average",
    "batch",
    "gradients",
    "gradient buckets",
    "whole parameters",
    "activations",
    "teacher's activations",
    "losses",
)


def step_tables(title: str, columns: Sequence[tuple[str, StepMemory]]) -> list[Table]:
    """Where the peak of each column's step comes from, then modules and losses."""
    tables = [
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
    ]
    return [table for table in tables if table.lines]


def _peaks(title: str, columns: Sequence[tuple[str, StepMemory]]) -> Table:
    steps = [memory for _, memory in columns]
    known = {part for memory in steps for part in (*memory.at_peak.parts, *memory.held)}
    parts = [part for part in _PARTS if part in known]
    parts += sorted(known - set(parts))
    lines = [(part, *(size(m.at_peak.parts.get(part, 0)) for m in steps)) for part in parts]
    lines += [
        ("peak", *(size(m.peak) for m in steps)),
        ("  of it above the start of the step", *(size(m.rise) for m in steps)),
        ("  reached in", *(f"{m.at_peak.phase}, {m.at_peak.operation}" for m in steps)),
        ("  of", *(m.at_peak.scope for m in steps)),
    ]
    if any(memory.resident is not None for memory in steps):
        lines.append(("resident memory rose by", *(size(m.resident) for m in steps)))
    for figure in dict.fromkeys(name for memory in steps for name in memory.allocator):
        lines.append((f"CUDA: {figure}", *(size(m.allocator.get(figure)) for m in steps)))
    header = ("at the peak", *(name for name, _ in columns))
    return Table(title, header, lines, rules=(len(parts),))


def _by_name(
    title: str,
    columns: Sequence[tuple[str, StepMemory]],
    figures: Callable[[StepMemory], Mapping[str, int]],
) -> Table:
    sums = [figures(memory) for _, memory in columns]
    names = dict.fromkeys(name for found in sums for name in found)
    lines = [
        (name, *(size(found.get(name, 0)) for found in sums))
        for name in sorted(names, key=lambda name: -sums[-1].get(name, 0))
        if any(found.get(name, 0) >= 1024 for found in sums)
    ]
    return Table(title, ("", *(name for name, _ in columns)), lines)
