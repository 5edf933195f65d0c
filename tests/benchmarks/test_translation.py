"""The table of translation quality: its plans, and what it makes of results."""

import dataclasses
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from benchmarks.translation import __main__ as command
from benchmarks.translation import pace, picture
from benchmarks.translation.__main__ import ended, refuse_unless_ended
from benchmarks.translation.decide import decided
from benchmarks.translation.picture import draw
from benchmarks.translation.plan import Decision, Pieces, Plan, Row, Trial, read_plan
from benchmarks.translation.rehearsal import rehearsed
from benchmarks.translation.results import Results, markdown
from benchmarks.translation.splits import Scored
from benchmarks.translation.trial import Unfinished, fastkd, write_lines
from fastkd.compare.pictures import NO_INTERVAL, scores
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
            teacher = trial.of(taught) if taught else plan.teacher
            assert config.teacher.run == str(teacher.folder)
            assert teacher in trial.needs
        if trial.row.begin:
            assert config.start.run == str(trial.of(trial.row.begin).folder)
            assert config.start.learned == trial.row.learned


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
    assert table[0][:5] == ["method", "dev BLEU", "seed 1", "seed 2", "dev chrF"]
    assert table[3][:5] == ["alone", "10.50", "10.00", "11.00", "21.00"]
    assert table[4][:5] == ["taught", "12.00", "12.00", "", "24.00"]
    assert table[5][:5] == ["planned", "absent", "", "", "absent"]


def test_lines_of_before_lack_what_is_measured_now(plan, tmp_path):
    file = tmp_path / "table.csv"
    Results(file).add(line(Trial(plan, "alone", 1), "dev", 10.0))
    results = Results(file)
    results.add({**line(Trial(plan, "taught", 1), "dev", 12.0), "agreement": "55.5"})
    Results(file).add(line(Trial(plan, "alone", 2), "dev", 11.0))  # by a process that knows less
    read = Results(file)
    assert [each["agreement"] for each in read.lines] == ["", "55.5", ""]
    assert [each["bleu"] for each in read.lines] == ["10.0", "12.0", "11.0"]
    assert "| 55.5 |" in markdown(plan, read, ("dev",)).splitlines()[4]


def test_updates_stand_beside_seeds_that_have_not_come_as_far(plan, tmp_path):
    results = Results(tmp_path / "table.csv")
    for name, seed, updates in (("alone", 1, 9000), ("alone", 2, 3000), ("taught", 1, 3000)):
        results.add({**line(Trial(plan, name, seed), "dev", 10.0), "updates": updates})
    table = [row.strip("| ").split(" | ") for row in markdown(plan, results, ("dev",)).splitlines()]
    place = table[0].index("updates")
    assert [row[place] for row in table[3:5]] == ["9,000 / 3,000", "3,000"]
    results.add({**line(Trial(plan, "alone", 2), "dev", 11.0), "updates": 9000})
    assert "updates" not in markdown(plan, results, ("dev",))


def test_results_of_another_table_count_where_there_are_none(plan, tmp_path):
    other = Results(tmp_path / "other.csv")
    other.add(line(Trial(plan, "alone", 1), "dev", 10.0))
    other.add(line(Trial(plan, "taught", 1), "dev", 12.0))
    own = Results(tmp_path / "own.csv", [other.file])
    own.add(line(Trial(plan, "taught", 1), "dev", 13.0))
    assert own.of(Trial(plan, "alone", 1), "dev")["bleu"] == "10.0"
    assert own.of(Trial(plan, "taught", 1), "dev")["bleu"] == "13.0"
    assert len(Results(own.file).lines) == 1


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


def test_intervals_by_seeds_where_translations_are_gone(plan, tmp_path):
    """Seeds 1 apart in two methods: a standard deviation of 1 / √2, two degrees of freedom."""
    results = Results(tmp_path / "table.csv")
    for name in ("alone", "taught"):
        for seed in plan.seeds[:2]:
            results.add(line(Trial(plan, name, seed), "dev", float(seed)))
    rows, interval = picture._rows(plan, results, "dev", [])
    assert [row.half for row in rows] == [pytest.approx(4.30 / 2)] * 2
    assert "2 degrees of freedom" in interval and "spread over seeds" in interval
    file = tmp_path / "picture.png"
    assert draw(plan, results, "dev", file) == []
    assert not picture.is_stale(plan, results, "dev", file)
    results.add(line(Trial(plan, "alone", 1), "dev", 9.0))
    assert picture.is_stale(plan, results, "dev", file)


def test_one_method_of_two_seeds_tells_no_interval(plan, tmp_path):
    results = Results(tmp_path / "table.csv")
    for name, seeds in (("alone", plan.seeds[:2]), ("taught", plan.seeds[:1])):
        for seed in seeds:
            results.add(line(Trial(plan, name, seed), "dev", float(seed)))
    rows, _ = picture._rows(plan, results, "dev", [])
    assert [row.half for row in rows] == [None, None]
    figure = scores(rows, "BLEU, dev", "an interval", None)
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert NO_INTERVAL in told and "an interval" not in told


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


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("than: c", "decides.0: .* not 'c'"),
        ("split: tset", "decides.0: expected one of dev, .* not 'tset'"),
        ("by: 0.5, not_below: true", "decides.0: expected one of by and not_below"),
        ("share: 0.8, by: 0.5", "decides.0: expected share without"),
        ("share: 0.8, not_below: true", "decides.0: expected share without"),
        ('share: 0.8, split: "test, 8 passes"', "decides.0: expected share of a split"),
        ("share: 0.8, passes: []", "decides.0: expected share of a split"),
    ],
)
def test_decisions_that_cannot_be_taken(tmp_path, wrong, told):
    given = yaml.safe_load(f"{{{wrong}}}")
    plan = {
        "corpus": "c", "recipes": "r", "runs": "x", "seeds": [1], "baseline": "a",
        "passes": given.pop("passes", [1, 8]), "rows": {"a": {"recipe": "a"}, "b": {"recipe": "b"}},
    }  # fmt: skip
    decision = {"better": "a", "than": "b", "split": "test"}
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({**plan, "decides": [decision]}))
    read_plan(file)
    file.write_text(yaml.safe_dump({**plan, "decides": [decision | given]}))
    with pytest.raises(ValueError, match=told):
        read_plan(file)


def test_halves_by_the_parity_of_lines():
    lines = ["1", "2", "3"]
    assert Scored("test-open").of(lines) == ["1", "3"]
    assert Scored("test-sealed").of(lines) == ["2"]
    assert Scored("test").of(lines) == Scored("dev").of(lines) == lines
    assert {Scored(split).corpus for split in ("test", "test-open", "test-sealed")} == {"test"}


@pytest.mark.parametrize("text", ["dev", "test-sealed", "test, 1 pass", "dev, 8 passes"])
def test_what_is_scored_is_read_as_it_is_written(text):
    assert str(Scored.read(text)) == text


@pytest.mark.parametrize("text", ["", "train", "test, 8", "test-half", "dev, x passes"])
def test_what_is_scored_is_one_of_the_splits(text):
    with pytest.raises(ValueError, match="expected one of dev"):
        Scored.read(text)


def pieces(*bleus, seconds=60):
    return [
        {"updates": str(1000 * n), "bleu": str(bleu), "training_seconds": str(seconds * n)}
        for n, bleu in enumerate(bleus, 1)
    ]


def test_pieces_end_when_dev_gains_no_more():
    until = Pieces(gain=0.3, hours=3)
    assert not until.ended([])
    assert not until.ended(pieces(5.0))
    assert not until.ended(pieces(5.0, 5.3))
    assert until.ended(pieces(5.0, 5.3, 5.5))
    assert until.ended(pieces(5.0, 4.0))
    assert until.ended(pieces(5.0, 9.0, seconds=5400))
    assert not until.ended(pieces(5.0, 9.0, seconds=5399))
    again = [*pieces(5.0, 9.0), *pieces(5.0, 9.1)]  # of a run that was made anew
    assert not until.ended(again)


def test_pieces_in_vain_must_follow_each_other():
    until = Pieces(gain=0.0, patience=2)
    assert not until.ended(pieces(5.0, 4.0))
    assert not until.ended(pieces(5.0, 4.0, 6.0, 5.9))
    assert until.ended(pieces(5.0, 4.0, 6.0, 5.9, 5.8))
    assert until.ended(pieces(0.0, 0.0, 0.0))  # what is equal is not raised


def test_the_sealed_half_waits_for_every_run(plan, tmp_path):
    rows = {"teacher": plan.rows["teacher"], "alone": Row(recipe="student", pieces=Pieces(gain=1))}
    plan = dataclasses.replace(plan, rows=rows, seeds=(1,))
    results, trial = Results(tmp_path / "table.csv"), Trial(plan, "alone", 1)
    for updates, bleu in ((1000, 5.0), (2000, 5.5)):
        with pytest.raises(SystemExit, match="alone, seed 1: has not ended"):
            refuse_unless_ended(plan, results)
        results.add({**line(trial, "dev", bleu), "updates": updates})
    assert ended(trial, results)
    refuse_unless_ended(plan, results)


def test_a_row_of_one_seed_serves_the_others(plan):
    rows = plan.rows | {
        "first": Row(recipe="student", seeds=(1,)),
        "then": Row(recipe="a2d", begin="first", learned=True, set=("start.checkpoint=best",)),
    }
    plan = dataclasses.replace(plan, rows=rows)
    trial = Trial(plan, "then", 2)
    assert trial.config.start.run == str(Trial(plan, "first", 1).folder)
    assert (trial.config.start.learned, trial.config.start.checkpoint) == (True, "best")
    assert trial.needs == [Trial(plan, "first", 1), plan.teacher]


def test_masked_rows_are_scored_at_each_number_of_passes(plan):
    rows = plan.rows | {"masked": Row(recipe="cmlm")}
    plan = dataclasses.replace(plan, rows=rows, passes=(1, 8))
    assert Trial(plan, "masked", 1).scored("dev") == [Scored("dev", 1), Scored("dev", 8)]
    assert Trial(plan, "alone", 1).scored("dev") == [Scored("dev")]
    assert plan.labels(["dev"]) == ["dev", "dev, 1 pass", "dev, 8 passes"]


@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
def test_a_rehearsal_is_the_plan_with_fewer_updates(file):
    plan = read_plan(file)
    short, folder = rehearsed(plan, 2)
    assert str(folder).startswith(f"{plan.runs}-rehearsal")
    for trial in (short.teacher, *short.trials()):
        config = trial.config
        assert config.training.updates == config.training.validate_every == 2
        assert config.run.startswith(f"{plan.runs}-rehearsal/")
        assert config.teacher is None or config.teacher.run.startswith(f"{plan.runs}-rehearsal/")
    assert {row for row in plan.rows if row not in short.rows} == {
        name for name, row in plan.rows.items() if row.distilled or row.cached
    }


def test_a_rehearsal_decides_of_the_rows_that_it_has(plan, tmp_path):
    rows = plan.rows | {"distilled": Row(recipe="alone", distilled=True)}
    decides = [
        Decision(better=better, than=than, split="dev")
        for better, than in (("distilled", "alone"), ("taught", "distilled"), ("taught", "alone"))
    ]
    plan = dataclasses.replace(plan, rows=rows, decides=tuple(decides))
    short, _ = rehearsed(plan, 2)
    assert short.decides == tuple(decides[2:])
    assert decided(short, Results(tmp_path / "table.csv")) == []


def test_hours_of_rows_are_updates_times_their_pace(plan):
    plan = dataclasses.replace(plan, seeds=(1, 2, 3))
    trials = [Trial(plan, "alone", 1), Trial(plan, "taught", 1)]
    shown = pace.table(plan, trials, {"alone": 0.9, "taught": 1.8})
    assert shown.lines[0] == ["alone", "0.900", "1.00", "400", "0.10", "3", ""]
    assert shown.lines[1] == ["taught", "1.800", "2.00", "400", "0.20", "3", ""]
    assert shown.remarks[0].startswith("0.9 hours")


def test_what_takes_longer_than_is_left_is_stopped():
    fastkd("--version", until=time.monotonic() + 120)
    with pytest.raises(Unfinished):
        fastkd("--version", until=time.monotonic())
    with pytest.raises(subprocess.CalledProcessError):
        fastkd("nothing", until=time.monotonic() + 120)


def test_a_run_that_is_gone_is_made_again_for_what_needs_it(plan, tmp_path, monkeypatch):
    """Its results are here, so nothing of it is scored; what they say it had is trained."""
    rows = plan.rows | {"then": Row(recipe="word_kd", begin="taught")}
    plan = dataclasses.replace(plan, rows=rows, seeds=(1,))
    results = Results(tmp_path / "table.csv")
    for name in ("teacher", "taught"):
        results.add({**line(Trial(plan, name, 1), "dev", 5.0), "updates": 3000})
    done = []

    def train(trial, updates, until):
        done.append((trial.name, updates))
        (trial.folder / "checkpoints" / "00003000").mkdir(parents=True)

    monkeypatch.setattr(command, "train", train)
    monkeypatch.setattr(command, "result", lambda trial, on, most: line(trial, str(on), 6.0))
    command.Work(plan, results, ("dev",), None).finish(Trial(plan, "then", 1))
    assert done == [("teacher", 3000), ("taught", 3000), ("then", None)]
    assert [each["method"] for each in results.lines] == ["teacher", "taught", "then"]
