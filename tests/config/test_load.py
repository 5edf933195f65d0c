import copy
import re

import pytest
import yaml

from fastkd.config.complaint import paths
from fastkd.config.load import dump_config, load_config, parse, validate
from fastkd.config.tree import Config
from fastkd.errors import InputError

BASE = {
    "run": "runs/a",
    "data": {"source": "de", "target": "en", "train": "t", "dev": "d", "prepared": "p"},
}


def written(tmp_path, tree, name="config.yaml"):
    path = tmp_path / name
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


def test_overrides_reach_every_level(tmp_path):
    tree = {**BASE, "losses": [{"name": "a2d"}, {"name": "word_kd"}]}
    config = load_config(
        written(tmp_path, tree),
        ["training.optimizer.lr=1e-3", "losses.1.weight=0.25", "model.norm=post"],
    )
    assert config.training.optimizer.lr == 1e-3
    assert config.losses[1].weight == 0.25
    assert config.model.norm == "post"


def test_a_loss_is_overridden_by_its_name(tmp_path):
    tree = {**BASE, "losses": [{"name": "cross_entropy"}, {"name": "word_kd"}]}
    path = written(tmp_path, tree)
    assert load_config(path, ["losses.word_kd.weight=0.25"]).losses[1].weight == 0.25
    with pytest.raises(InputError, match="below 2 or cross_entropy or word_kd, not 'tie_kd'"):
        load_config(path, ["losses.tie_kd.weight=0.25"])


def test_a_loss_that_no_file_names_is_overridden_too(tmp_path):
    path = written(tmp_path, BASE)
    (loss,) = load_config(path, ["losses.cross_entropy.label_smoothing=0.0"]).losses
    assert (loss.name, loss.label_smoothing) == ("cross_entropy", 0.0)


def test_a_misspelt_loss(tmp_path):
    tree = {**BASE, "losses": [{"name": "cross_entropy"}, {"name": "word_kd"}]}
    with pytest.raises(InputError, match=r"not 'word-kd'; did you mean word_kd\?"):
        load_config(written(tmp_path, tree), ["losses.word-kd.weight=0.25"])


def test_no_message_speaks_of_python(tmp_path):
    """Whatever stands where it does not belong: no tuple, dictionary, dataclass or union."""
    python = re.compile(r"tuple|dictionary|dataclass|discriminator|instance|\bobject\b", re.I)
    wrong = [None, 5, -1, "x", [], {}, [[1]], ["x"], [{}], {"a": 1}, {1: 2}, True, [None]]
    wrong += [[{"name": name}] for name in (None, {}, "nope", 3)]
    wrong += [[{"name": "a2d", "weight": value}] for value in ("x", [1], {}, {"value": {}})]
    told = 0
    for path in paths(Config):
        for value in wrong:
            tree = copy.deepcopy(BASE)
            *above, last = path.split(".")
            node = tree
            for part in above:
                node = node.setdefault(part, {})
            node[last] = value
            try:
                validate(tree, "file")
            except InputError as error:
                told += 1
                message = str(error).rpartition(", not ")[0] or str(error)
                assert not python.search(message), message
    assert told > 500


def test_a_misspelt_recipe():
    told = "wmt22-de-dsb/teachr: no such .*; did you mean wmt22-de-dsb/teacher"
    with pytest.raises(InputError, match=told):
        load_config("wmt22-de-dsb/teachr")


def test_a_misspelt_recipe_to_extend(tmp_path):
    path = written(tmp_path, {"extends": "demo/studnet", "run": "mine"})
    with pytest.raises(InputError, match=r"not 'demo/studnet'; did you mean demo/student\?"):
        load_config(path)


def test_resolved_config_reads_back_equal(tmp_path):
    config = load_config(written(tmp_path, {**BASE, "losses": [{"name": "tie_kd"}]}))
    assert load_config(written(tmp_path, dump_config(config))) == config


def test_extends_takes_a_recipe_from_anywhere(tmp_path):
    config = load_config(written(tmp_path, {"extends": "demo/student", "run": "mine"}))
    assert (config.run, config.model) == ("mine", load_config("demo/student").model)


def test_extends_overlays_nested_keys(tmp_path):
    written(tmp_path, {**BASE, "model": {"width": 64, "heads": 2}}, "base.yaml")
    config = load_config(written(tmp_path, {"extends": "base.yaml", "model": {"width": 32}}))
    assert (config.model.width, config.model.heads) == (32, 2)


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({**BASE, "modle": {}}, "modle: unknown key; did you mean model?"),
        (
            {**BASE, "training": {"optimizer": {"betas": [0.9]}}},
            "training.optimizer.betas.1: required, but missing",
        ),
        ({**BASE, "model": {"widht": 3}}, "model.widht: unknown key; did you mean model.width?"),
        (
            {**BASE, "training": {"optimizer": {"lrr": 3}}},
            "training.optimizer.lrr: unknown key; did you mean training.optimizer.lr?",
        ),
        (
            {**BASE, "losses": [{"name": "a2d", "normalisation": "row"}]},
            "losses.0.normalisation: unknown key; did you mean losses.0.normalization?",
        ),
        ({**BASE, "tokenizer": {"vocabularly": 3}}, "did you mean tokenizer.vocabulary?"),
        ({**BASE, "model": {"width": -3}}, "model.width: expected greater than 0, not -3"),
        ({**BASE, "model": {"norm": "mid"}}, "model.norm: expected 'pre' or 'post', not 'mid'"),
        ({"run": "r"}, "data: required, but missing"),
        (
            {**BASE, "losses": [{"name": "nope"}]},
            "losses.0.name: expected one of 'cross_entropy', 'word_kd',",
        ),
        (
            {**BASE, "losses": [{"name": "a2d", "encoder": 0, "decoder": 0, "cross": 0}]},
            "losses.0.a2d: expected encoder, decoder or cross above 0",
        ),
        (
            {**BASE, "losses": [{"name": "hidden", "encoder": False, "decoder": False}]},
            "losses.0.hidden: expected encoder or decoder",
        ),
        ({**BASE, "data": 5}, "data: expected a mapping of keys, not 5"),
        ({**BASE, "losses": {"a2d": {}}}, "losses: expected a list, not {'a2d': {}}"),
        ({**BASE, "losses": ["a2d"]}, "losses.0: expected a mapping of keys, not 'a2d'"),
        ({**BASE, "losses": [{"weight": 1}]}, "losses.0.name: required, but missing"),
        ({**BASE, "decoding": {1: 2}}, "decoding.1: expected keys that are words, not 1"),
        ({**BASE, "lr": 1e-3}, "lr: unknown key; did you mean training.optimizer.lr?"),
        ({**BASE, "training": {"lr": 1}}, "training.lr: unknown key; did you mean training.opt"),
        ({**BASE, "training": {"warmpu": 1}}, "did you mean training.optimizer.warmup?"),
        ({**BASE, "a2d": {"weight": 1}}, "a2d: unknown key; did you mean losses.a2d?"),
        ({**BASE, "tokenizer": {"vocabulary": 3}}, "tokenizer.vocabulary: expected greater than 5"),
    ],
)
def test_complaint_is_one_line_that_names_the_key(tmp_path, tree, complaint):
    path = written(tmp_path, tree)
    with pytest.raises(InputError) as raised:
        load_config(path)
    message = str(raised.value)
    assert complaint in message and str(path) in message and "\n" not in message


TRAINING, OPTIMIZER = ("training",), ("training", "optimizer")


@pytest.mark.parametrize(
    ("where", "value", "expected"),
    [
        (("model", "width"), 2**17, "less than or equal to 65536"),
        (("model", "encoder_layers"), 100_000, "less than or equal to 1024"),
        (("model", "tie_output"), 1, "a valid boolean"),
        ((*TRAINING, "updates"), True, "a valid integer"),
        ((*TRAINING, "updates"), 1e3, "a valid integer"),
        ((*TRAINING, "updates"), "5", "a valid integer"),
        ((*TRAINING, "seed"), -1, "greater than or equal to 0"),
        ((*TRAINING, "seed"), 2**63, "less than"),
        ((*OPTIMIZER, "lr"), True, "a valid number"),
        ((*OPTIMIZER, "lr"), "1e-3", "a valid number"),
        ((*OPTIMIZER, "lr"), float("inf"), "a finite number"),
        ((*OPTIMIZER, "lr"), float("nan"), "a finite number"),
        ((*OPTIMIZER, "lr"), 1e300, "less than or equal to"),
        (("data", "prepared"), "", "a path"),
        (("data", "prepared"), "a\0b", "a path"),
        (("tokenizer",), "", "a path"),
        (("tokenizer", "vocabulary"), 1e3, "a valid integer"),
    ],
)
def test_values_are_what_they_should_be(where, value, expected):
    tree = {**BASE, "data": dict(BASE["data"])}
    *parents, leaf = where
    node = tree
    for key in parents:
        node = node.setdefault(key, {})
    node[leaf] = value
    with pytest.raises(InputError) as raised:
        validate(tree, "name")
    assert str(raised.value).startswith(f"name: {'.'.join(where)}: expected {expected}")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.1e-3", "0.0001"])
def test_numbers_with_an_exponent_need_no_point(tmp_path, text):
    path = written(tmp_path, BASE)
    assert load_config(path, [f"training.optimizer.lr={text}"]).training.optimizer.lr == 1e-4


def test_references_are_not_written_out(tmp_path):
    """Twenty levels of ten references each, which stand for 10^20 values."""
    levels = [f"&l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 21)]
    path = written(tmp_path, f"run: [&l0 [x], {', '.join(levels)}]\ndata: {BASE['data']}")
    with pytest.raises(InputError, match="run: expected a valid string"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("run: 2001-99-99", "not valid YAML"),
        ("", "empty"),
        ("a: [1", "not valid YAML in line 1"),
        ("run: a\nmodel: {}\nrun: b", "in line 3, column 1: the key 'run' is there twice"),
        ("training: {seed: 1, seed: 2}", "the key 'seed' is there twice"),
        ("- a\n- b", "expected a mapping"),
        ("extends: nowhere.yaml", "or the name of a recipe, not 'nowhere.yaml'"),
        ("extends: config.yaml", "circle"),
    ],
)
def test_broken_files(tmp_path, text, complaint):
    with pytest.raises(InputError, match=complaint):
        load_config(written(tmp_path, text))


def test_missing_file():
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such config file"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize(
    "override", ["nonsense", "=3", "run.deep.er=3", "losses.7.weight=1", "run=2001-99-99"]
)
def test_bad_overrides(tmp_path, override):
    path = written(tmp_path, {**BASE, "losses": [{"name": "a2d"}]})
    with pytest.raises(InputError):
        load_config(path, [override])


def test_validate_names_its_source():
    with pytest.raises(InputError, match=r"^the table: "):
        validate({"nothing": 1}, "the table")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1:30", "1:30"),
        ("1" + ":59" * 100_000, "1" + ":59" * 100_000),  # an int of 590,000 bits, by YAML 1.1
        ("010", "010"),
        ("1_000", 1000),
        ("-3", -3),
        ("0x1F", 31),
        ("1e-4", 1e-4),
        ("+.5", 0.5),
        ("12.", 12.0),
        ("2.5e+3", 2500.0),
    ],
)
def test_numbers_are_those_of_yaml_1_2(text, expected):
    value = parse(text)
    assert value == expected and type(value) is type(expected)
