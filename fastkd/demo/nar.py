"""Non-autoregressive translation of the invented language: a masked model before and after DiMS."""

from collections.abc import Callable
from pathlib import Path

from fastkd.demo.run import tell_estimate, trained, write_demo_corpus
from fastkd.demo.table import Row, measure, show
from fastkd.plots import plot_learning_curves
from fastkd.runs.folder import RunFolder

TITLES = {"teacher": "autoregressive", "cmlm": "CMLM", "dims": "DiMS"}


def run_nar_demo(folder: Path, say: Callable[[str], None]) -> list[Row]:
    """Trains and scores the recipes demo/teacher, demo/cmlm and demo/dims below `folder`.

    The teacher is the one of `run_demo`, used again where it is there. Leaves there `nar.csv` and
    `nar_learning_curves.png`; goes on where it was.
    """
    write_demo_corpus(folder, say)
    tell_estimate(folder, TITLES, say)
    runs: dict[str, RunFolder] = {}
    for recipe, title in TITLES.items():
        runs[title] = trained(folder, recipe, title, say)
    rows = [
        measure("autoregressive, beam 5", runs["autoregressive"], beam=5),
        measure("autoregressive, greedy", runs["autoregressive"], beam=1),
        measure("CMLM, 1 pass", runs["CMLM"], passes=1),
        measure("CMLM, 4 passes", runs["CMLM"], passes=4),
        measure("DiMS, 1 pass", runs["DiMS"], passes=1),
    ]
    plot_learning_curves(runs, folder / "nar_learning_curves.png")
    show(rows, "Invented language, test set", folder / "nar.csv")
    say(f"pictures and runs are in {folder}")
    return rows
