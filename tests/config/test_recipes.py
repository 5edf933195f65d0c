"""Bundled recipes read, and their losses fit their models."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from fastkd.cli.app import group
from fastkd.config.load import load_config
from fastkd.config.recipes import FOLDER, recipes
from fastkd.config.tree import A2D, HiddenStates
from fastkd.demo.run import demo_config
from fastkd.methods.objective import SCHEMES

RECIPES = [recipe.name for recipe in recipes()]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe):
    config = load_config(recipe)
    scheme = SCHEMES[config.model.kind]
    names = {loss.name for loss in config.losses}
    assert names <= {loss.name for loss in (*scheme.losses, A2D, HiddenStates)}
    assert names & {loss.name for loss in scheme.needed}
    taught = names - {"cross_entropy", "masked_cross_entropy", "length"}
    assert (config.teacher is not None) == bool(taught)
    if config.teacher is not None and "dims" in names:
        assert config.decoding.passes == 1


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("demo/")])
def test_demo_paths_lie_in_its_folder(recipe):
    config = demo_config(Path("elsewhere"), recipe.removeprefix("demo/"))
    named = [config.run, config.data.train, config.data.dev, config.data.test, config.data.prepared]
    named += [part.run for part in (config.teacher, config.start) if part is not None]
    assert all(path.startswith("elsewhere/") for path in named)


@pytest.mark.parametrize("recipe", list(recipes()), ids=lambda recipe: recipe.name)
def test_first_line_says_what_it_is(recipe):
    first = (FOLDER / f"{recipe.name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# {recipe.summary}"
    assert recipe.summary.rstrip().endswith(".")
    assert len(recipe.summary) <= 98


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.endswith("/teacher")])
def test_teachers_name_their_text(recipe):
    comments = (FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8")
    assert "# Text: " in comments or recipe == "demo/teacher"


def test_recipes_are_listed():
    result = CliRunner().invoke(group, ["recipes", "wmt22-de-dsb/"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines] == [
        n for n in RECIPES if n.startswith("wmt22-de-dsb/")
    ]
