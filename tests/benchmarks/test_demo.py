"""The demo's table comes from what a demo left."""

from benchmarks import demo
from fastkd.demo.table import Row, show


def test_the_table_that_a_demo_leaves_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "RESULTS", tmp_path)
    monkeypatch.setattr(demo, "TABLE", tmp_path / "table.csv")
    monkeypatch.setattr(demo, "MACHINE", tmp_path / "machine.json")
    assert "no figures" in demo.body()
    left = tmp_path / "demo-out"
    left.mkdir()
    rows = [
        Row("teacher", 71.26, 88.0, 1_234_567, 61.0, 50.0),
        Row("A2D", 55.0, 77.0, 160_000, 29.0, 99.0),
    ]
    show(rows, "Invented language", left / "table.csv")
    demo.record(left)
    assert "| teacher | 1.23 M | 71.3 | 88.0 | 61 s |" in demo.body()
    assert "1.5 minutes of training in all" in demo.body()
