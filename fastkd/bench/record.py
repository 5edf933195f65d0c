"""Results as rows of an append-only CSV, each with what it takes to believe it."""

import csv
import datetime
import io
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastkd.errors import InputError
from fastkd.files import locked, writable, write_file
from fastkd.reading import read_text


@dataclass(frozen=True)
class Machine:
    """What measured."""

    date: str  # UTC
    commit: str  # "+" at the end: with changes that are not committed
    device: str
    driver: str
    threads: int  # of the CPU
    python: str
    torch: str
    triton: str

    def where(self, kind: str) -> str:
        """In one line, without the date; kind: "cpu" or "cuda"."""
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        inside = threads if kind == "cpu" else f"driver {self.driver}"
        return f"{self.device}, {inside}, PyTorch {self.torch}, commit {self.commit}"


@dataclass(frozen=True)
class Row:
    """One provider on one shape in one direction. Empty figures were not measured."""

    operation: str
    shape: str
    dtype: str
    provider: str
    version: str  # of a provider that is not part of PyTorch or this package
    direction: str  # forward | backward | both | step
    status: str  # "ok", or why there are no figures
    clock: str = ""
    repeats: int = 0
    median_ms: float | None = None
    lower_ms: float | None = None  # quartiles
    upper_ms: float | None = None
    relative: float | None = None  # to the base it took turns with: median of the rounds' ratios
    bound_ms: float | None = None  # what the work takes at PyTorch's own rates
    bound_by: str = ""
    peak_bytes: int | None = None  # above the inputs, forward and backward
    allocated_bytes: int | None = None
    loss_difference: float | None = None  # to the reference, relative
    gradient_difference: float | None = None
    tokens_per_second: float | None = None  # of a training step

    @property
    def share(self) -> float | None:
        """The time at PyTorch's own rates as a share of the time taken."""
        if self.bound_ms is None or not self.median_ms:
            return None
        return self.bound_ms / self.median_ms


Kind = TypeVar("Kind", Machine, Row)
_NUMBERS = {"family": "cpu family", "model": "model"}  # by their names in /proc/cpuinfo
_RENAMED = {"by-hand": "plain"}  # providers, as older results have them
_COLUMNS = [field.name for field in (*fields(Machine), *fields(Row))]


def this_machine(device: torch.device) -> Machine:
    cuda = device.type == "cuda"
    return Machine(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        commit=_commit(),
        device=torch.cuda.get_device_name(device) if cuda else _processor(),
        driver=_driver() if cuda else platform.release(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_triton(),
    )


def append(file: Path, machine: Machine, rows: Iterable[Row]) -> None:
    """Adds rows at the end; InputError where `file` holds something else."""
    added = io.StringIO(newline="")
    writer = csv.DictWriter(added, _COLUMNS, lineterminator="\n")
    writer.writerows({**asdict(machine), **_short(asdict(row))} for row in rows)
    with writable(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(file.parent):  # else of two that add rows one's would be lost
            before = read_text(file) if file.exists() else ""
            if before and next(csv.reader([before.partition("\n")[0]]), []) != _COLUMNS:
                raise InputError(f"{file}: other columns than these results have; name another")
            content = (before or ",".join(_COLUMNS) + "\n") + added.getvalue()
            write_file(file, content.encode())


def read(file: Path) -> list[tuple[Machine, Row]]:
    lines = csv.DictReader(io.StringIO(read_text(file), newline=""))
    return [(_typed(Machine, line), _typed(Row, line)) for line in lines]


def latest(results: Iterable[tuple[Machine, Row]]) -> list[tuple[Machine, Row]]:
    """The last result for each machine, case, provider and direction, in the order of the file."""
    newest: dict[tuple[object, ...], tuple[Machine, Row]] = {}
    for machine, row in results:
        key = (machine.device, machine.threads, row.operation, row.shape, row.dtype, row.provider)
        newest[*key, row.direction] = (machine, row)
    return list(newest.values())


def _typed(kind: type[Kind], line: dict[str, str]) -> Kind:
    values: dict[str, Any] = {}
    for field in fields(kind):
        text = line[field.name]
        if field.type == "int" or field.type is int:
            values[field.name] = int(text)
        elif "None" in str(field.type):
            number = float if "float" in str(field.type) else int
            values[field.name] = number(text) if text else None
        else:
            values[field.name] = _RENAMED.get(text, text)
    return kind(**values)


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()
    }


@cache
def _commit() -> str:
    from fastkd import __file__ as inside

    here = Path(inside).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=10", "HEAD")
    if not commit:
        return "unknown"
    changed = git("status", "--porcelain", "--", "fastkd", "kernels")
    return commit + ("+" if changed else "")


def _processor() -> str:
    """Its name, with the numbers that tell apart generations which a hypervisor gives one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = []
    told = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
    if "model name" not in told:
        return platform.processor() or platform.machine()
    numbers = [f"{n} {told[key]}" for n, key in _NUMBERS.items() if key in told]
    return f"{told['model name']} ({', '.join(numbers)})" if numbers else told["model name"]


def _driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True).stdout.split()[0]
    except (OSError, IndexError):
        return torch.version.hip or "unknown"


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)
