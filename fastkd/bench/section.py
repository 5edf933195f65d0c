"""Results as a section of Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastkd.bench.record import Machine, Row
from fastkd.bench.tables import tables

_LEGEND = (
    "Times are medians of one forward and one backward pass; spread is half the distance of the"
    " quartiles; speed is relative to eager PyTorch (`reference`); peak is memory above the"
    " inputs, gradients included, and of a training step all memory; bound is the share of the"
    " roofline's speed, by rates measured on the machine itself. Cost is relative to a step"
    " without a teacher on the same backend."
)

_DEMONSTRATION = "Peak memory of A2D's loss over the length of sentences: eager, compiled, fastkd"


def section(
    results: Mapping[str, Sequence[tuple[Machine, Row]]],
    pictures: Mapping[str, Sequence[Path]],
    demonstration: Path | None = None,
) -> str:
    """One part for each device of `results`; says so where a kind of device was not measured."""
    parts = [f"![{_DEMONSTRATION}]({demonstration})"] if demonstration else []
    parts.append(_LEGEND)
    for device, found in results.items():
        parts += _device(device, found, pictures.get(device, ()))
    if "cuda" not in results:
        parts.append("On a GPU nothing is measured yet: `make gpu` does it in one call.")
    return "\n\n".join(parts)


def _device(
    device: str, found: Sequence[tuple[Machine, Row]], pictures: Sequence[Path]
) -> list[str]:
    parts = []
    machine = found[-1][0]
    threads = f", {machine.threads} threads" if device == "cpu" else f", driver {machine.driver}"
    parts.append(
        f"**{machine.device}**{threads}, PyTorch {machine.torch},"
        f" Triton {machine.triton or 'none'}, Python {machine.python},"
        f" commit {machine.commit}, {machine.date} UTC."
    )
    parts += [f"![{picture.stem}: time and memory over size]({picture})" for picture in pictures]
    by_operation: dict[str, list[Row]] = {}
    for _, row in found:
        by_operation.setdefault(row.operation, []).append(row)
    for operation, rows in by_operation.items():
        body = "\n\n".join(table.markdown() for table in tables(rows))
        summary = f"<summary>{operation}, {device}</summary>"
        parts.append(f"<details>{summary}\n\n{body}\n\n</details>")
    return parts
