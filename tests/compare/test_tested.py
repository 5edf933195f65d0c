"""Which scores on test are shown beside each other."""

import dataclasses
import json
import shutil

import pytest

from fastkd.compare.facts import Facts
from fastkd.compare.methods import methods_of
from fastkd.compare.table import of_methods

TOKENIZED = "nrefs:1|tok:13a"


@pytest.fixture
def copies(runs, tmp_path):
    """Runs that may be changed: two seeds of one method, and another one."""
    return [shutil.copytree(run, tmp_path / str(place)) for place, run in enumerate(runs)]


def entry(run, bleu, decoding=None, **changes):
    best = Facts.read(run).meta["best_update"]
    return {
        "split": "test",
        "checkpoint": "best",
        "update": best,
        "bleu": bleu,
        "chrf": 2 * bleu,
        "engine": "pytorch",
        "compute_type": "float32",
        "bleu_signature": TOKENIZED,
        "text_sha256": "of a text",
        "decoding": {"beam": 5, **(decoding or {})},
        **changes,
    }


def keep(run, *entries):
    (run / "scores.json").write_text(json.dumps({"scores": entries}))


def shown(runs, kinds=None):
    """BLEU on test, one a method, and the remark on it."""
    facts = [Facts.read(run) for run in runs]
    for place, kind in (kinds or {}).items():
        model = dataclasses.replace(facts[place].config.model, kind=kind)
        config = dataclasses.replace(facts[place].config, model=model)
        facts[place] = dataclasses.replace(facts[place], config=config)
    table = of_methods(methods_of(facts))
    assert table.header[-2:] == ["test BLEU", "test chrF"]
    return [line[-2] for line in table.lines], table.remarks[-1]


def test_scores_count_as_long_as_the_checkpoint_is_the_one(copies):
    run, _, other = copies
    mine = entry(run, 12.5)
    keep(run, mine, {**mine, "split": "dev", "bleu": 1.0}, {**mine, "checkpoint": "last"})
    found = of_methods(methods_of([Facts.read(run), Facts.read(other)]))
    assert [line[-2:] for line in found.lines] == [["12.50", "25.00"], ["-", "-"]]
    assert found.remarks[-1] == f"test: by fastkd score, {TOKENIZED}"
    keep(run, {**mine, "update": mine["update"] + 1})
    found = of_methods(methods_of([Facts.read(run)]))
    assert "test BLEU" not in found.header and "adds scores on test" in found.remarks[-1]


def test_a_best_update_that_is_not_known_is_the_last(copies):
    run, facts = copies[0], Facts.read(copies[0])
    keep(run, entry(run, 3.0, update=facts.updates))
    unknown = dataclasses.replace(facts, meta={**facts.meta, "best_update": None})
    assert [found["bleu"] for found in unknown.scores("test")] == [3.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"decoding": {"beam": 1}},
        {"decoding": {"unknown": True}},
        {"engine": "ctranslate2"},
        {"compute_type": "int8"},
        {"bleu_signature": "nrefs:1|tok:char"},
        {"text_sha256": "of another text"},
    ],
)
def test_scores_made_otherwise_are_not_shown_beside_each_other(copies, changes):
    one, seed, other = copies
    keep(one, entry(one, 10.0))
    keep(other, entry(other, 20.0, **changes))
    bleu, remark = shown([one, other])
    assert bleu == ["-", "-"] and "different searches or BLEU signatures" in remark
    keep(seed, entry(seed, 20.0, **changes))
    assert shown([one, seed])[0] == ["-"]  # nor averaged
    keep(other, entry(other, 15.0), entry(other, 20.0, **changes))
    assert shown([one, other])[0] == ["10.00", "15.00"]
    keep(one, entry(one, 10.0), entry(one, 11.0, **changes))  # two in common: the last one
    assert shown([one, other])[0] == ["11.00", "20.00"]


def test_scores_of_before_texts_were_noted_are_told_as_such(copies):
    """Neither compared with new ones nor said to be of other texts."""
    one, seed, other = copies

    def old(**changes):
        return {k: v for k, v in entry(one, 10.0, **changes).items() if k != "text_sha256"}

    keep(one, old())
    keep(seed, entry(seed, 15.0))
    keep(other, entry(other, 20.0))
    bleu, remark = shown(copies)
    assert bleu == ["-", "-"]
    assert remark == (
        f"test: {one}: scored before texts were noted; score again: fastkd score RUN test"
    )
    keep(one, entry(one, 10.0))
    assert shown(copies)[0][1] == "20.00"
    keep(one, old(decoding={"beam": 1}))  # nor would texts help
    assert "different searches" in shown(copies)[1]


def test_what_changes_no_translation_does_not_matter(copies):
    one, _, other = copies
    keep(one, entry(one, 10.0))
    keep(other, entry(other, 20.0, {"batch_tokens": 16, "passes": 9, "length_penalty": 1.0}))
    assert shown([one, other])[0] == ["10.00", "20.00"]


def test_models_of_two_kinds_have_searches_of_their_own(copies):
    one, _, other = copies
    keep(one, entry(one, 10.0))
    keep(other, entry(other, 20.0, {"beam": 1, "passes": 9}))
    assert shown([one, other], {1: "cmlm"})[0] == ["10.00", "20.00"]
    keep(other, entry(other, 20.0, bleu_signature="nrefs:1|tok:char"))
    assert shown([one, other], {1: "cmlm"})[0] == ["-", "-"]
