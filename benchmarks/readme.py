"""Writes the README's benchmark section from the results in benchmarks/results.

    python -m benchmarks.readme [README.md]

What stands between the markers is replaced; the pictures beside the results are drawn anew.
"""

import sys
from pathlib import Path

from benchmarks.a2d_memory import draw
from fastkd.bench.plots import plot_all
from fastkd.bench.record import Machine, Row, latest, read
from fastkd.bench.section import section

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"


def results() -> dict[str, list[tuple[Machine, Row]]]:
    """The newest results by device: the name of their file."""
    return {file.stem: latest(read(file)) for file in sorted(RESULTS.glob("*.csv"))}


def main() -> int:
    readme = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"{readme}: expected the markers {BEGIN} and {END}, once each", file=sys.stderr)
        return 2
    known = results()
    pictures = {
        device: [file.relative_to(HERE.parent) for file in plot_all(found, RESULTS, device)]
        for device, found in known.items()
    }
    demonstration = draw()
    first = demonstration.relative_to(HERE.parent) if demonstration else None
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    body = section(known, pictures, first)
    readme.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
