"""Trains and scores what a plan lists, and shows the table.

    python -m benchmarks.translation PLAN.yaml [--rows NAME …] [--seeds N …] [--jobs N] [--test]

Run it where the plan's corpus is found as data/<corpus>. It goes on where it was stopped. `--test`
also scores the test set; choose by dev before. Beside the plan's CSV it leaves a picture.
"""

import argparse
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from benchmarks.translation.picture import draw
from benchmarks.translation.plan import Plan, Trial, read_plan
from benchmarks.translation.results import Results, markdown, show
from benchmarks.translation.trial import prepare, result, train
from fastkd import tables
from fastkd.compare.table import of_verdicts


def main() -> None:
    arguments, plan = parsed()
    splits = ("dev", "test") if arguments.test else ("dev",)
    results = Results(arguments.out / f"{arguments.plan.stem}.csv")

    def finish(trial: Trial) -> None:
        """A run that fails is left out and told; the others go on."""
        missing = [split for split in splits if results.of(trial, split) is None]
        try:
            if missing:
                train(trial)
            for split in missing:
                results.add(result(trial, split))
        except subprocess.CalledProcessError as error:
            print(f"{trial.name}, seed {trial.seed}: exit status {error.returncode}")

    if not arguments.show:
        # Runs that share cores must not wait for each other's threads.
        threads = max((os.cpu_count() or 1) // arguments.jobs, 1)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        try:
            prepare(plan.teacher)
        except subprocess.CalledProcessError as error:
            raise SystemExit(error.returncode) from None  # which has told why
        finish(plan.teacher)
        trials = list(plan.trials(tuple(arguments.rows), tuple(arguments.seeds)))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for stage in plan.stages:
                list(pool.map(finish, [trial for trial in trials if trial.name in stage]))
    show(plan, results, splits)
    (arguments.out / f"{arguments.plan.stem}.md").write_text(markdown(plan, results, splits))
    picture = arguments.out / f"{arguments.plan.stem}-{splits[-1]}.png"
    if found := draw(plan, results, splits[-1], picture):
        tables.show([of_verdicts(found, splits[-1])])


def parsed() -> tuple[argparse.Namespace, Plan]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--rows", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[])
    parser.add_argument("--jobs", type=int, default=1, help="runs trained at the same time")
    parser.add_argument("--test", action="store_true", help="score the test set too")
    parser.add_argument("--show", action="store_true", help="train nothing, show what is there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    try:
        plan = read_plan(arguments.plan)
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"{arguments.plan}: {' '.join(str(error).split())}")
    unknown = [name for name in arguments.rows if name not in plan.rows]
    if unknown:
        parser.error(f"--rows: {unknown[0]!r} is none of {', '.join(plan.rows)}")
    return arguments, plan


if __name__ == "__main__":
    main()
