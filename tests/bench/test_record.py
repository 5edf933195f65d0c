"""Results in files, tables, pictures and the README."""

import dataclasses
import sys

import pytest

from benchmarks import a2d_memory, readme
from fastkd.bench.plots import plot_all
from fastkd.bench.record import Machine, Row, append, latest, read, this_machine
from fastkd.bench.section import section
from fastkd.bench.tables import tables
from fastkd.errors import InputError

MACHINE = Machine("2026-01-01 00:00", "abc", "A CPU", "6.1", 2, "3.11", "2.13", "3.9")


def row(provider="torch", direction="both", shape="N=16,V=64", **changes):
    figures = {
        "operation": "logits-kd",
        "shape": shape,
        "dtype": "float32",
        "version": "",
        "status": "ok",
        "clock": "perf_counter",
        "repeats": 5,
        "median_ms": 2.0,
        "lower_ms": 1.5,
        "upper_ms": 2.5,
        "bound_ms": 0.5,
        "bound_by": "bytes",
        "peak_bytes": 1_500_000,
    }
    return Row(provider=provider, direction=direction, **{**figures, **changes})


def case(provider, shape="N=16,V=64", **changes):
    return [
        row(provider, direction, shape, **changes) for direction in ("forward", "backward", "both")
    ]


def test_what_is_written_is_read(tmp_path):
    file = tmp_path / "results.csv"
    rows = [row(), row("cce", status="absent: not installed", median_ms=None, peak_bytes=None)]
    append(file, MACHINE, rows[:1])
    append(file, MACHINE, rows[1:])
    assert read(file) == [(MACHINE, rows[0]), (MACHINE, rows[1])]


def test_appending_keeps_what_was_there(tmp_path):
    file = tmp_path / "results.csv"
    append(file, MACHINE, [row(median_ms=1.0)])
    before = file.read_bytes()
    append(file, MACHINE, [row(median_ms=3.0)])
    assert file.read_bytes().startswith(before)
    ((_, newest),) = latest(read(file))
    assert newest.median_ms == 3.0


def test_a_file_of_something_else_is_left_alone(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="other columns"):
        append(file, MACHINE, [row()])
    assert file.read_text() == "a,b\n1,2\n"


def test_this_machine_says_what_it_is():
    import torch

    machine = this_machine(torch.device("cpu"))
    assert machine.torch == torch.__version__
    assert all(str(value) for value in dataclasses.astuple(machine))


def test_tables_compare_with_the_reference():
    (table,) = tables([*case("reference", median_ms=4.0), *case("torch")])
    assert [line[0] for line in table.lines] == ["reference", "torch"]
    assert table.lines[1][-4:] == ("±25%", "2.00", "1.5 MB", "25.0%")


def test_absent_providers_are_remarks():
    (table,) = tables([*case("torch"), row("cce", status="absent: not installed")])
    assert table.remarks == ["cce: absent: not installed"]
    assert "cce: absent" in table.text()
    assert "cce: absent" in table.markdown()


def test_steps_cost_what_training_alone_does_not():
    def step(method, milliseconds):
        return row(
            direction="step", operation="training", shape=f"cpu {method}", median_ms=milliseconds
        )

    (table,) = tables(
        [step("alone", 2.0), step("A2D", 3.0), step("masked, alone", 5.0), step("DiMS", 6.0)]
    )
    assert [line[4] for line in table.lines] == ["1.00", "1.50", "1.00", "1.20"]


def test_pictures_of_operations_with_several_sizes(tmp_path):
    results = [
        (MACHINE, found)
        for provider in ("reference", "torch")
        for shape in ("N=16,V=64", "N=32,V=64")
        for found in case(provider, shape)
    ]
    results += [(MACHINE, row(operation="linear-ce", shape="N=16,V=64,Ds=8,Dt=16"))]
    (file,) = plot_all(results, tmp_path, "cpu")
    assert file.name == "logits-kd-cpu.png"
    assert file.stat().st_size > 5000


def test_the_readme_is_replaced_between_its_markers(tmp_path, monkeypatch):
    file, folder = tmp_path / "README.md", tmp_path / "results"
    append(folder / "cpu.csv", MACHINE, [*case("reference"), *case("torch")])
    file.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    monkeypatch.setattr(readme, "RESULTS", folder)
    monkeypatch.setattr(readme, "HERE", tmp_path / "x")
    monkeypatch.setattr(readme, "draw", lambda: tmp_path / "memory.png")
    monkeypatch.setattr(sys, "argv", ["readme", str(file)])
    assert readme.main() == 0
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| torch |" in text
    assert "fastkd](memory.png)" in text
    assert "nothing is measured yet" in text
    assert readme.main() == 0
    assert file.read_text() == text


def test_memory_over_length_is_drawn_with_a_prediction_until_a_gpu_is_measured(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(a2d_memory, "RESULTS", tmp_path)
    monkeypatch.setattr(a2d_memory, "FOLDER", tmp_path / "memory")
    assert a2d_memory.draw() is None
    sizes = ("B=4,Ns=12,Nt=24,T=8,D=64", "B=2,Ns=12,Nt=24,T=16,D=64", "B=1,Ns=2,Nt=2,T=4,D=8")
    rows = [
        row("torch", shape=shape, operation="alignment-row", peak_bytes=1000) for shape in sizes
    ]
    append(tmp_path / "cpu.csv", MACHINE, rows)
    drawn = {}
    monkeypatch.setattr(a2d_memory, "plot", lambda groups, file: drawn.update(groups))
    a2d_memory.draw()
    assert list(drawn) == ["CPU, measured in float32", "GPU, predicted in bfloat16"]
    assert drawn["CPU, measured in float32"] == {"torch": [(8, 1000.0), (16, 1000.0)]}
    assert set(drawn["GPU, predicted in bfloat16"]) == {"reference", "triton"}
    assert "triton,16," in (tmp_path / "memory" / "predicted.csv").read_text()
    append(tmp_path / "cuda.csv", MACHINE, [dataclasses.replace(rows[0], provider="triton")])
    drawn.clear()
    a2d_memory.draw()
    assert drawn["GPU, measured in bfloat16"] == {"triton": [(8, 1000.0)]}


def test_a_readme_without_markers_is_left_alone(tmp_path, monkeypatch, capsys):
    file = tmp_path / "README.md"
    file.write_text("no markers\n")
    monkeypatch.setattr(sys, "argv", ["readme", str(file)])
    assert readme.main() == 2
    assert "markers" in capsys.readouterr().err
    assert file.read_text() == "no markers\n"


def test_a_measured_gpu_is_not_called_missing():
    gpu = dataclasses.replace(MACHINE, device="NVIDIA H200", driver="570")
    text = section({"cuda": [(gpu, found) for found in case("triton")]}, {})
    assert "NVIDIA H200" in text
    assert "nothing is measured" not in text
