"""Bundled recipes read, and their losses fit their models."""

from pathlib import Path

import pytest

from fastkd.config.load import load_config
from fastkd.config.tree import A2D, HiddenStates
from fastkd.demo.run import demo_config
from fastkd.methods.objective import SCHEMES

FOLDER = Path(__file__).parents[2] / "fastkd" / "recipes"
RECIPES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


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
