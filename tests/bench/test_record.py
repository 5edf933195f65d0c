"""Results in files, tables, pictures and the README."""

import dataclasses

import pytest

from benchmarks.losses import a2d_memory
from fastkd.bench.plots import plot_all
from fastkd.bench.record import Machine, Row, append, latest, read, this_machine
from fastkd.bench.section import full, short
from fastkd.bench.tables import summary, tables, throughput_summary, training_summary
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
        "relative": 0.5,
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
    (table,) = tables([*case("reference", median_ms=4.0, relative=1.0), *case("torch")])
    assert [line[0] for line in table.lines] == ["reference", "torch"]
    assert table.lines[1][-4:] == ("±25%", "2.00", "1.43 MiB", "25.0%")


def test_in_short_our_fastest_is_beside_eager_and_compiled():
    rows = [
        *case("reference", median_ms=9.0, relative=1.0, peak_bytes=9_000_000),
        *case("compile", relative=0.75),
        *case("torch", relative=0.25),
        *case("triton", median_ms=5.0),
        row("cce", status="absent: not installed", median_ms=None),
    ]
    (line,) = summary(rows)
    assert line == (
        "CE + KD, N 16 V 64",
        "2",
        "4.00 (reference)",
        "3.00",
        "1.43 MiB",
        "8.58 MiB",
        "1.43 MiB",
        "25%",
    )
    plain = case("plain", median_ms=6.0, relative=0.5, peak_bytes=9_000_000)
    ((_, _, speed, *_),) = summary([*rows, *plain])
    assert speed == "2.00"


def test_a_provider_has_one_name_in_old_results(tmp_path):
    append(tmp_path / "cpu.csv", MACHINE, [row(provider="by-hand")])
    ((_, found),) = read(tmp_path / "cpu.csv")
    assert found.provider == "plain"


def test_cases_without_ours_are_not_told_in_short():
    assert summary(case("reference")) == []


def test_absent_providers_are_remarks():
    (table,) = tables([*case("torch"), row("cce", status="absent: not installed")])
    assert table.remarks == ["cce: absent: not installed"]
    assert "cce: absent" in table.text()
    assert "cce: absent" in table.markdown()


def step(method, backend, milliseconds, **changes):
    return row(
        backend, "step", f"cpu {method}", operation="training", median_ms=milliseconds, **changes
    )


def test_steps_say_what_a_method_costs():
    rows = [step("alone", "torch", 2.0, relative=1.0), step("A2D", "torch", 3.0, relative=1.5)]
    (table,) = tables(rows)
    assert [line[4] for line in table.lines] == ["1.00", "1.50"]


def test_in_short_backends_of_a_step_are_side_by_side():
    rows = [
        step("alone", "reference", 4.0, relative=1.0),
        step("alone", "torch", 2.0, relative=1.0),
        step("A2D", "torch", 3.0, relative=1.5),
        step("A2D", "triton", None, status="absent: needs a GPU"),
    ]
    header, _, *lines = training_summary(rows).splitlines()
    assert header == (
        "| training step, cpu | reference, ms (cost) | memory | torch, ms (cost) | memory |"
    )
    assert lines == [
        "| alone | 4 (+0%) | 1.43 MiB | 2 (+0%) | 1.43 MiB |", "| A2D |  |  | 3 (+50%) | 1.43 MiB |"
    ]  # fmt: skip


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


def test_training_speed_is_told_in_a_sentence():
    def loop(provider, **changes):
        return row(provider, "step", "V=9", operation="throughput", **changes)

    rows = [
        loop("fastkd", tokens_per_second=5000.4, relative=0.5),
        loop("torch.nn.Transformer", tokens_per_second=2500.0, relative=1.0),
    ]
    assert "5,000 target tokens a second in float32, 2.0 times" in throughput_summary(rows)
    assert tables(rows)[0].lines[0][-2:] == ("5,000", "2.00")
    assert throughput_summary(case("torch")) == ""


def test_a_measured_gpu_is_not_called_missing():
    gpu = dataclasses.replace(MACHINE, device="NVIDIA H200", driver="570")
    results = {"cuda": [(gpu, found) for found in case("triton")]}
    for text in (short(results), full(results, {"cuda": ()})):
        assert "NVIDIA H200, driver 570" in text
        assert "nothing is measured" not in text


def test_in_short_only_shapes_that_compare():
    rows = [*case("torch"), *case("torch", "N=32,V=64")]
    rows += case("torch", "N=32,V=64", operation="logits-tie")
    text = short({"cpu": [(MACHINE, found) for found in rows]})
    assert text.count("N 32 V 64") == 2
    assert "N 16" not in text


def test_machines_are_not_mixed():
    other = dataclasses.replace(MACHINE, threads=1)
    results = {
        "cpu": [*((MACHINE, r) for r in case("torch")), *((other, r) for r in case("torch"))]
    }
    told = short(results)
    assert "one thread" in told and "2 threads" not in told
    everything = full(results, {"cpu": ()})
    assert everything.index("2 threads") < everything.index("one thread")


@pytest.fixture
def memory_over_length(tmp_path, monkeypatch):
    """Results of one sentence, and of others that do not belong to the picture."""
    monkeypatch.setattr(a2d_memory, "RESULTS", tmp_path)
    monkeypatch.setattr(a2d_memory, "LENGTHS", (16, 32))
    sizes = (
        "B=1,Ns=12,Nt=24,T=16,D=64", "B=1,Ns=12,Nt=24,T=32,D=64", "B=2,Ns=12,Nt=24,T=8,D=64",
        "B=1,Ns=2,Nt=2,T=4,D=8",
    )  # fmt: skip
    rows = [row(shape=shape, operation="alignment-row", peak_bytes=1000) for shape in sizes]
    (tmp_path / "a2d_memory").mkdir()
    append(tmp_path / "a2d_memory" / "cpu.csv", MACHINE, rows)
    return tmp_path


def test_nothing_is_drawn_of_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(a2d_memory, "RESULTS", tmp_path)
    assert a2d_memory.draw() is None


def test_memory_over_length_is_predicted_until_a_gpu_is_measured(memory_over_length):
    (cpu, gpu) = a2d_memory.panels().values()
    assert cpu[0] == {"torch": {16: 1000.0, 32: 1000.0}}
    assert list(cpu[1]) == ["reference"]
    assert gpu[0] == {}
    assert list(gpu[1]) == ["reference", "triton"]
    measured = row("triton", shape="B=512,Ns=12,Nt=24,T=32,D=64", operation="alignment-row")
    append(memory_over_length / "cuda.csv", MACHINE, [measured])
    gpu = list(a2d_memory.panels().values())[1]
    assert gpu == ({"triton": {32: 1_500_000.0}}, {})


def test_the_picture_and_its_predictions(memory_over_length):
    picture = a2d_memory.draw()
    assert picture.stat().st_size > 5000
    lines = (picture.parent / "predicted.csv").read_text().splitlines()
    assert lines[0] == "panel,backend,length,predicted_bytes,measured_bytes"
    assert len(lines) == 1 + 2 + 4
