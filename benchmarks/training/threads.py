"""Training beside other work: how long two runs take at once, by how their threads wait.

    python -m benchmarks.training.threads FOLDER [--updates 80] [--rounds 3]

Trains the demo's student on as many threads as there are cores, once alone and twice at once, with
what `fastkd` sets (`brief`), with OpenMP's own waiting (`spinning`) and with
`OMP_WAIT_POLICY=passive`, round by round in turns. Start-up is included; about four minutes in
all. Prints the medians over the rounds of

- `alone`: the time of a run over that of a spinning one in the same round;
- `at once`: the time until both of two runs are done, over that of one after the other, which is
  twice that of a run alone in the same round.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from fastkd.config.load import dump_config
from fastkd.demo.run import demo_config, write_demo_corpus

WAYS = {
    "brief": {},
    "spinning": {"GOMP_SPINCOUNT": "300000"},  # what GNU's OpenMP spins by itself
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
SETTINGS = ("bleu_sentences=0", "validate_every=100000", "save_every=100000")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--updates", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    write_demo_corpus(folder, print)
    config = folder / "student.yaml"
    config.write_text(dump_config(demo_config(folder, "student")), encoding="utf-8")
    alone: dict[str, list[float]] = {way: [] for way in WAYS}
    at_once: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_ in range(arguments.rounds):
        once = {way: _seconds(config, way, 1, arguments.updates) for way in WAYS}
        for way in WAYS:
            both = _seconds(config, way, 2, arguments.updates)
            alone[way].append(once[way] / once["spinning"])
            at_once[way].append(both / (2 * once[way]))
            print(f"round {round_ + 1}: {way}: {alone[way][-1]:.2f} {at_once[way][-1]:.2f}")
    print("| threads wait | alone, × spinning | two at once, × one after the other |")
    print("| --- | ---: | ---: |")
    for way in WAYS:
        figures = (statistics.median(ratios[way]) for ratios in (alone, at_once))
        print(f"| {way} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")


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
