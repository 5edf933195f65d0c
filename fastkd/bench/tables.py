"""Results as tables."""

from collections.abc import Iterable, Mapping

from fastkd.bench.record import Row
from fastkd.tables import Line, Table, markdown_table, size

_LOSSES = {"ce": "CE", "kd": "CE + KD", "tie": "CE + KD + ranking"}  # as a summary calls them

TRAINING, THROUGHPUT = "training", "throughput"  # operations whose rows are of whole steps

CASE = ("provider", "forward", "backward", "both, ms", "spread", "speed", "peak", "pace")
SUMMARY = ("", "ms", "× eager", "× compiled", "memory", "eager's", "compiled's", "pace")
STEP = ("method, backend", "ms", "spread", "tokens/s", "cost", "peak")
SPEED = ("training loop", "ms", "spread", "tokens/s", "speed")


def tables(rows: Iterable[Row]) -> list[Table]:
    """One for each operation and shape, and one for all training steps.

    spread: half the distance of the quartiles; speed: times that of the reference, or else of the
    first; peak: bytes above the inputs, of a step all of them; pace: the time at PyTorch's own
    rates as a share of the time taken; cost: times the step that the method adds to
    """
    by_case: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        shape = row.shape.split()[0] if row.operation == TRAINING else row.shape
        by_case.setdefault((row.operation, shape, row.dtype), []).append(row)
    kinds = {TRAINING: _steps, THROUGHPUT: _throughput}
    return [kinds.get(own[0].operation, _case)(own) for own in by_case.values()]


def _case(rows: list[Row]) -> Table:
    lines: list[Line] = []
    remarks = []
    for provider in dict.fromkeys(row.provider for row in rows):
        found = {row.direction: row for row in rows if row.provider == provider}
        both = found["both"]
        if both.status != "ok":
            remarks.append(f"{provider}: {both.status}")
            continue
        lines.append(
            (
                provider,
                milliseconds(found["forward"].median_ms),
                milliseconds(found["backward"].median_ms),
                milliseconds(both.median_ms),
                spread(both),
                "" if not both.relative else f"{1 / both.relative:.2f}",
                size(both.peak_bytes),
                "" if both.share is None else f"{both.share:.1%}",
            )
        )
    return Table(f"{rows[0].operation} {rows[0].shape} {rows[0].dtype}", CASE, lines, remarks)


def _steps(rows: list[Row]) -> Table:
    lines: list[Line] = []
    remarks = []
    for row in rows:
        method = row.shape.partition(" ")[2]
        if row.status != "ok":
            remarks.append(f"{method}, {row.provider}: {row.status}")
            continue
        lines.append(
            (
                f"{method}, {row.provider}",
                milliseconds(row.median_ms),
                spread(row),
                "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
                "" if row.relative is None else f"{row.relative:.2f}",
                size(row.peak_bytes),
            )
        )
    scale = rows[0].shape.partition(" ")[0]
    return Table(f"training step, {scale}, {rows[0].dtype}", STEP, lines, remarks)


def _throughput(rows: list[Row]) -> Table:
    lines: list[Line] = [
        (
            row.provider,
            milliseconds(row.median_ms),
            spread(row),
            f"{row.tokens_per_second or 0:,.0f}",
            "" if not row.relative else f"{1 / row.relative:.2f}",
        )
        for row in rows
    ]
    return Table(f"target tokens a second, {rows[0].shape}, {rows[0].dtype}", SPEED, lines, [])


def summary(rows: Iterable[Row]) -> list[Line]:
    """One line a case, as in `SUMMARY`: our fastest backend beside eager and compiled PyTorch.

    Eager is what a user would write, or, where that was not measured, the reference, and said so.
    """
    both = [row for row in rows if row.direction == "both" and row.status == "ok"]
    lines: list[Line] = []
    for case in dict.fromkeys((row.operation, row.shape) for row in both):
        own = {row.provider: row for row in both if (row.operation, row.shape) == case}
        ours = fastest(own, ("torch", "triton"))
        if ours is None:
            continue
        loss = case[0].partition("-")[2]
        eager, compiled = own.get("plain", own.get("reference")), own.get("compile")
        lines.append(
            (
                f"{_LOSSES.get(loss, loss)}, {short_shape(case[1])}",
                milliseconds(ours.median_ms),
                times(eager, ours) + _whose(eager),
                times(compiled, ours),
                size(ours.peak_bytes),
                size(eager.peak_bytes if eager else None),
                size(compiled.peak_bytes if compiled else None),
                "" if ours.share is None else f"{ours.share:.0%}",
            )
        )
    return lines


def _whose(eager: Row | None) -> str:
    return "" if eager is None or eager.provider == "plain" else f" ({eager.provider})"


def fastest(found: Mapping[str, Row], names: Iterable[str]) -> Row | None:
    present = [found[name] for name in names if name in found]
    return min(present, key=lambda row: row.median_ms or 0.0, default=None)


def times(slow: Row | None, fast: Row) -> str:
    """How many times faster; of providers that took turns with the reference by those turns."""
    if slow is None:
        return ""
    if slow.relative and fast.relative:
        return f"{slow.relative / fast.relative:.2f}"
    return ratio(slow.median_ms, fast.median_ms)


def training_summary(rows: Iterable[Row]) -> str:
    """Methods by backends: milliseconds a step, and what it costs over its base; Markdown."""
    steps = [row for row in rows if row.operation == TRAINING and row.status == "ok"]
    parts = []
    for scale in dict.fromkeys(row.shape.split()[0] for row in steps):
        own = [row for row in steps if row.shape.split()[0] == scale]
        backends = list(dict.fromkeys(row.provider for row in own))
        lines: list[Line] = []
        for method in dict.fromkeys(row.shape.partition(" ")[2] for row in own):
            found = {r.provider: r for r in own if r.shape.partition(" ")[2] == method}
            cells = [step_cells(found.get(backend)) for backend in backends]
            lines.append((method, *(cell for pair in cells for cell in pair)))
        columns = [(f"{backend}, ms (cost)", "memory") for backend in backends]
        header: Line = (f"training step, {scale}", *(name for pair in columns for name in pair))
        if not any(row.peak_bytes for row in own):
            header, *lines = [_without_memory(line) for line in (header, *lines)]
        parts.append(markdown_table(header, lines))
    return "\n\n".join(parts)


def _without_memory(line: Line) -> Line:
    return (line[0], *line[1::2])


def throughput_summary(rows: Iterable[Row]) -> str:
    """A sentence; empty where nothing was measured."""
    told = [
        f"{short_shape(row.shape)}: {row.tokens_per_second or 0:,.0f} target tokens a second"
        f" in {row.dtype},"
        f" {1 / row.relative:.1f} times a bare loop over `torch.nn.Transformer`"
        for row in rows
        if row.operation == THROUGHPUT and row.provider == "fastkd" and row.relative
    ]
    return f"Training speed on real batches: {'; '.join(told)}." if told else ""


def step_cells(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    cost = "" if row.relative is None else f" ({row.relative - 1:+.0%})"
    return milliseconds(row.median_ms) + cost, size(row.peak_bytes)


def short_shape(shape: str) -> str:
    """What differs between the shapes of a sweep comes first; the widths are left to details."""
    sizes = dict(part.split("=") for part in shape.split(","))
    kept = [letter for letter in ("B", "T", "N", "V") if letter in sizes]
    return " ".join(f"{letter} {sizes[letter]}" for letter in kept)


def spread(row: Row) -> str:
    if row.lower_ms is None or row.upper_ms is None or not row.median_ms:
        return ""
    return f"±{(row.upper_ms - row.lower_ms) / 2 / row.median_ms:.0%}"


def ratio(numerator: float | None, denominator: float | None) -> str:
    return f"{numerator / denominator:.2f}" if numerator and denominator else ""


def milliseconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
