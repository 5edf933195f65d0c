"""What a trial decides, on invented translations."""

import dataclasses
import re

import numpy as np
import pytest

from benchmarks.translation.decide import LEVEL, bleu, bootstrap, counts_of, decided, main, table
from benchmarks.translation.plan import Decision, Plan, Row, Trial
from benchmarks.translation.results import Results
from benchmarks.translation.trial import write_lines
from fastkd.decode.score import score
from tests.benchmarks.test_translation import line

SENTENCES = [f"the small house number {n} stands by the {n % 7} old rivers" for n in range(60)]


def spoiled(every, offset=0):
    """Translations of which every so many-th has other words."""
    return [
        " ".join(each.split()[:-3]) + " some other words" if n % every == offset else each
        for n, each in enumerate(SENTENCES)
    ]


def test_counts_make_the_same_bleu_as_the_corpus():
    for lines in (spoiled(2), spoiled(3), SENTENCES, [""] * 60, ["x"] * 60):
        counts = counts_of(lines, SENTENCES)
        assert bleu(counts) == pytest.approx(score(lines, SENTENCES).bleu, abs=1e-9)
    times = np.arange(60) % 3
    drawn = [n for n, count in enumerate(times) for _ in range(count)]
    expected = score([spoiled(2)[n] for n in drawn], [SENTENCES[n] for n in drawn]).bleu
    assert bleu(counts_of(spoiled(2), SENTENCES), times) == pytest.approx(expected, abs=1e-9)


def test_a_clear_difference_and_none():
    good, bad = (counts_of(spoiled(every), SENTENCES) for every in (6, 2))
    value, interval, p = bootstrap([(good, bad)] * 3)
    assert value > 5
    assert interval[0] > 0
    assert p < 0.01
    value, _, p = bootstrap([(good, good)] * 3)
    assert (value, p) == (0, 1)
    other = counts_of(spoiled(2, 1), SENTENCES)
    assert bootstrap([(bad, other)])[2] > 0.2


def test_seeds_that_disagree_are_no_evidence():
    """Sentences alone would tell the mean of three seeds from 0; drawn seeds do not."""
    good, bad = (counts_of(spoiled(every), SENTENCES) for every in (6, 3))
    agreeing, torn = [(good, bad)] * 3, [(good, bad), (good, bad), (bad, good)]
    assert bootstrap(agreeing)[2] < 0.01
    value, interval, p = bootstrap(torn)
    assert value > 0
    assert p > 0.2
    assert interval[0] < 0 < interval[1]


def test_the_same_numbers_each_time():
    pair = [tuple(counts_of(spoiled(every), SENTENCES) for every in (4, 3))]
    assert bootstrap(pair) == bootstrap(pair)


@pytest.fixture
def plan(tmp_path):
    rows = {"teacher": Row(recipe="teacher", teacher=True)}
    rows |= {name: Row(recipe="word_kd") for name in ("old", "new")}
    return Plan(
        corpus="small", recipes="demo", runs=str(tmp_path / "runs"), seeds=(1, 2), baseline="old",
        rows=rows, passes=(1, 8),
    )  # fmt: skip


def scored(plan, results, name, seed, split, lines):
    trial = Trial(plan, name, seed)
    trial.folder.mkdir(parents=True, exist_ok=True)
    write_lines(trial.folder / f"{split}.hypotheses", lines)
    write_lines(trial.folder / f"{split}.references", SENTENCES)
    results.add(line(trial, split, score(lines, SENTENCES).bleu))


def of(plan, results, **decision):
    decision = Decision(better="new", than="old", split="test-sealed", **decision)
    (verdict,) = decided(dataclasses.replace(plan, decides=(decision,)), results)
    return verdict


def test_holds_by_difference_and_chance(plan, tmp_path):
    results = Results(tmp_path / "table.csv")
    for seed in plan.seeds:
        scored(plan, results, "old", seed, "test-sealed", spoiled(2))
        scored(plan, results, "new", seed, "test-sealed", spoiled(6, seed))
    verdict = of(plan, results, by=0.5)
    assert verdict.differences.keys() == {1, 2}
    assert verdict.value == pytest.approx(sum(verdict.differences.values()) / 2)
    assert verdict.holds
    assert not of(plan, results, by=verdict.value + 0.01).holds
    assert of(plan, results, not_below=True).holds
    worse = Decision(better="old", than="new", split="test-sealed", not_below=True)
    (verdict,) = decided(dataclasses.replace(plan, decides=(worse,)), results)
    assert verdict.holds is False


def test_not_below_is_decided_by_one_tail(plan, tmp_path):
    """A row that is below the other by little: told from chance in that direction, not in both."""
    old, wrong = spoiled(3), " some other words"
    new = [
        " ".join(each.split()[:-3]) + wrong if (n % 3 == 0 and n > 8) or (n % 3 == 1 and n < 27)
        else each for n, each in enumerate(SENTENCES)
    ]  # fmt: skip
    pairs = [(counts_of(new, SENTENCES), counts_of(old, SENTENCES))] * 2
    value, interval, p = bootstrap(pairs)
    assert value < 0 and p >= LEVEL
    assert bootstrap(pairs, below=True)[:2] == (value, interval)
    results = Results(tmp_path / "table.csv")
    for seed in plan.seeds:
        scored(plan, results, "old", seed, "test-sealed", old)
        scored(plan, results, "new", seed, "test-sealed", new)
    verdict = of(plan, results, not_below=True)
    assert verdict.p == pytest.approx(0.03, abs=0.01)
    assert verdict.holds is False
    assert of(plan, results).p == p
    turned = Decision(better="old", than="new", split="test-sealed", not_below=True)
    (verdict,) = decided(dataclasses.replace(plan, decides=(turned,)), results)
    assert verdict.p > 0.5 and verdict.holds


@pytest.mark.parametrize("asked", [{"by": 0.5}, {"not_below": True}])
def test_nothing_holds_before_all_seeds_are_scored(plan, tmp_path, asked):
    results = Results(tmp_path / "table.csv")
    scored(plan, results, "old", 1, "test-sealed", spoiled(2))
    scored(plan, results, "old", 2, "test-sealed", spoiled(2))
    scored(plan, results, "new", 1, "test-sealed", spoiled(6))
    verdict = of(plan, results, **asked)
    assert (verdict.seeds, verdict.holds) == ((1, 2), None)
    shown = table(plan, [verdict])
    cells = dict(zip(shown.header, shown.lines[0], strict=True))
    assert (cells["seeds"], cells["seed 2"], cells["holds"]) == ("1 of 2", "", "not told")
    of_one = plan.rows | {"new": Row(recipe="word_kd", seeds=(1,))}
    verdict = of(dataclasses.replace(plan, rows=of_one), results, **asked)
    assert (verdict.seeds, verdict.holds) == ((1, 1), True)
    scored(plan, results, "new", 2, "test-sealed", spoiled(6))
    verdict = of(plan, results, **asked)
    assert (verdict.seeds, verdict.holds) == ((2, 2), True)


def test_translations_of_another_score_are_refused(plan, tmp_path):
    results = Results(tmp_path / "table.csv")
    for name, every in (("old", 2), ("new", 6)):
        for seed in plan.seeds:
            scored(plan, results, name, seed, "test-sealed", spoiled(every))
    trial = Trial(plan, "new", 2)
    told = score(spoiled(6), SENTENCES).bleu
    results.add(line(trial, "test-sealed", told + 0.009))
    assert of(plan, results).holds
    results.add(line(trial, "test-sealed", told - 0.02))
    with pytest.raises(SystemExit, match=f"^{re.escape(str(trial.folder))}: .*test-sealed"):
        of(plan, results)


def test_without_translations_nothing_is_said_of_chance(plan, tmp_path):
    results = Results(tmp_path / "table.csv")
    scored(plan, results, "new", 1, "test-sealed", SENTENCES)
    results.add(line(Trial(plan, "old", 1), "test-sealed", 90.0))
    verdict = of(plan, results)
    assert verdict.differences == {1: pytest.approx(10.0)}
    assert (verdict.p, verdict.holds) == (None, None)


def test_other_references_are_refused(plan, tmp_path):
    results = Results(tmp_path / "table.csv")
    for name in ("old", "new"):
        scored(plan, results, name, 1, "test-sealed", SENTENCES)
    write_lines(Trial(plan, "old", 1).folder / "test-sealed.references", SENTENCES[::-1])
    with pytest.raises(SystemExit, match="other references"):
        of(plan, results)


def test_share_of_the_gap_between_one_pass_and_the_most(plan, tmp_path):
    results = Results(tmp_path / "table.csv")
    for name, passes, value in (
        ("old", "1 pass", 20),
        ("old", "8 passes", 30),
        ("new", "1 pass", 28.5),
    ):
        results.add(line(Trial(plan, name, 1), f"test, {passes}", value))
    asked = Decision(better="new", than="old", split="test", share=0.8)
    plan = dataclasses.replace(plan, decides=(asked,))
    (verdict,) = decided(plan, results)
    assert verdict.value == pytest.approx(0.85)
    assert (verdict.seeds, verdict.holds) == ((1, 2), None)
    shown = table(plan, [verdict])
    assert shown.lines[0][3:6] == ["85%", "", "1 of 2"]
    for name, passes, value in (
        ("old", "1 pass", 22),
        ("old", "8 passes", 22),  # no gap, and yet it counts
        ("new", "1 pass", 22),
    ):
        results.add(line(Trial(plan, name, 2), f"test, {passes}", value))
    (verdict,) = decided(plan, results)
    assert verdict.differences == {1: pytest.approx(0.85)}
    assert verdict.value == pytest.approx(0.85) and verdict.holds
    results.add(line(Trial(plan, "new", 2), "test, 1 pass", 21.0))
    (verdict,) = decided(plan, results)
    assert verdict.value == pytest.approx(0.75) and verdict.holds is False
    results.add(line(Trial(plan, "old", 1), "test, 8 passes", 20.0))
    assert decided(plan, results) == []  # no gap


def test_the_command_writes_a_table(plan, tmp_path, capsys):
    text = f"""
corpus: small
recipes: demo
runs: {tmp_path / "runs"}
seeds: [1, 2]
baseline: old
rows:
  teacher: {{recipe: teacher, teacher: true}}
  old: {{recipe: word_kd}}
  new: {{recipe: word_kd}}
decides: [{{better: new, than: old, split: test-sealed, by: 0.5}}]
"""
    file = tmp_path / "small.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit, match="nothing to decide yet"):
        main([str(file), "--out", str(tmp_path)])
    results = Results(tmp_path / "small.csv")
    for seed in plan.seeds:
        scored(plan, results, "old", seed, "test-sealed", spoiled(2))
        scored(plan, results, "new", seed, "test-sealed", spoiled(6))
    main([str(file), "--out", str(tmp_path)])
    assert "yes" in capsys.readouterr().out
    header, written = (tmp_path / "decided" / "small.csv").read_text().splitlines()
    assert header == "better,than,on,seed 1,seed 2,seeds,mean,95 % interval,p,asked,holds"
    assert written.startswith("new,old,test-sealed,+") and written.endswith(",+0.5,yes")
