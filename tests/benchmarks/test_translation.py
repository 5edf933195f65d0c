"""The table of translation quality: its plans, and what it makes of results."""

import dataclasses
import gzip
from pathlib import Path

import pytest

from benchmarks.translation.halves import cut
from benchmarks.translation.picture import draw
from benchmarks.translation.plan import Plan, Row, Trial, read_plan
from benchmarks.translation.results import Results, markdown
from benchmarks.translation.trial import write_lines
from fastkd.config.load import load_config

PLANS = sorted((Path(__file__).parents[2] / "benchmarks" / "translation").glob("*.yaml"))


@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
def test_rows_are_trained_by_their_recipes(file):
    plan = read_plan(file)
    assert plan.baseline in plan.rows
    for trial in (plan.teacher, *plan.trials()):
        has_teacher = load_config(trial.recipe).teacher is not None
        config = load_config(trial.recipe, trial.overrides(has_teacher))
        assert config.run == str(trial.folder)
        assert config.training.seed == trial.seed
        if trial.row.cached:
            assert (config.teacher.run, config.teacher.cache) == (None, str(trial.cache))
        elif has_teacher:
            taught = trial.row.taught
            teacher = dataclasses.replace(trial, name=taught) if taught else plan.teacher
            assert config.teacher.run == str(teacher.folder)


@pytest.fixture
def plan(tmp_path):
    rows = {"teacher": Row(recipe="teacher", teacher=True)}
    recipes = {"alone": "student", "taught": "word_kd", "planned": "a2d"}
    rows |= {name: Row(recipe=recipe) for name, recipe in recipes.items()}
    return Plan(
        corpus="small",
        recipes="demo",
        runs=str(tmp_path),
        seeds=(1, 2),
        baseline="alone",
        rows=rows,
    )


def line(trial, split, bleu):
    numbers = {"parameters": 10, "training_seconds": 60, "sentences_per_second": 5.5}
    return {
        "method": trial.name, "options": "", "seed": trial.seed, "split": split,
        "bleu": bleu, "chrf": 2 * bleu, **numbers,
    }  # fmt: skip


def test_first_seed_of_every_row_comes_first(plan):
    assert [(trial.name, trial.seed) for trial in plan.trials()] == [
        ("alone", 1), ("taught", 1), ("planned", 1), ("alone", 2), ("taught", 2), ("planned", 2),
    ]  # fmt: skip


def test_what_a_plan_sets_a_row_sets_otherwise(plan):
    row = Row(recipe="alone", set=("model.heads=2",))
    other = dataclasses.replace(plan, set=("model.heads=4", "model.ffn=8"), rows={"alone": row})
    found = Trial(other, "alone", 1).overrides(has_teacher=False)
    assert found[-3:] == ["model.heads=4", "model.ffn=8", "model.heads=2"]


def test_means_over_seeds_and_what_is_absent(plan, tmp_path):
    file = tmp_path / "table.csv"
    results = Results(file)
    results.add(line(Trial(plan, "alone", 1), "dev", 10.0))
    results.add(line(Trial(plan, "alone", 2), "dev", 11.0))
    results.add(line(Trial(plan, "taught", 1), "dev", 12.0))
    read = Results(file)
    assert read.of(Trial(plan, "taught", 1), "dev")["bleu"] == "12.0"
    assert read.of(Trial(plan, "taught", 2), "dev") is None
    table = [row.strip("| ").split(" | ") for row in markdown(plan, read, ("dev",)).splitlines()]
    assert table[3][:4] == ["alone", "10.50", "21.00", "2"]
    assert table[4][:4] == ["taught", "12.00", "24.00", "1"]
    assert table[5][:4] == ["planned", "absent", "absent", "0"]


def test_bootstrap_tells_better_from_equal(plan, tmp_path):
    references = [f"the small house number {n} stands by the old river" for n in range(60)]
    worse = [" ".join(each.split()[:-3]) + " some other words" for each in references]
    even = [pair[n % 2] for n, pair in enumerate(zip(references, worse, strict=True))]
    odd = [pair[1 - n % 2] for n, pair in enumerate(zip(references, worse, strict=True))]
    results = Results(tmp_path / "table.csv")
    for name, hypotheses in (("alone", even), ("taught", references), ("planned", odd)):
        trial = Trial(plan, name, 1)
        trial.folder.mkdir()
        write_lines(trial.folder / "dev.hypotheses", hypotheses)
        write_lines(trial.folder / "dev.references", references)
        results.add(line(trial, "dev", 1.0))
    found = {each.title: each for each in draw(plan, results, "dev", tmp_path / "picture.png")}
    assert found["taught"].bleu == pytest.approx(100)
    assert found["taught"].p < 0.02
    assert found["planned"].p > 0.2
    assert found["alone"].interval > 1
    assert (tmp_path / "picture.png").stat().st_size > 0


def test_nothing_to_compare_yet(plan, tmp_path):
    results = Results(tmp_path / "table.csv")
    results.add(line(Trial(plan, "taught", 1), "dev", 1.0))
    assert draw(plan, results, "dev", tmp_path / "picture.png") == []
    assert not (tmp_path / "picture.png").exists()


def test_a_row_begins_with_another_of_its_seed(plan):
    rows = plan.rows | {"then": Row(recipe="taught", begin="taught", seeds=(2,))}
    plan = dataclasses.replace(plan, rows=rows)
    (trial,) = plan.trials(rows=("then",))
    assert trial.seed == 2
    assert f"start.run={Trial(plan, 'taught', 2).folder}" in trial.overrides(has_teacher=True)
    assert list(plan.stages) == [["alone", "taught", "planned"], ["then"]]


def test_rows_that_need_what_is_not_there(tmp_path):
    file = tmp_path / "plan.yaml"
    text = "{corpus: c, recipes: r, runs: x, seeds: [1], baseline: a, rows: {a: {recipe: a, %s}}}"
    for wrong, told in (("begin: b", "rows.a: .* not 'b'"), ("seeds: [3]", "rows.a.seeds")):
        file.write_text(text % wrong)
        with pytest.raises(ValueError, match=told):
            read_plan(file)


def test_halves_by_the_parity_of_lines(tmp_path):
    (tmp_path / "test.de").write_text("1\n2\n3\n")
    (tmp_path / "test.en.gz").write_bytes(gzip.compress(b"a\nb\nc\n"))
    cut(tmp_path, tmp_path)
    assert (tmp_path / "test-open.de").read_text() == "1\n3\n"
    assert (tmp_path / "test-sealed.en").read_text() == "b\n"
