"""The whole way on an invented language pair: teacher, students by each method, one table."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from fastkd.config.load import load_config
from fastkd.config.tree import Config
from fastkd.data.prepare import open_prepared, prepare
from fastkd.demo.estimate import estimated_seconds, in_words
from fastkd.demo.language import write_corpus
from fastkd.demo.table import Row, measure, show
from fastkd.errors import InputError, Stopped
from fastkd.plots import plot_head_alignment, plot_learning_curves
from fastkd.runs.checkpoint import read_meta
from fastkd.runs.folder import RunFolder
from fastkd.train.start import start

OUT = "demo-out"  # what the recipes call the folder
RECIPES = {
    "teacher": "teacher",
    "student alone": "student",
    "word KD": "word_kd",
    "A2D": "a2d",
    "TIE-KD after word KD": "tie_kd",
}


def run_demo(folder: Path, say: Callable[[str], None]) -> list[Row]:
    """Trains and scores the models of the recipes `demo/*` below `folder`; goes on where it was.

    Leaves there `table.csv`, `learning_curves.png` and `head_alignment.png`.
    """
    begin = time.perf_counter()
    write_demo_corpus(folder, say)
    tell_estimate(folder, RECIPES.values(), say)
    rows: list[Row] = []
    runs: dict[str, RunFolder] = {}
    for title, recipe in RECIPES.items():
        runs[title] = trained(folder, recipe, title, say)
        rows.append(measure(title, runs[title]))
    plot_learning_curves(runs, folder / "learning_curves.png")
    plot_head_alignment(runs["A2D"], folder / "head_alignment.png")
    show(rows, "Invented language, test set", folder / "table.csv")
    say(f"{folder / 'learning_curves.png'}: loss and BLEU of each model over its updates")
    say(f"{folder / 'head_alignment.png'}: which student head A2D takes for which of the teacher's")
    say(f"took {in_words(time.perf_counter() - begin)}; the runs are in {folder}")
    return rows


def tell_estimate(folder: Path, recipes: Iterable[str], say: Callable[[str], None]) -> None:
    """How long training of those that are not finished will take."""
    configs = {recipe: demo_config(folder, recipe) for recipe in recipes}
    left = {name: config for name, config in configs.items() if not _finished(config)}
    if left:
        teacher = demo_config(folder, "teacher").model
        seconds = estimated_seconds(left, teacher, say)
        updates = sum(config.training.updates for config in left.values())
        say(f"{len(left)} models, {updates:,} updates: about {in_words(seconds)} on this machine")


def _finished(config: Config) -> bool:
    try:
        checkpoints = RunFolder.open(config.run).checkpoints()
    except InputError:
        return False
    return bool(checkpoints) and read_meta(checkpoints[-1])["update"] >= config.training.updates


def write_demo_corpus(folder: Path, say: Callable[[str], None]) -> None:
    """The invented language pair, written and prepared."""
    say("writing the corpus")
    write_corpus(folder / "corpus")
    prepare(demo_config(folder, "teacher"))


def trained(folder: Path, recipe: str, title: str, say: Callable[[str], None]) -> RunFolder:
    """The run of a `demo/*` recipe, trained to its end; Stopped where a signal came before that."""
    say(f"training: {title}")
    config = demo_config(folder, recipe)
    trainer = start(config, open_prepared(config))
    trainer.train()
    if not trainer.finished and trainer.stopped_by is not None:
        say("stopped; the same command goes on")
        raise Stopped(trainer.stopped_by)
    return RunFolder.open(folder / recipe)


def demo_config(folder: Path, recipe: str) -> Config:
    """A `demo/*` recipe with `folder` in place of `demo-out` in its paths."""
    config = load_config(f"demo/{recipe}")
    paths = {"run": config.run}
    for split in ("train", "dev", "test", "prepared"):
        paths[f"data.{split}"] = getattr(config.data, split)
    for key, other in (("start", config.start), ("teacher", config.teacher)):
        if other is not None and other.run is not None:
            paths[f"{key}.run"] = other.run
    overrides = [f"{key}={folder / Path(path).relative_to(OUT)}" for key, path in paths.items()]
    return load_config(f"demo/{recipe}", overrides)
