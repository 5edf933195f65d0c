"""Training on the invented language that is killed at random moments, and the memory it takes.

    python -m benchmarks.training.soak FOLDER [--minutes 120] [--seed 1]
    python -m benchmarks.training.soak FOLDER --draw

A teacher and then its student each train for half of the time, by `fastkd train` on one thread. A
process lives for 10 seconds to half an hour and is then killed, or asked to end by SIGTERM one time
in four; the next one goes on. Leaves `soak.csv`, a row every five seconds, and `soak.png` in
FOLDER, and ends with an error where a process ended by itself, a run went back behind a checkpoint,
or its log is not what an undisturbed run would have written: each logged update once, and every
loss finite. `--draw` draws what there is of a soak so far.

The table gives the slope of each process's memory over its updates, by least squares with its
standard error, from update 1,000 of the process on. Until then oneDNN, PyTorch's library of matrix
products on a CPU, still fills its cache of 1,024 products, one for each shape that it has met
(ONEDNN_PRIMITIVE_CACHE_CAPACITY; about a third of a MiB each).
"""

import argparse
import csv
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import psutil

from fastkd.config.load import dump_config
from fastkd.demo.run import demo_config, write_demo_corpus
from fastkd.palette import METHODS
from fastkd.runs.folder import RunFolder
from fastkd.train.log import read_log

RECIPES = {"teacher": "teacher", "a2d": "A2D"}  # and what their colours are of
LOG_EVERY = 5
SETTINGS = {
    "updates": 1_000_000,
    "batch_tokens": 1024,
    "save_every": 25,
    "validate_every": 100,
    "log_every": LOG_EVERY,
    "keep_last": 3,
    "bleu_sentences": 100,
    "ema": 0.99,
}
LIVES = 10, 1800  # seconds
EVERY = 5  # seconds between samples
SETTLED = 1000  # updates of a process, before its slope is taken over at least half as many


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment."""

    seconds: float  # since the beginning
    recipe: str
    process: int
    resident_mib: float
    update: int  # of the newest checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draw", action="store_true", help="draw a soak that is there")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if arguments.draw:
        samples = _read(folder / "soak.csv")
        _draw(samples, folder / "soak.png")
        _report(samples)
        return
    write_demo_corpus(folder, print)
    moments, begin, samples = random.Random(arguments.seed), time.monotonic(), list[Sample]()
    share = arguments.minutes * 60 / len(RECIPES)
    with open(folder / "soak.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Sample)])
        table.writeheader()
        for number, recipe in enumerate(RECIPES):
            for sample in _soak(folder, recipe, begin, begin + share * (number + 1), moments):
                samples.append(sample)
                table.writerow(asdict(sample))
                file.flush()
            _check_log(folder / recipe)
    _draw(samples, folder / "soak.png")
    _report(samples)


def _soak(
    folder: Path, recipe: str, begin: float, until: float, moments: random.Random
) -> Iterator[Sample]:
    """Trains by a recipe until a time, in processes that are ended again and again."""
    config = folder / f"{recipe}.yaml"
    config.write_text(dump_config(demo_config(folder, recipe)), encoding="utf-8")
    settings = [f"training.{key}={value}" for key, value in SETTINGS.items()]
    command = [sys.executable, "-m", "fastkd", "train", str(config), *settings]
    run, number, reached = RunFolder(folder / recipe), 0, 0
    while time.monotonic() < until:
        shortest, longest = LIVES
        life = shortest * (longest / shortest) ** moments.random()
        last = time.monotonic() + life > until
        ending = signal.SIGTERM if last or moments.random() < 0.25 else signal.SIGKILL
        with open(folder / f"{recipe}.log", "ab") as log:
            process = subprocess.Popen(
                command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        end = min(until, time.monotonic() + life)
        while time.monotonic() < end:
            time.sleep(EVERY)
            if process.poll() is not None:
                raise SystemExit(f"{config}: ended by itself with status {process.returncode}")
            resident = psutil.Process(process.pid).memory_info().rss / 2**20
            update = max((int(path.name) for path in run.checkpoints()), default=0)
            if update < reached:
                raise SystemExit(f"{config}: went back from update {reached} to {update}")
            reached = update
            yield Sample(
                round(time.monotonic() - begin, 1), recipe, number, round(resident, 1), update
            )
        process.send_signal(ending)
        status = process.wait()
        # A process that has not come to training yet ends by SIGTERM itself.
        if status not in (0, 128 + ending, -ending):
            raise SystemExit(f"{config}: status {status} after {ending.name}")
        number += 1


def _check_log(run: Path) -> None:
    """Every logged update is there once and in order, and its figures are finite."""
    records = read_log(run / "log.jsonl")
    steps = [record["step"] for record in records if "loss" in record]
    if not steps or steps != [LOG_EVERY * (count + 1) for count in range(len(steps))]:
        raise SystemExit(f"{run}: its log lacks updates, or has some twice")
    for record in records:
        if not all(math.isfinite(value) for value in record.values()):
            raise SystemExit(f"{run}: not finite: {record}")


def _read(file: Path) -> list[Sample]:
    with open(file, newline="", encoding="utf-8") as rows:
        return [
            Sample(
                float(row["seconds"]),
                row["recipe"],
                int(row["process"]),
                float(row["resident_mib"]),
                int(row["update"]),
            )
            for row in csv.DictReader(rows)
        ]


def _draw(samples: list[Sample], file: Path) -> None:
    """Resident memory of each process, over time and over its updates, and how far runs came."""
    figure, axes = plt.subplot_mosaic(
        [["time", "life"], ["update", "life"]], figsize=(14, 6), layout="constrained"
    )
    for recipe, kind in RECIPES.items():
        color = METHODS[kind]
        label: str | None = recipe
        for life in _lives([sample for sample in samples if sample.recipe == recipe]):
            minutes = [sample.seconds / 60 for sample in life]
            resident = [sample.resident_mib for sample in life]
            axes["time"].plot(minutes, resident, color=color, label=label)
            axes["update"].plot(minutes, [s.update for s in life], color=color)
            axes["life"].plot(_updates(life), resident, color=color, alpha=0.7)
            for name in ("time", "update"):
                axes[name].axvline(minutes[-1], color="0.8", linewidth=0.8, zorder=0)
            label = None
    axes["time"].set(ylabel="resident memory (MiB)", ylim=(0, None))
    axes["time"].legend(loc="lower right")
    axes["time"].sharex(axes["update"])
    axes["update"].set(xlabel="minutes; a grey line ends a process", ylabel="newest checkpoint")
    axes["life"].set(xlabel="updates of the process", ylabel="resident memory (MiB)")
    axes["life"].set_ylim(0, None)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _report(samples: list[Sample]) -> None:
    print(f"{'run':10}{'process':>8}{'seconds':>9}{'updates':>9}{'MiB':>8}  MiB per 1,000 updates")
    for life in _lives(samples):
        last, updates = life[-1], _updates(life)
        print(
            f"{last.recipe:10}{last.process:8}{last.seconds - life[0].seconds:9.0f}"
            f"{updates[-1]:9}{last.resident_mib:8.0f}  {_slope(life)}"
        )


def _slope(life: list[Sample]) -> str:
    """How much memory grows with updates, and the standard error, where a process lived on."""
    settled = [(u, s.resident_mib) for u, s in zip(_updates(life), life, strict=True)]
    settled = [(update, mib) for update, mib in settled if update >= SETTLED]
    if not settled or settled[-1][0] < 1.5 * SETTLED:
        return "-"
    updates, resident = np.array(settled).T
    (slope, _), covariance = np.polyfit(updates / 1000, resident, 1, cov=True)
    return f"{slope:+.1f} ± {math.sqrt(covariance[0, 0]):.1f}"


def _updates(life: list[Sample]) -> list[int]:
    """Updates since the checkpoint that a process began with."""
    return [sample.update - life[0].update for sample in life]


def _lives(samples: list[Sample]) -> list[list[Sample]]:
    """The samples of each process."""
    return [list(life) for _, life in groupby(samples, lambda s: (s.recipe, s.process))]


if __name__ == "__main__":
    main()
