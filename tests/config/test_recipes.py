"""Bundled recipes read, and their losses fit their models."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from fastkd.__main__ import main
from fastkd.cli.app import group
from fastkd.config.load import load_config
from fastkd.config.recipes import FOLDER, recipes
from fastkd.config.tree import A2D, CrossEntropy, DiMS, HiddenStates, Length, TieKD, WordKD
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


PUBLISHED = ("iwslt14-de-en", "wmt14-en-de", "wmt22-de-dsb-published")
METHODS = ("teacher", "student", "word_kd", "distilled", "tie_kd", "a2d", "a2d_tie_kd")
# (layers of each side, width, ffn, heads, dropout, of attention, of activations), as in
# A2D's train_*.sh and custom/__init__.py, and TIE-KD's train_ende_*.sh
SIZES = {
    "iwslt14-de-en/teacher": (6, 512, 1024, 4, 0.3, 0, 0),
    "iwslt14-de-en/a2d": (3, 512, 1024, 4, 0.3, 0, 0),
    "wmt22-de-dsb-published/teacher": (12, 512, 2048, 8, 0.3, 0, 0),
    "wmt22-de-dsb-published/a2d": (4, 512, 2048, 8, 0.3, 0, 0),
    "wmt14-en-de/teacher": (6, 1024, 4096, 16, 0.3, 0.1, 0.1),
    "wmt14-en-de/tie_kd": (6, 512, 2048, 8, 0.1, 0.1, 0.1),
    "wmt14-en-de/a2d_teacher": (12, 512, 2048, 8, 0.3, 0, 0),
    "wmt14-en-de/a2d": (4, 512, 2048, 8, 0.3, 0, 0),
    "wmt14-en-de/cmlmc": (6, 512, 2048, 8, 0.2, 0, 0),
    "wmt14-en-de/dims": (6, 512, 2048, 8, 0.2, 0, 0),
}
A2D_S = [name for name in SIZES if not name.startswith("wmt14") or "a2d" in name]


@pytest.mark.parametrize("corpus", PUBLISHED)
def test_every_method_at_published_sizes(corpus):
    assert {f"{corpus}/{method}" for method in METHODS} <= set(RECIPES)
    teacher = (FOLDER / corpus / "teacher.yaml").read_text(encoding="utf-8")
    source = teacher + (FOLDER / "wmt22-de-dsb" / "teacher.yaml").read_text(encoding="utf-8")
    assert "# Text: " in teacher
    assert "benchmarks.translation.fetch " in source
    tie, both = (load_config(f"{corpus}/{name}").losses[1] for name in ("tie_kd", "a2d_tie_kd"))
    assert tie == both == TieKD()
    sequences = load_config(f"{corpus}/distilled")
    alone = load_config(f"{corpus}/student")
    assert (sequences.model, sequences.losses) == (alone.model, alone.losses)
    assert sequences.data.train == f"runs/{corpus}/distilled/train"


@pytest.mark.parametrize("recipe", SIZES)
def test_published_sizes(recipe):
    model = load_config(recipe).model
    assert model.encoder_layers == model.decoder_layers
    found = (model.encoder_layers, model.width, model.ffn, model.heads, model.dropout)
    assert (*found, model.attention_dropout, model.activation_dropout) == SIZES[recipe]
    assert model.norm == "post"


@pytest.mark.parametrize("recipe", A2D_S)
def test_a2d_is_trained_as_published(recipe):
    config = load_config(recipe)
    training, optimizer = config.training, config.training.optimizer
    assert (training.batch_tokens, training.epochs, training.patience) == (4096, 100, 10)
    assert training.validate_every is None  # an epoch, which patience counts
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (5e-4, (0.9, 0.98), 1e-4)
    assert (optimizer.schedule, optimizer.warmup, optimizer.clip) == ("inverse_sqrt", 4000, 0)
    assert not config.model.share_embeddings and config.model.tie_output
    assert (config.decoding.beam, config.decoding.max_length_ratio) == (5, 1.2)
    if config.teacher is not None:
        *others, a2d = config.losses
        assert others == [CrossEntropy(weight=0.5, label_smoothing=0.1), WordKD(weight=0.5)]
        maps = load_config(f"{config.teacher.run.removeprefix('runs/')}").model
        expected = 110 * maps.encoder_layers * maps.heads
        assert a2d == A2D(weight=expected, decay=0.9, normalization="map", padding="include")


def test_tie_kd_is_trained_as_published():
    teacher, student = (load_config(f"wmt14-en-de/{name}") for name in ("teacher", "tie_kd"))
    for config, rate, updates in ((teacher, 5e-4, 300_000), (student, 7e-4, 200_000)):
        training, optimizer = config.training, config.training.optimizer
        assert (training.batch_tokens, training.updates) == (32_768, updates)
        # Every 5,000 updates, so that the last five that are averaged lie so far apart.
        assert (training.validate_every, training.save_every) == (5000, 5000)
        assert (optimizer.lr, optimizer.warmup, optimizer.clip) == (rate, 4000, 5)
        assert (optimizer.betas, optimizer.weight_decay) == ((0.9, 0.98), 0)
        assert (config.decoding.beam, config.decoding.length_penalty) == (4, 0.6)
        assert config.model.share_embeddings and config.model.tie_output


@pytest.mark.parametrize(
    ("recipe", "steps", "mask", "ema"), [("dims", 2, "random", 0.9992), ("dims-full", 4, "full", 0)]
)
def test_dims_in_its_two_published_settings(recipe, steps, mask, ema):
    config = load_config(f"wmt14-en-de/{recipe}")
    dims, length = config.losses
    assert dims == DiMS(
        steps=steps, mask=mask, ema=ema, teacher_temperature=0.5, hidden_weight=0.4, reconsider=True
    )
    assert length == Length(weight=0.1)
    training, optimizer = config.training, config.training.optimizer
    assert (training.batch_tokens, training.epochs, training.patience) == (8192, 10, 50)
    assert (optimizer.lr, optimizer.schedule, optimizer.warmup) == (1e-3, "inverse_sqrt", 1)
    assert optimizer.weight_decay == 0.01
    assert config.model.cmlm.causal_attention


@pytest.mark.parametrize("recipe", [name for name in RECIPES if "dims" in name])
def test_settings_of_dims_are_not_mixed(recipe):
    """Full masks go with a teacher that stays; an average's horizon fits the updates."""
    config = load_config(recipe)
    dims = next(loss for loss in config.losses if loss.name == "dims")
    assert (dims.mask == "full") == (dims.ema == 0)
    if dims.ema:
        assert 1 / (1 - dims.ema) <= config.training.updates / 8


def test_recipes_are_listed():
    result = CliRunner().invoke(group, ["recipes", "wmt22-de-dsb/"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines] == [
        n for n in RECIPES if n.startswith("wmt22-de-dsb/")
    ]


def test_a_recipe_is_shown_with_every_key(tmp_path):
    shown = CliRunner().invoke(group, ["recipes", "--show", "multi30k/a2d"], catch_exceptions=False)
    assert shown.exit_code == 0
    file = tmp_path / "shown.yaml"
    file.write_text(shown.output, encoding="utf-8")
    assert load_config(str(file)) == load_config("multi30k/a2d")
    assert "attention_dropout:" in shown.output  # which the recipe leaves at its default


def test_no_recipe_to_show(capsys):
    assert main(["recipes", "--show"]) == 2
    assert capsys.readouterr().err.startswith("fastkd: --show: expected a recipe's name")
