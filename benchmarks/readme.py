"""Writes every page and table of results from what was measured.

    python -m benchmarks.readme [--check | --pictures]

Of docs/figures.md and benchmarks/README.md what stands between markers, and the tables of
translation. `--check` writes nothing and names what is stale, `--pictures` also draws
anew the pictures beside the results.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import demo
from benchmarks.translation.pages import by_passes, drawn, in_short, known, tables
from fastkd.bench.record import latest, read
from fastkd.bench.section import Results, full, short

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- {}:begin -->", "<!-- {}:end -->"
FIGURES = HERE.parent / "docs" / "figures.md"
DETAILS = "All providers, shapes and machines stand at the end of this page."
# Rows with the recipes as they are, and beside them a budget in which TIE-KD as published was run.
PUBLISHED = (
    "student alone, 4,000 updates, dropout 0.1",
    "word KD 0.5, 4,000 updates, dropout 0.1",
    "word KD, 64 cached pieces",
    "TIE-KD as published, 4,000 updates, dropout 0.1",
)
GAP = ("teacher", "A2D mixture, dropout 0.1", "A2D mixture", "A2D mixture, 18000 updates")


def results() -> dict[str, Results]:
    """The newest results by device: the name of their file."""
    return {file.stem: latest(read(file)) for file in sorted(RESULTS.glob("*.csv"))}


def put(file: Path, bodies: Mapping[str, str]) -> str:
    """The page with a body between each pair of markers; ValueError unless both are there once."""
    text = file.read_text(encoding="utf-8")
    for name, body in bodies.items():
        begin, end = BEGIN.format(name), END.format(name)
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{file}: expected the markers {begin} and {end}, once each")
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        text = f"{before}{begin}\n{body}\n{end}{after}"
    return text


def pages() -> dict[Path, str]:
    """Every page as it should be; ValueError where a marker is missing."""
    losses = results()
    memory = RESULTS / "a2d_memory" / "memory.png"
    picture = Path("..") / memory.relative_to(HERE.parent) if memory.exists() else None
    pictures = {
        device: [file.relative_to(HERE) for file in sorted(RESULTS.glob(f"*-{device}.png"))]
        for device in losses
    }
    plans = known()
    gap, found = plans["wmt22-de-dsb-gap"]
    main, _ = plans["wmt22-de-dsb"]
    own = [name for name, row in main.rows.items() if not row.set]
    largest = next(name for name in gap.rows if "2+2 layers" in name)
    bodies = {
        "wmt22-de-dsb": in_short(*plans["wmt22-de-dsb"], (*own, *PUBLISHED)),
        "wmt22-de-dsb-gap": in_short(gap, found, (*GAP, largest)),
        "multi30k": in_short(*plans["multi30k"]),
        "multi30k-passes": by_passes((RESULTS / "multi30k-passes.txt").read_text(encoding="utf-8")),
        "demo": demo.body(),
        "benchmarks": short(losses, picture, DETAILS),
    }
    return {
        FIGURES: put(FIGURES, bodies),
        HERE / "README.md": put(HERE / "README.md", {"benchmarks": full(losses, pictures)}),
        **tables(),
    }


def stale() -> list[Path]:
    """The pages that do not say what was measured."""
    return [
        page
        for page, text in pages().items()
        if not page.exists() or page.read_text(encoding="utf-8") != text
    ]


def stale_pictures() -> list[Path]:
    """The pictures that show something else than the CSVs say."""
    from benchmarks.losses import a2d_memory
    from benchmarks.translation import picture
    from fastkd.bench import plots

    found = [
        each for device, own in results().items() for each in plots.stale(own, RESULTS, device)
    ]
    found += a2d_memory.stale()
    return found + [each[-1] for each in drawn() if picture.is_stale(*each)]


def draw() -> None:
    from benchmarks.losses import a2d_memory
    from benchmarks.translation import picture
    from fastkd.bench import plots

    for device, found in results().items():
        plots.plot_all(found, RESULTS, device)
    a2d_memory.draw()
    for each in drawn():
        picture.draw(*each)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true")
    what.add_argument("--pictures", action="store_true")
    options = parser.parse_args()
    try:
        if options.check:
            old = [f"{page}: stale; python -m benchmarks.readme\n" for page in stale()]
            old += [f"{file}: stale; with --pictures\n" for file in stale_pictures()]
            print("".join(old), end="")
            return 1 if old else 0
        if options.pictures:
            draw()
        for page, text in pages().items():
            page.write_text(text, encoding="utf-8")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
