"""Pages and tables of results say what the CSVs beside them say."""

import csv
import shutil

import pytest

from benchmarks import readme
from benchmarks.losses import a2d_memory
from benchmarks.translation.pages import HERE, by_passes, in_short, known
from fastkd.bench import plots


def test_no_page_is_stale():
    """`python -m benchmarks.readme` writes them anew."""
    assert readme.stale() == []


def test_no_picture_is_stale():
    """`python -m benchmarks.readme --pictures` draws them anew."""
    assert readme.stale_pictures() == []


def test_a_picture_of_other_results_is_found(tmp_path, monkeypatch):
    folder = shutil.copytree(readme.RESULTS, tmp_path / "results")
    found = readme.results()
    assert plots.stale(found["cpu"], folder, "cpu") == []
    assert plots.stale(found["cpu"][:-40], folder, "cpu") != []
    monkeypatch.setattr(a2d_memory, "RESULTS", folder)
    assert a2d_memory.stale() == []
    table = folder / "a2d_memory" / "predicted.csv"
    table.write_text(table.read_text().replace("1", "2", 1))
    assert a2d_memory.stale() == [folder / "a2d_memory" / "memory.png"]


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_the_predicted_memory_is_what_the_kernels_would_take_now(backend):
    """`python -m benchmarks.losses.a2d_memory` predicts anew."""
    table = readme.RESULTS / "a2d_memory" / "predicted.csv"
    lines = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    (bytes_there,) = (
        int(line["predicted_bytes"])
        for line in lines
        if line["panel"].startswith("GPU") and (line["backend"], line["length"]) == (backend, "512")
    )
    assert (
        a2d_memory.predict(a2d_memory.of_length(512, a2d_memory.GPU_TOKENS), backend) == bytes_there
    )


def test_a_page_that_was_changed_by_hand_is_found(monkeypatch, capsys):
    pages = readme.pages()
    for page, text in pages.items():
        changed = {**pages, page: text.replace("1", "2", 1)}
        monkeypatch.setattr(readme, "pages", lambda changed=changed: changed)
        monkeypatch.setattr("sys.argv", ["readme", "--check"])
        assert readme.stale() == [page]
        assert readme.main() == 1
        assert f"{page}: stale" in capsys.readouterr().out


def test_every_table_has_its_csv_and_the_other_way_round():
    folder = HERE / "results"
    assert {file.stem for file in folder.glob("*.md")} == {f.stem for f in folder.glob("*.csv")}
    assert known().keys() == {file.stem for file in folder.glob("*.md")}


def test_only_what_is_between_the_markers_is_replaced(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter\n")
    new = readme.put(page, {"a": "new"})
    assert new == "before\n<!-- a:begin -->\nnew\n<!-- a:end -->\nafter\n"


@pytest.mark.parametrize("text", ["none", "<!-- a:begin -->", "<!-- a:begin --><!-- a:end -->" * 2])
def test_a_page_without_its_markers_is_refused(tmp_path, text):
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"README\.md: expected the markers <!-- a:begin -->"):
        readme.put(page, {"a": "new"})
    assert page.read_text() == text


def test_a_row_is_the_mean_of_its_seeds_as_the_recipe_is_now():
    plan, results = known()["wmt22-de-dsb"]
    shown = in_short(plan, results).splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in shown[2:]}
    alone = [
        float(line["bleu"])
        for line in results.lines
        if (line["method"], line["options"], line["split"]) == ("student alone", "", "dev")
    ]
    mean, by_seed = sum(alone) / len(alone), " | ".join(f"{value:.1f}" for value in alone)
    assert len(alone) == len(plan.seeds) == 2
    assert f"| 1.2 M | {mean:.1f} | {by_seed} |" in rows["student alone"]
    assert all(not plan.rows[name].set for name in rows)


def test_passes_are_read_from_what_was_printed():
    names = ("cmlm", "dims", "cmlm-distilled", "dims-distilled")
    text = "".join(
        f"== runs/x/{name} test --passes {passes}\nBLEU {10 + number + passes / 100}  nrefs\n"
        for number, name in enumerate(names)
        for passes in (1, 2, 4, 8)
    )
    lines = by_passes(text).splitlines()
    assert lines[2] == "| CMLM | 10.0 | 10.0 | 10.0 | 10.1 |"
    assert lines[-1].startswith("| DiMS of it | 13.0")
