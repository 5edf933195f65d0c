"""Tables in each form, and bytes as people read them."""

import io

import pytest

from fastkd.tables import Table, show, size

TABLE = Table(
    "A title", ("", "first", "second"), [("one", "1", "2"), ("three", "33", "4")], ["left out"], [1]
)


def test_text_is_aligned():
    assert TABLE.text().splitlines() == [
        "A title",
        "       first  second", "one        1       2", "three     33       4", "left out",
    ]  # fmt: skip


def test_markdown():
    assert TABLE.markdown().splitlines() == [
        "`A title`", "", "|  | first | second |", "| --- | ---: | ---: |", "| one | 1 | 2 |",
        "| three | 33 | 4 |", "", "left out",
    ]  # fmt: skip


def test_rich_takes_it():
    rich = pytest.importorskip("rich.console")
    console = rich.Console(width=60, record=True, file=io.StringIO())
    console.print(TABLE)
    printed = console.export_text()
    for word in ("A title", "second", "three", "left out"):
        assert word in printed


def test_what_is_no_terminal_gets_plain_text(capsys):
    show([TABLE])
    assert capsys.readouterr().out == f"{TABLE.text()}\n\n"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, ""), (0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1536, "1.50 KiB"),
        (16e6, "15.3 MiB"), (400 << 20, "400 MiB"), (3 << 29, "1.50 GiB"), (139 << 30, "139 GiB"),
        (5 << 40, "5,120 GiB"), (-(3 << 19), "-1.50 MiB"),
    ],
)  # fmt: skip
def test_sizes(count, shown):
    assert size(count) == shown


def test_what_looks_like_markup_is_text():
    rich = pytest.importorskip("rich.console")
    console = rich.Console(width=80, record=True, file=io.StringIO())
    cells = ("runs/a[bold]b", "failed: [/red]")
    console.print(Table("of [x]", ("[/]", "status [1]"), [cells], remarks=("see [/b]",)))
    printed = console.export_text()
    assert all(text in printed for text in (*cells, "of [x]", "[/]", "status [1]", "see [/b]"))
