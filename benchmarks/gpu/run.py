"""One call on a GPU machine: are the kernels right there, and what do the losses cost?

    make gpu    or    OUT=FOLDER python -m benchmarks.gpu [--seconds 530] [--dry-run]

It needs torch, Triton, NumPy and pytest, and no network. First the kernels' tests and their errors
at sizes of training, at once; then the benchmarks until the time is spent. The folder gets, each
as soon as there is something to write:

    environment.json  device, driver, versions
    tests.txt         what pytest says
    checks.csv        errors beside those of plain PyTorch
    cuda.csv          times and memory, as `fastkd bench` writes them
    sweep.txt         the same as tables, and what was absent or failed
    summary.txt       all of it in short, which is also printed last
"""

import argparse
import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.gpu.losses import CASES, TINY, short_table
from fastkd.bench.record import latest, read, this_machine
from fastkd.tables import text_table

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "kernels"
OFFLINE = "test_offline.py"  # compiles for chips that are not there
DRY_TESTS = ("tests/kernels/tokens/test_linear.py::test_nothing_trained_needs_no_gradient",)
TESTS_SHARE = 0.4  # of the time at most
SPARE = 10.0  # seconds to end in


@dataclass(frozen=True)
class Run:
    out: Path
    end: float  # by the monotonic clock
    dry: bool

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def where(self) -> list[str]:
        return ["--device", "cpu", "--tiny"] if self.dry else []

    def start(self, *command: object, output: IO[str]) -> subprocess.Popen[bytes]:
        path = (str(ROOT), str(ROOT / "kernels"), *sys.path)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        if self.dry:
            environment["TRITON_INTERPRET"] = "1"
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", *map(str, command)],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
        )


def environment(run: Run) -> dict[str, Any]:
    """What measured, as JSON and as one line for the summary."""
    about = dataclasses.asdict(this_machine(torch.device(run.device)))
    about |= {"cuda": torch.version.cuda, "processors": os.cpu_count()}
    if not run.dry:
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }
    (run.out / "environment.json").write_text(json.dumps(about, indent=2) + "\n")
    return about


def correctness(run: Run) -> list[tuple[str, str]]:
    """Runs every module of kernel tests and the checks, all at once: (what, how it went)."""
    modules = sorted(TESTS.rglob("test_*.py"))
    tests = [str(module.relative_to(ROOT)) for module in modules if module.name != OFFLINE]
    options = ("-rfE", "--tb=short", "-p", "no:cacheprovider")
    end = time.monotonic() + TESTS_SHARE * run.left
    outcomes = []
    with tempfile.TemporaryDirectory() as folder, open(run.out / "checks.csv", "w") as checks:
        running = {"checks": run.start("benchmarks.gpu.checks", *run.where, output=checks)}
        for test in DRY_TESTS if run.dry else tests:
            with open(_output(folder, test), "w") as output:
                running[test] = run.start("pytest", *options, test, output=output)
        while running:
            time.sleep(0.2)
            late = time.monotonic() > end
            for name, process in list(running.items()):
                if process.poll() is None and not late:
                    continue
                ended = process.poll() is not None
                process.kill()
                process.wait()
                del running[name]
                if name == "checks":
                    outcome = _checked(run.out / "checks.csv")
                else:
                    outcome = _tested(run.out / "tests.txt", name, _output(folder, name))
                outcomes.append((name, outcome if ended else f"{outcome}; no time left"))
    return sorted(outcomes)


def _output(folder: str, test: str) -> Path:
    return Path(folder) / test.replace("/", "-")


def _tested(report: Path, name: str, output: Path) -> str:
    """Pytest's last line, such as "12 passed"."""
    text = output.read_text()
    with open(report, "a") as file:
        file.write(f"{name}\n{text}\n")
    return (text.strip().splitlines() or ["no output"])[-1].strip("= ")


def _checked(file: Path) -> str:
    """How many held, and the names of those that did not; other output is in the file."""
    with open(file, newline="") as stream:
        statuses = {row[0]: row[1] for row in csv.reader(stream) if len(row) > 1}
    statuses.pop("check", None)
    bad = [f"{name}: {status}" for name, status in statuses.items() if status != "ok"]
    return "; ".join([f"{len(statuses) - len(bad)} ok", *bad])


def sweep(run: Run) -> list[str]:
    """Benchmarks in a process that is replaced where it ends early; the cases without result."""
    log, cases = run.out / "sweep.txt", TINY if run.dry else CASES
    missing, first = [], 0
    while first < len(cases) and run.left > SPARE:
        options = ("--seconds", run.left - SPARE, "--first", first, *run.where)
        with open(log, "a") as output:
            process = run.start("benchmarks.gpu.losses", run.out, *options, output=output)
            try:
                status = process.wait(timeout=run.left)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
        if status == 0:
            first = int(re.findall(r"^next: (\d+)", log.read_text(), re.M)[-1])
            break
        started = [int(number) for number in re.findall(r"^case (\d+): ", log.read_text(), re.M)]
        first = max([first, *started])
        missing.append(f"{cases[first]}: ended with status {status}, see sweep.txt")
        first += 1
    return [*missing, *(f"{case}: absent, no time left" for case in cases[first:])]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=530.0)
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU's interpreter")
    options = parser.parse_args()
    out = Path(os.environ.get("OUT") or "out").resolve()
    out.mkdir(parents=True, exist_ok=True)
    run = Run(out, time.monotonic() + options.seconds, options.dry_run)
    if not run.dry and not torch.cuda.is_available():
        print("benchmarks.gpu: PyTorch sees no GPU here; --dry-run needs none", file=sys.stderr)
        return 2
    about = environment(run)
    outcomes = correctness(run)
    missing = sweep(run)
    file = out / f"{run.device}.csv"
    rows = [row for _, row in latest(read(file))] if file.exists() else []
    machine = ", ".join(f"{name} {about[name]}" for name in ("device", "driver", "torch", "triton"))
    parts = [machine, text_table(("correctness", ""), outcomes), *missing, short_table(rows)]
    (out / "summary.txt").write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts), flush=True)
    wrong = any(re.search("WRONG|failed|error|no ", outcome) for _, outcome in outcomes)
    return 1 if wrong else 0
