"""The whole way on an invented language pair: teacher, students by each method, one table."""

from collections.abc import Callable
from pathlib import Path

from fastkd.config.load import load_config
from fastkd.data.prepare import prepare
from fastkd.demo.language import write_corpus
from fastkd.demo.table import Row, measure, show
from fastkd.plots import plot_head_alignment, plot_learning_curves
from fastkd.runs.folder import RunFolder
from fastkd.train.start import start

RECIPES = {
    "teacher": "teacher",
    "student alone": "student",
    "word KD": "word_kd",
    "A2D": "a2d",
    "TIE-KD": "tie_kd",
}


def run_demo(folder: Path, say: Callable[[str], None]) -> list[Row]:
    """Trains and scores the models of the recipes `demo/*` below `folder`; goes on where it was.

    Leaves there `table.csv`, `learning_curves.png` and `head_alignment.png`.
    """
    say("writing the corpus")
    write_corpus(folder / "corpus")
    prepare(demo_config(folder, "teacher"))
    rows: list[Row] = []
    runs: dict[str, RunFolder] = {}
    for title, recipe in RECIPES.items():
        say(f"training: {title}")
        trainer = start(demo_config(folder, recipe))
        trainer.train()
        if not trainer.finished:
            say("stopped; the same command goes on")
            return rows
        runs[title] = RunFolder.open(folder / recipe)
        rows.append(measure(title, runs[title]))
    plot_learning_curves(runs, folder / "learning_curves.png")
    plot_head_alignment(runs["A2D"], runs["teacher"], folder / "head_alignment.png")
    show(rows, "Invented language, test set", folder / "table.csv")
    say(f"pictures and runs are in {folder}")
    return rows


def demo_config(folder: Path, recipe: str):
    """A `demo/*` recipe with all its paths below `folder`."""
    paths = {
        "run": folder / recipe,
        "data.prepared": folder / "prepared",
        **{f"data.{split}": folder / "corpus" / split for split in ("train", "dev", "test")},
    }
    overrides = [f"{key}={path}" for key, path in paths.items()]
    if recipe not in ("teacher", "student"):
        overrides.append(f"teacher.run={folder / 'teacher'}")
    return load_config(f"demo/{recipe}", overrides)
