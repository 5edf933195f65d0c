"""Results as tables of text; a GPU machine may have nothing else to show them with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastkd.bench.record import Row

Line = Sequence[str]

CASE = ("provider", "forward", "backward", "both, ms", "spread", "speed", "peak", "bound")
STEP = ("method, backend", "ms", "spread", "tokens/s", "cost", "peak")


@dataclass(frozen=True)
class Table:
    title: str
    header: Line
    lines: list[Line]
    remarks: list[str]  # who is not in it, and why

    def text(self) -> str:
        parts = [self.title, text_table(self.header, self.lines), "; ".join(self.remarks)]
        return "\n".join(part for part in parts if part)

    def markdown(self) -> str:
        table = markdown_table(self.header, self.lines) if self.lines else ""
        parts = [f"`{self.title}`", table, "; ".join(self.remarks)]
        return "\n\n".join(part for part in parts if part)


def tables(rows: Iterable[Row]) -> list[Table]:
    """One for each operation and shape, and one for all training steps.

    spread: half the distance of the quartiles; speed: times the reference's; peak: bytes above
    the inputs, of a step all of them; bound: the share of the roofline's speed that is
    achieved; cost: times a step without a teacher on the same backend
    """
    by_case: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        step = row.direction == "step"
        case = (row.shape.split()[0],) if step else (row.shape, row.dtype)
        by_case.setdefault((row.operation, *case), []).append(row)
    return [_steps(own) if own[0].direction == "step" else _case(own) for own in by_case.values()]


def _case(rows: list[Row]) -> Table:
    base = next((r for r in rows if r.provider == "reference" and r.direction == "both"), None)
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
                ratio(base.median_ms if base else None, both.median_ms),
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
        base = "masked, alone" if method in ("DiMS", "masked, alone") else "alone"
        alone = next(
            (
                other.median_ms
                for other in rows
                if other.provider == row.provider and other.shape.partition(" ")[2] == base
            ),
            None,
        )
        lines.append(
            (
                f"{method}, {row.provider}",
                milliseconds(row.median_ms),
                spread(row),
                "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
                ratio(row.median_ms, alone),
                size(row.peak_bytes),
            )
        )
    scale = rows[0].shape.partition(" ")[0]
    return Table(f"training step, {scale} sizes, {rows[0].dtype}", STEP, lines, remarks)


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


def size(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:.3g} MB" if count < 999.5e6 else f"{count / 1e9:.3g} GB"


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
