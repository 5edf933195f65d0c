"""Writes the benchmark sections of README.md and benchmarks/README.md from benchmarks/results.

    python -m benchmarks.readme [FOLDER]

What stands between the markers is replaced, in the README what is told in short and in
benchmarks/README.md everything; the pictures beside the results are drawn anew. FOLDER: where
both are, the repository if not given.
"""

import sys
from pathlib import Path

from benchmarks.losses.a2d_memory import draw
from fastkd.bench.plots import plot_all
from fastkd.bench.record import latest, read
from fastkd.bench.section import Results, full, short

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
DETAILS = "All providers, shapes and machines: [`benchmarks/`](benchmarks/README.md)."


def results() -> dict[str, Results]:
    """The newest results by device: the name of their file."""
    return {file.stem: latest(read(file)) for file in sorted(RESULTS.glob("*.csv"))}


def put(file: Path, body: str) -> None:
    """Between the markers; ValueError where these are not there once each."""
    text = file.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{file}: expected the markers {BEGIN} and {END}, once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    file.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent
    known = results()
    pictures = {
        device: [file.relative_to(HERE) for file in plot_all(found, RESULTS, device)]
        for device, found in known.items()
    }
    demonstration = draw()
    first = demonstration.relative_to(HERE.parent) if demonstration else None
    try:
        put(folder / "README.md", short(known, first, DETAILS))
        put(folder / "benchmarks" / "README.md", full(known, pictures))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
