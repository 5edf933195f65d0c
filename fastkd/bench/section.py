"""Results as Markdown: in short for a README, and everything beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastkd.bench.record import Machine, Row
from fastkd.bench.tables import SUMMARY, summary, tables, throughput_summary, training_summary
from fastkd.tables import markdown_table

Results = Sequence[tuple[Machine, Row]]

_DEMONSTRATION = "Peak memory of A2D's loss over the length of sentences: eager, compiled, fastkd"
_SHORT_LEGEND = (
    "One forward and one backward pass; medians of providers that took turns. Eager is the loss as"
    " a user of PyTorch would write it, or, where it says so, the reference backend, which takes"
    " care of masks, ties and digits. Memory is the peak"
    " above the inputs, gradients included, and of a training step all memory; pace is the time"
    " that the loss's arithmetic and traffic take at the rates that PyTorch's own matrix products,"
    " exponentials and copies reach on the machine, as a share of the time that it took; compiled"
    " kernels that are faster at products and exponentials than PyTorch pass 100%."
)
_LEGEND = (
    "Times are medians; spread is half the distance of the quartiles; speed is that of the"
    " reference backend in the same round, median over the rounds; peak is memory above the"
    " inputs, gradients included, and of a training step all memory; pace is the"
    " time of the work at the rates that PyTorch's own matrix products, exponentials and copies"
    " reach on the machine, as a share of the time taken, so that faster ones pass 100%. Cost is a"
    " step's time over that of the first one of its kind: the student alone, the masked student"
    " alone, or word KD on real batches."
)
_NO_GPU = "On a GPU nothing is measured yet: `make gpu` does it in one call."
_FAMILIES = {
    "alignment": "attention alignment",
    "linear": "from hidden states",
    "logits": "from logits",
}


def short(
    results: Mapping[str, Results], demonstration: Path | None = None, details: str = ""
) -> str:
    """The newest machine of each device; a table a family of losses, and one of training steps."""
    parts = [f"![{_DEMONSTRATION}]({demonstration})"] if demonstration else []
    for device, measured in results.items():
        found = newest(measured)
        machine, rows = found[-1][0], [row for _, row in found]
        parts += [f"**{machine.where(device)}**. {_SHORT_LEGEND}"]
        for family, title in _FAMILIES.items():
            lines = summary(
                shared_shapes([r for r in rows if r.operation.startswith(f"{family}-")])
            )
            if lines:
                parts.append(markdown_table((title, *SUMMARY[1:]), lines))
        parts += filter(None, (training_summary(rows), throughput_summary(rows)))
    if "cuda" not in results:
        parts.append(_NO_GPU)
    return "\n\n".join([*parts, details] if details else parts)


def full(results: Mapping[str, Results], pictures: Mapping[str, Sequence[Path]]) -> str:
    """Every machine, provider and shape."""
    parts = [_LEGEND]
    for device, found in results.items():
        for machine, rows in by_machine(found).values():
            parts.append(f"## {machine.where(device)}")
            parts += [table.markdown() for table in tables(rows)]
        parts += [f"![{file.stem}: time and memory over size]({file})" for file in pictures[device]]
    if "cuda" not in results:
        parts.append(_NO_GPU)
    return "\n\n".join(parts)


def shared_shapes(rows: Sequence[Row]) -> list[Row]:
    """Of the shapes that all operations were measured on: those that compare."""
    shapes: dict[str, set[str]] = {}
    for row in rows:
        shapes.setdefault(row.operation, set()).add(row.shape)
    shared = set.intersection(*shapes.values()) if shapes else set()
    return [row for row in rows if row.shape in shared]


def newest(found: Results) -> Results:
    """What the machine measured that measured last."""
    last = found[-1][0]
    return [(m, row) for m, row in found if (m.device, m.threads) == (last.device, last.threads)]


def by_machine(found: Results) -> dict[tuple[str, int], tuple[Machine, list[Row]]]:
    """By device and threads; the machine as it was at its last result."""
    grouped: dict[tuple[str, int], tuple[Machine, list[Row]]] = {}
    for machine, row in found:
        key = machine.device, machine.threads
        rows = grouped[key][1] if key in grouped else []
        grouped[key] = (machine, [*rows, row])
    return grouped
