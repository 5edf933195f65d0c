"""The sweep of a GPU machine, on the CPU: it ends in time, and failures do not end it."""

from benchmarks.gpu_losses import Part, sweep
from fastkd.bench import command
from fastkd.bench.record import read

OURS = ("reference", "torch")


def test_results_tables_and_the_short_table(tmp_path):
    parts = (Part("linear-ce", ("N=16,V=64,Ds=8,Dt=16",), OURS),)
    short = sweep(tmp_path, 60, parts, "cpu")
    assert short.splitlines()[1].startswith("linear-ce N=16,V=64,Ds=8,Dt=16  torch")
    assert "linear-ce" in (tmp_path / "benchmarks.txt").read_text()
    assert {row.provider for _, row in read(tmp_path / "cpu.csv")} == set(OURS)


def test_what_there_is_no_time_for_is_named(tmp_path):
    short = sweep(tmp_path, -1, (Part("linear-ce", ("smoke",), OURS),), "cpu")
    assert "linear-ce smoke: not measured" in (tmp_path / "benchmarks.txt").read_text()
    assert len(short.splitlines()) == 1


def test_a_failure_leaves_the_others_their_turn(tmp_path, monkeypatch):
    original = command._cases

    def cases(name, question):
        if name == "logits-kd":
            raise ValueError("broken")
        return original(name, question)

    monkeypatch.setattr(command, "_cases", cases)
    parts = (Part("logits-kd", ("smoke",), OURS), Part("logits-tie", ("N=16,V=64",), OURS))
    short = sweep(tmp_path, 60, parts, "cpu")
    assert "logits-kd: failed: ValueError: broken" in (tmp_path / "benchmarks.txt").read_text()
    assert "logits-tie" in short
