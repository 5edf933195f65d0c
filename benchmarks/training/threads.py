"""Training beside other work: how long two runs take at once, by how their threads wait.

    python -m benchmarks.training.threads FOLDER [--updates 80] [--rounds 8] [--ways brief spinning]
    python -m benchmarks.training.threads --table benchmarks/results/threads.csv

Trains the demo's student on as many threads as there are cores, once alone and twice at once, with
what `fastkd` sets (`brief`), with OpenMP's own waiting (`spinning`) and with
`OMP_WAIT_POLICY=passive`. Every other round has the ways in the opposite order, so that a machine
that grows slower or faster favours none. Start-up is included; 70 seconds a round on two idle
cores, and nothing else may run meanwhile. Each time is a row of FOLDER/threads.csv as soon as it is
known. The table is of medians over the rounds, with the quartiles in brackets:

- `alone`: seconds of a run;
- `× spinning`: the median of these over that of spinning ones;
- `at once`: the time until both of two runs are done, over twice that of a run alone in the same
  round: above 1 they hold each other up.
"""

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from fastkd.bench.record import Machine, this_machine
from fastkd.config.load import dump_config
from fastkd.demo.run import demo_config, write_demo_corpus

WAYS = {
    "brief": {},
    "spinning": {"GOMP_SPINCOUNT": "300000"},  # what GNU's OpenMP spins by itself
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
SETTINGS = ("bleu_sentences=0", "validate_every=100000", "save_every=100000")


@dataclass(frozen=True)
class Time:
    """Of so many runs that begin together, until all are done."""

    round: int
    way: str
    runs: int
    updates: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--updates", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument("--table", type=Path, help="of results that are there already")
    arguments = parser.parse_args()
    if (arguments.folder is None) == (arguments.table is None):
        parser.error("expected FOLDER or --table")
    if arguments.folder is not None:
        measure(arguments.folder, arguments.ways, arguments.rounds, arguments.updates)
    print(table(arguments.table or arguments.folder / "threads.csv"))


def measure(folder: Path, ways: Sequence[str], rounds: int, updates: int) -> None:
    """Writes `threads.csv` in the folder, a row as soon as it is known."""
    write_demo_corpus(folder, print)
    config = folder / "student.yaml"
    config.write_text(dump_config(demo_config(folder, "student")), encoding="utf-8")
    machine = this_machine(torch.device("cpu"))
    columns = [field.name for kind in (Machine, Time) for field in fields(kind)]
    with open(folder / "threads.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, columns, lineterminator="\n")
        rows.writeheader()
        for round_ in range(1, rounds + 1):
            for runs in (1, 2):
                for way in ways if round_ % 2 else reversed(ways):
                    seconds = round(_seconds(config, way, runs, updates), 3)
                    found = Time(round_, way, runs, updates, seconds)
                    rows.writerow({**asdict(machine), **asdict(found)})
                    file.flush()
                    print(f"round {round_}: {way}, {runs}: {seconds:.2f} s", flush=True)


def table(file: Path) -> str:
    """Medians and quartiles of what was measured."""
    with open(file, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    seconds = {(r["way"], int(r["runs"]), int(r["round"])): float(r["seconds"]) for r in rows}
    ways = list(dict.fromkeys(row["way"] for row in rows))
    rounds = sorted({number for *_, number in seconds})
    rounds = [n for n in rounds if all((way, k, n) in seconds for way in ways for k in (1, 2))]
    alone = {way: [seconds[way, 1, number] for number in rounds] for way in ways}
    twice = {way: [seconds[way, 2, number] for number in rounds] for way in ways}
    text = [
        f"{rows[0]['device']}, {rows[0]['threads']} threads, PyTorch {rows[0]['torch']}, commit"
        f" {rows[0]['commit']}; {len(rounds)} rounds of {rows[0]['updates']} updates",
        "",
        "| threads wait | alone, s | × spinning | two at once, × one after the other |",
        "| --- | ---: | ---: | ---: |",
    ]
    for way in ways:
        beside = [both / (2 * one) for both, one in zip(twice[way], alone[way], strict=True)]
        over = "–"
        if "spinning" in alone:
            medians = [statistics.median(alone[name]) for name in (way, "spinning")]
            over = f"{medians[0] / medians[1]:.2f}"
        text.append(f"| {way} | {_spread(alone[way])} | {over} | {_spread(beside)} |")
    return "\n".join(text)


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.2f} ({lower:.2f}–{upper:.2f})"


def _seconds(config: Path, way: str, runs: int, updates: int) -> float:
    """Until all of so many runs that begin together are done."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    settings = [f"training.{setting}" for setting in (*SETTINGS, f"updates={updates}")]
    folders = [config.parent / f"threads-{number}" for number in range(runs)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "fastkd", "train", str(config), f"run={folder}", *settings],
            env={**kept, **WAYS[way]},
            stderr=subprocess.DEVNULL,
        )
        for folder in folders
    ]
    statuses = [process.wait() for process in processes]
    seconds = time.perf_counter() - start
    if any(statuses):
        raise SystemExit(f"{config}: training ended with status {max(statuses, key=abs)}")
    return seconds


if __name__ == "__main__":
    main()
