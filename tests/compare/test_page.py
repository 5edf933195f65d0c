"""`fastkd compare` and `fastkd runs` as they are shown."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from fastkd.__main__ import main
from fastkd.compare.facts import Facts
from fastkd.compare.methods import methods_of
from fastkd.compare.page import page as compare_page
from fastkd.compare.samples import marked
from fastkd.compare.verdicts import sentences


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "page.html"
    assert main(["compare", *runs, "--output", str(file), "--samples", "3", "--split", "dev"]) == 0
    return file


def test_table_in_the_terminal(runs, capsys):
    assert main(["compare", *runs, "--split", "dev"]) == 0
    shown = capsys.readouterr().out
    assert "compared-a2d" in shown
    assert "1, 2" in shown
    assert re.search(r"p, against", shown)


def test_the_bar_knows_how_many_sentences_there_are(runs):
    methods = methods_of([Facts.read(run) for run in runs])
    assert sentences(methods, "dev") == 6 * 2  # of each method one run, as `a2d` has but one


def test_runs_are_listed(runs, capsys):
    assert main(["runs", str(Path(runs[0]).parent)]) == 0
    assert "4 of 4" in capsys.readouterr().out


def test_nothing_to_list(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert main(["runs", str(tmp_path / "runs")]) == 2
    assert "no such folder; expected one of runs" in capsys.readouterr().err


def test_a_page_by_another_name_is_refused(runs, tmp_path, capsys):
    assert main(["compare", *runs, "--output", str(tmp_path / "page.pdf")]) == 2
    assert "--output: expected a name that ends in .html" in capsys.readouterr().err


def test_page_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", re.sub(r"xlink:href", "", text))
    for title in ("Settings that differ", "Curves", "Losses by component", "Head alignments",
                  "Memory of a training step", "Translations"):  # fmt: skip
        assert f"<h2>{title}</h2>" in text
    assert text.count('class="sample"') == 3
    assert "paired bootstrap over sentences" in text
    assert "(a line a seed)" in text


def test_a_page_without_memory_says_nothing_of_it(runs):
    drawn = compare_page(methods_of([Facts.read(run) for run in runs]))
    assert "<h2>Memory" not in drawn and "None" not in re.sub(
        r"<svg.*?</svg>", "", drawn, flags=re.S
    )


@pytest.mark.parametrize("width", [400, 1400])
def test_page_in_a_browser(page, width):
    """No error in the console, no broken picture, nothing wider than the screen."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{argument}")
    metrics = {"width": width, "height": 900, "pixelRatio": 1.0}
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        window.get(page.as_uri())
        time.sleep(0.5)
        assert window.get_log("browser") == []
        wide = window.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
        sizes = window.execute_script(
            "return [...document.querySelectorAll('svg, img')].map(picture =>"
            "[picture.getBoundingClientRect().width, !!picture.closest('.scrolled')])"
        )
        assert len(sizes) > 5
        assert all(size > 0 and (scrolled or size <= width) for size, scrolled in sizes)
    finally:
        window.quit()


def test_what_the_reference_says_otherwise_is_marked():
    assert marked("a cat sees a dog", "a cat has a dog") == [
        ("a cat", False),
        ("sees", True),
        ("a dog", False),
    ]
    assert marked("我看狗", "我看猫") == [("我看", False), ("狗", True)]


@pytest.mark.parametrize("verb", [["runs"], ["compare"]])
def test_a_fifo_in_place_of_weights_does_not_hang(runs, tmp_path, capsys, verb):
    run = shutil.copytree(runs[0], tmp_path / "run")
    for weights in run.glob("checkpoints/*/model.safetensors"):
        weights.unlink()
        os.mkfifo(weights)
    assert main([*verb, str(run)]) == 2
    assert "model.safetensors: damaged or missing" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_told_before_the_work(runs, capsys):
    """One line, and no table."""
    assert main(["compare", str(runs[0]), "-o", "/proc/page.html"]) == 2
    told = capsys.readouterr()
    assert not told.out and "/proc/page.html: cannot be written" in told.err
