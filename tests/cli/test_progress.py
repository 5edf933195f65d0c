"""Progress where there is no terminal: a line now and then, with what is left."""

import pytest

from fastkd.cli import progress
from fastkd.cli.progress import Lines, counting
from fastkd.runs.caching import cache_teacher
from fastkd.runs.folder import RunFolder


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_line_now_and_then(capsys):
    clock = Clock()
    tell = Lines(clock)
    for clock.now, done in ((0, 0), (10, 100), (31, 300), (40, 400), (62, 610), (90, 900)):
        tell("translating", done, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "translating: 300 of 1,000, about 1 min 12 s to go",
        "translating: 610 of 1,000, about 40 s to go",
    ]


def test_each_stage_has_its_own_speed(capsys):
    clock = Clock()
    tell = Lines(clock)
    for clock.now, stage, done in ((0, "reading", 0), (40, "cutting", 0), (75, "cutting", 35)):
        tell(stage, done, 100)
    assert capsys.readouterr().err.splitlines()[-1] == "cutting: 35 of 100, about 1 min 5 s to go"


def test_without_a_total(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with counting("translating") as done:
        done(1024)
    assert capsys.readouterr().err.splitlines()[-1] == "translating: 1,024"


def test_nothing_is_left_of_what_is_done(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with counting("translating", 4) as done:
        done(4)
    assert capsys.readouterr().err.splitlines()[-1] == "translating: 4 of 4"


def test_no_bar_where_there_is_nothing_to_do(capsys, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    with progress.bar():
        pass
    assert "━" not in capsys.readouterr().err
    with progress.bar() as tell:
        tell("translating", 1, 2)
    assert "━" in capsys.readouterr().err


def test_short_work_says_nothing(capsys):
    with counting("translating", 3) as done:
        done(3)
    assert capsys.readouterr().err == ""


def test_the_teachers_cache_tells_how_far_of_how_much(taught, tmp_path):
    seen = []
    run = RunFolder.open(taught.folder / "teacher")
    corpus = cache_teacher(run, "train", 4, tmp_path / "cache", progress=lambda *f: seen.append(f))
    assert seen[-1] == (len(corpus), len(corpus))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("verb", ["trian", "scor", "comapre", "recipe", "translte"])
def test_a_misspelt_verb(verb, taught, capsys):
    assert taught.run(verb, "x") == 2
    assert "did you mean" in capsys.readouterr().err
