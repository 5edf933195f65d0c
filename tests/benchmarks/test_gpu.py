"""What `make gpu` does, tried on the CPU without any package that a GPU machine may lack."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import losses
from benchmarks.gpu.checks import COLUMNS
from benchmarks.gpu.losses import CASES, Case, measure
from benchmarks.gpu.run import Run, sweep
from fastkd.bench import command
from fastkd.bench.command import NAMES, Question, check
from fastkd.bench.record import read

ROOT = Path(__file__).parents[2]
LACKING = [
    *("click", "hypothesis", "matplotlib", "psutil", "pydantic", "pytest_benchmark", "rich"),
    *("sacrebleu", "safetensors", "sentencepiece", "transformers", "xdist", "yaml"),
]
OURS = ("reference", "torch")
TINY = Case("linear-ce", "N=16,V=64,Ds=8,Dt=16", OURS)


@pytest.fixture(scope="module")
def without_packages(tmp_path_factory):
    """A folder to search first, in which each package is one that is not there."""
    folder = tmp_path_factory.mktemp("lacking")
    for name in LACKING:
        complaint = f"raise ModuleNotFoundError({name!r}, name={name!r})\n"
        (folder / f"{name}.py").write_text(complaint)
    return folder


@pytest.mark.slow
def test_the_whole_flow_needs_no_other_package(without_packages, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--seconds", "500"],
        cwd=ROOT,
        env={**os.environ, "OUT": str(tmp_path), "PYTHONPATH": str(without_packages)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = {file.name for file in tmp_path.iterdir()}
    assert len(files) <= 8
    assert files == {
        "environment.json", "tests.txt", "checks.csv", "cpu.csv", "sweep.txt", "summary.txt"
    }  # fmt: skip
    assert json.loads((tmp_path / "environment.json").read_text())["torch"]
    assert "1 passed" in (tmp_path / "tests.txt").read_text()
    with open(tmp_path / "checks.csv", newline="") as stream:
        checked = list(csv.DictReader(stream))
    assert tuple(checked[0]) == COLUMNS
    assert {row["ok"] for row in checked} == {"ok"}
    measured = {(row.operation, row.provider) for _, row in read(tmp_path / "cpu.csv")}
    assert {("alignment-row", "triton"), ("linear-kd", "triton")} <= measured
    assert "absent: needs the package" in (tmp_path / "sweep.txt").read_text()
    printed = done.stdout.strip()
    assert printed == (tmp_path / "summary.txt").read_text().strip()
    assert printed.splitlines()[-1].startswith("logits-tie")


def test_kernel_tests_are_collected_without_other_packages(without_packages):
    path = os.pathsep.join((str(without_packages), str(ROOT), str(ROOT / "kernels")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/kernels"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert all(f"{of}/test_losses.py" in done.stdout for of in ("attention", "tokens"))


def test_every_case_exists():
    for case in CASES:
        assert case.operation in NAMES
        shapes = (case.shape,)
        check(Question((case.operation,), device=None, shapes=shapes, against=case.against))


def test_results_and_tables_as_they_come(tmp_path, capsys):
    assert measure((TINY,), 0, tmp_path, 60, "cpu") == 1
    assert "case 0: linear-ce N=16" in capsys.readouterr().out
    rows = [row for _, row in read(tmp_path / "cpu.csv")]
    assert {row.provider for row in rows} == set(OURS)
    short = losses.short_table(rows)
    assert short.splitlines()[1].startswith("linear-ce N=16,V=64,Ds=8,Dt=16  torch")


def test_a_failure_leaves_the_others_their_turn(tmp_path, monkeypatch, capsys):
    original = command._cases

    def cases(name, question):
        if name == "logits-kd":
            raise ValueError("broken")
        return original(name, question)

    monkeypatch.setattr(command, "_cases", cases)
    assert measure((Case("logits-kd", "N=3,V=9"), TINY), 0, tmp_path, 60, "cpu") == 2
    assert "failed: ValueError: broken" in capsys.readouterr().out
    assert read(tmp_path / "cpu.csv")


def test_what_there_is_no_time_for_is_said(tmp_path):
    assert measure((TINY,), 0, tmp_path, -1, "cpu") == 0
    missing = sweep(Run(tmp_path, time.monotonic(), dry=True))
    assert missing == [f"{case}: absent, no time left" for case in losses.TINY]


def test_a_process_that_ends_early_is_replaced(tmp_path, monkeypatch):
    """Of four cases the first two end the process."""
    code = (
        "import os, sys; first = int(sys.argv[1]); print(f'case {first}: x', flush=True); "
        "os._exit(3) if first < 2 else print('case 3: x\\nnext: 4')"
    )

    def start(run, module, out, *options, output):
        first = str(options[options.index("--first") + 1])
        return subprocess.Popen([sys.executable, "-c", code, first], stdout=output)

    monkeypatch.setattr(Run, "start", start)
    missing = sweep(Run(tmp_path, time.monotonic() + 60, dry=True))
    assert [line.rpartition(": ")[2] for line in missing] == [
        "ended with status 3, see sweep.txt"
    ] * 2


def test_a_case_that_hangs_ends_its_process(tmp_path):
    code = (
        "import time; from benchmarks.gpu import losses;"
        "losses.answer = lambda question: time.sleep(60);"
        "from pathlib import Path;"
        f"losses.measure(losses.TINY, 0, Path({str(tmp_path)!r}), 1.0, 'cpu')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "case 0" in done.stdout and "Timeout" in done.stderr
