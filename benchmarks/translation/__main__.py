"""Trains and scores what a plan lists, and shows the table.

    python -m benchmarks.translation PLAN.yaml [--rows NAME …] [--seeds N …] [--jobs N]
        [--on SPLIT …] [--hours H] [--rehearse N]

Run it where the plan's corpus is found as data/<corpus>. It goes on where it was stopped, and
`--hours` stops it. `--on` says what is scored beside dev: test, or of a plan whose test set is
sealed test-open, and test-sealed when every other run is there. Choose by dev before. Beside the
plan's CSV it leaves a picture. `--rehearse` does all that with so many updates of each row and a
few sentences, in a folder of its own.
"""

import argparse
import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from benchmarks.translation.picture import draw
from benchmarks.translation.plan import Plan, Trial, read_plan
from benchmarks.translation.rehearsal import LINES, rehearsed
from benchmarks.translation.results import Results, markdown, show
from benchmarks.translation.splits import SPLITS
from benchmarks.translation.trial import Unfinished, prepare, result, train
from fastkd import tables
from fastkd.compare.table import of_verdicts
from fastkd.runs.folder import RunFolder


class Work:
    """One call: what is trained and scored, and where its lines go."""

    def __init__(self, plan: Plan, results: Results, on: tuple[str, ...], most: int | None):
        self.plan, self.results, self.on, self.most = plan, results, on, most
        self.until: float | None = None
        self._restoring = threading.RLock()

    def finish(self, trial: Trial) -> None:
        """A run that fails is left out and told; the others go on."""
        try:
            self._train(trial)
            for split in self.on[1:]:
                if any(self.results.of(trial, str(on)) is None for on in trial.scored(split)):
                    self._restore([trial])
                    self._score(trial, split)
        except Unfinished:
            print(f"{trial.name}, seed {trial.seed}: stopped; the same command goes on")
        except subprocess.CalledProcessError as error:
            print(f"{trial.name}, seed {trial.seed}: exit status {error.returncode}")

    def _train(self, trial: Trial) -> None:
        """Until its last piece is trained and scored on dev; nothing where that is known."""
        dev, size = str(trial.scored("dev")[-1]), trial.config.training.updates
        while not ended(trial, self.results):
            self._restore(trial.needs)
            done = len({line["updates"] for line in self.results.all_of(trial, dev)})
            train(trial, size * (done + 1) if trial.row.pieces else None, self.until)
            self._score(trial, "dev", anew=True)
        self._score(trial, "dev")

    def _restore(self, needed: list[Trial]) -> None:
        """Runs whose results are here and whose checkpoints are not, for those that need these."""
        for trial in needed:
            with self._restoring:
                self._train(trial)
                if RunFolder(trial.folder).checkpoints():
                    continue
                self._restore(trial.needs)
                known = self.results.all_of(trial, str(trial.scored("dev")[-1]))
                train(trial, max(int(line["updates"]) for line in known), self.until)

    def _score(self, trial: Trial, split: str, anew: bool = False) -> None:
        for on in trial.scored(split):
            if anew or self.results.of(trial, str(on)) is None:
                self.results.add(result(trial, on, self.most))


def main() -> None:
    arguments, plan = parsed()
    if arguments.rehearse:
        plan, arguments.out = rehearsed(plan, arguments.rehearse)
        shutil.rmtree(arguments.out.parent, ignore_errors=True)
    results = Results.of_plan(plan, arguments.out / f"{arguments.plan.stem}.csv")
    work = Work(plan, results, tuple(arguments.on), LINES if arguments.rehearse else None)
    if "test-sealed" in arguments.on and not arguments.rehearse:
        refuse_unless_ended(plan, results)
    if arguments.hours:
        work.until = time.monotonic() + 3600 * arguments.hours
    if not arguments.show:
        # Runs that share cores must not wait for each other's threads.
        threads = max((os.cpu_count() or 1) // arguments.jobs, 1)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        try:
            prepare(plan.teacher)
        except subprocess.CalledProcessError as error:
            raise SystemExit(error.returncode) from None  # which has told why
        trials = list(plan.trials(tuple(arguments.rows), tuple(arguments.seeds)))
        work.finish(plan.teacher)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for stage in plan.stages:
                list(pool.map(work.finish, [trial for trial in trials if trial.name in stage]))
    # Others may have added lines to the file meanwhile.
    report(plan, Results.of_plan(plan, results.file), arguments)


def report(plan: Plan, results: Results, arguments: argparse.Namespace) -> None:
    splits = plan.labels(arguments.on)
    show(plan, results, splits)
    (arguments.out / f"{arguments.plan.stem}.md").write_text(markdown(plan, results, splits))
    picture = arguments.out / f"{arguments.plan.stem}-{arguments.on[-1]}.png"
    if found := draw(plan, results, splits[-1], picture):
        tables.show([of_verdicts(found, splits[-1])])


def ended(trial: Trial, results: Results) -> bool:
    """Whether the last piece of a run was scored on dev."""
    found, pieces = results.all_of(trial, str(trial.scored("dev")[-1])), trial.row.pieces
    return pieces.ended(found) if pieces else bool(found)


def refuse_unless_ended(plan: Plan, results: Results) -> None:
    """The sealed half is read when there is nothing left that it could be chosen by."""
    for trial in plan.trials():
        if not ended(trial, results):
            raise SystemExit(
                f"test-sealed: {trial.name}, seed {trial.seed}: has not ended; the sealed half is "
                "scored when every run of the plan has"
            )


def parsed() -> tuple[argparse.Namespace, Plan]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--rows", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[])
    parser.add_argument("--jobs", type=int, default=1, help="runs trained at the same time")
    parser.add_argument("--on", nargs="+", default=[], choices=SPLITS, help="scored beside dev")
    parser.add_argument("--test", action="store_true", help="as --on test")
    parser.add_argument("--hours", type=float, help="stop the training then; a later call goes on")
    parser.add_argument("--rehearse", type=int, metavar="UPDATES", help="every row, so many each")
    parser.add_argument("--show", action="store_true", help="train nothing, show what is there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    try:
        plan = read_plan(arguments.plan)
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"{arguments.plan}: {' '.join(str(error).split())}")
    arguments.on = ["dev", *arguments.on, *(["test"] if arguments.test else [])]
    if plan.sealed and "test" in arguments.on:
        parser.error("--on test: half of this plan's test set is sealed; expected test-open")
    unknown = [name for name in arguments.rows if name not in plan.rows]
    if unknown:
        parser.error(f"--rows: {unknown[0]!r} is none of {', '.join(plan.rows)}")
    return arguments, plan


if __name__ == "__main__":
    main()
