"""Runs read, grouped by what they are, and their settings held against each other."""

import dataclasses
from pathlib import Path

import pytest

from fastkd.compare.facts import Facts, find_runs
from fastkd.compare.kinds import kind_of
from fastkd.compare.methods import Mean, by_tokenizer, differing, methods_of, student_t
from fastkd.compare.page import page
from fastkd.compare.pictures import looks_of
from fastkd.compare.table import of_methods, of_runs
from fastkd.config.losses import A2D
from fastkd.errors import InputError
from fastkd.palette import METHODS
from fastkd.runs.folder import RunFolder
from fastkd.runs.sequences import note_of


@pytest.fixture(scope="module")
def methods(runs):
    return methods_of([Facts.read(run) for run in runs])


def test_facts_of_a_run(runs):
    facts = Facts.read(runs[0])
    model = RunFolder.open(runs[0]).load_model("last")
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert facts.updates == 4
    assert [step for step, _ in facts.curve("loss")] == [1, 2, 3, 4]
    best = facts.meta["best_update"]
    assert facts.best("dev_bleu") == dict(facts.curve("dev_bleu"))[best]


def test_seeds_are_one_method(methods):
    assert [method.title for method in methods] == ["compared-alone-1", "compared-a2d"]
    assert methods[0].seeds == "1, 2"


def test_settings_that_differ(methods):
    found = differing(methods)
    assert set(found) == {"teacher", "losses.a2d"}
    assert found["losses.a2d"] == ["absent", "weight value 1.0, ramp 3"]


def test_mean_over_seeds():
    assert Mean.of([None]) is None
    assert Mean.of([3.0]).shown() == "3.00"
    mean = Mean.of([1.0, 2.0, 3.0])  # t of two degrees of freedom · 1 / √3
    assert mean.value == 2
    assert mean.half == pytest.approx(4.303 / 3**0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706), (10, 2.228), (11, 2.201), (12, 2.179), (15, 2.131), (20, 2.086), (30, 2.042),
     (60, 2.000), (120, 1.980), (10**6, 1.960)],
)  # fmt: skip
def test_students_t_is_that_of_the_tables(freedom, expected):
    assert student_t(freedom) == pytest.approx(expected, abs=0.005)


def test_what_a_method_is_decides_its_colour(methods, runs):
    assert looks_of(methods) == [
        (METHODS["alone"], "-"),
        (METHODS["A2D"], "-"),
    ]
    taught = [Facts.read(Facts.read(runs[2]).config.teacher.run), Facts.read(runs[2])]
    assert looks_of(methods_of(taught))[0] == (METHODS["teacher"], "-")


def test_a_distilled_text_is_known_by_its_note(tmp_path, methods):
    config = methods[0].first.config
    data = dataclasses.replace(config.data, train=str(tmp_path / "train"))
    config = dataclasses.replace(config, data=data)
    assert kind_of(config) == "alone"
    note_of(tmp_path / "train").write_text("{}")
    assert kind_of(config) == "sequence KD"


def test_runs_in_a_folder(runs):
    assert set(runs) <= {str(path) for path in find_runs(Path(runs[0]).parent)}
    with pytest.raises(InputError, match="cannot be read"):
        list(find_runs(Path("nowhere")))


def test_bleu_of_other_words_is_kept_apart(runs, tmp_path):
    """In the table, in what `fastkd runs` lists, and in the pictures of the page."""
    first, second, third = (Facts.read(run) for run in runs)
    vars(third)["bleu_tokenizer"] = "zh"
    found = methods_of([first, second, third])
    groups = by_tokenizer(found)
    assert {name: [m.title for m in own] for name, own in groups.items()} == {
        "13a": [found[0].title],
        "zh": [found[1].title],
    }
    table = of_methods(found)
    place = table.header.index("dev BLEU")
    assert [line[place].rpartition(" ")[2] for line in table.lines] == ["(13a)", "(zh)"]
    assert any("do not compare" in remark for remark in table.remarks)
    assert "do not compare" in of_runs([first, third]).text()
    assert "do not compare" not in of_runs([first, second]).text()
    drawn = page(found)
    for title in ("dev BLEU, 13a", "dev BLEU, zh", "BLEU, words cut by zh"):
        assert f"<figcaption>{title}</figcaption>" in drawn
    assert "<figcaption>dev BLEU</figcaption>" not in drawn


def test_a_weight_by_default_is_told(runs):
    facts = Facts.read(runs[2])
    config = dataclasses.replace(facts.config, losses=(A2D(), A2D(normalization="row")))
    told = [dataclasses.replace(facts, config=c).settings["losses.a2d"] for c in (
        dataclasses.replace(config, losses=(loss,)) for loss in config.losses)]  # fmt: skip
    assert told == ["weight 1.0", "weight 30.0, normalization row"]
