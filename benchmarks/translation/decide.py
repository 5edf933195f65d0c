"""What a trial decides: differences between rows, and whether chance explains them.

    python -m benchmarks.translation.decide PLAN.yaml [--out FOLDER] [--rehearse N]

Reads what `python -m benchmarks.translation` has scored, and writes decided/NAME.csv beside it.
Translations must still lie beside the runs, with the BLEU of the CSV; where they do not,
differences are those of the CSV and nothing is said of chance. Nor is it told what holds before all
seeds of a row are scored.

The bootstrap draws sentences, and in each draw the seeds, both with replacement: a drawn difference
is the mean over the drawn seeds of BLEU(row) − BLEU(other) on the drawn sentences. The interval is
the middle 95 % of the draws. p is (n + 1) / (draws + 1), as sacrebleu has it, with n the draws that
lie at least as far from the draws' mean as the observed difference lies from 0; where a row is not
to be below another one, those that lie at least so far below the mean.

With two or three seeds p is optimistic: few that are drawn with replacement vary less than new ones
would. A row with one run alone has it in every pair, so that its own chance is not drawn at all.
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from sacrebleu.metrics.bleu import BLEU

from benchmarks.translation.plan import Decision, Plan, Trial, read_plan
from benchmarks.translation.rehearsal import rehearsed
from benchmarks.translation.results import Results
from benchmarks.translation.splits import Scored
from benchmarks.translation.trial import has_translations, read_translations
from fastkd import tables

DRAWS = 1000
LEVEL = 0.05
ROUNDED = 0.01  # BLEU that translations may differ from the results by
_ORDER = 4  # of BLEU
Counts = np.ndarray  # (sentences, 2 · 4 + 2): matches and n-grams by order, lengths of both


@dataclass(frozen=True)
class Verdict:
    """Of a decision: a difference in BLEU, or the share of a gap that is closed."""

    decision: Decision
    differences: dict[int, float]  # by seed
    seeds: tuple[int, int]  # how many both rows were scored with, of how many
    value: float
    interval: tuple[float, float] | None = None
    p: float | None = None  # of the lower tail alone where the decision is `not_below`

    @property
    def holds(self) -> bool | None:
        """None where seeds are missing, or chance cannot be told."""
        if self.seeds[0] < self.seeds[1]:
            return None
        if self.decision.share is not None:
            return self.value >= self.decision.share
        if self.p is None:
            return None
        if self.decision.not_below:
            return self.value >= 0 or self.p >= LEVEL
        return self.value > 0 and self.value >= self.decision.by and self.p < LEVEL


def decided(plan: Plan, results: Results) -> list[Verdict]:
    """Of those decisions whose rows were scored."""
    found = [
        _share(plan, results, each) if each.share is not None else _difference(plan, results, each)
        for each in plan.decides
    ]
    return [verdict for verdict in found if verdict is not None]


def bootstrap(
    pairs: Sequence[tuple[Counts, Counts]],
    below: bool = False,
    draws: int = DRAWS,
    seed: int = 12345,
) -> tuple[float, tuple[float, float], float]:
    """Mean difference over pairs, a seed each, of the same sentences; its interval, and p.

    below: p of a difference as far below 0, not on either side of it
    """
    random = np.random.default_rng(seed)
    sentences = len(pairs[0][0])
    value = float(np.mean([bleu(ours) - bleu(theirs) for ours, theirs in pairs]))
    drawn = np.empty(draws)
    for draw in range(draws):
        times = np.bincount(random.integers(sentences, size=sentences), minlength=sentences)
        by_seed = [bleu(ours, times) - bleu(theirs, times) for ours, theirs in pairs]
        drawn[draw] = np.mean([by_seed[n] for n in random.integers(len(pairs), size=len(pairs))])
    low, high = np.percentile(drawn, (2.5, 97.5))
    by_chance = drawn - drawn.mean()
    # As sacrebleu: one more draw, the observed one, is as far.
    farther = int(np.sum(by_chance <= value if below else np.abs(by_chance) >= abs(value)))
    return value, (float(low), float(high)), (farther + 1) / (draws + 1)


def counts_of(hypotheses: Sequence[str], references: Sequence[str]) -> Counts:
    """What BLEU is made of, sentence by sentence."""
    metric = BLEU(effective_order=True)
    scores = [
        metric.sentence_score(hypothesis, [reference])
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]
    return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores], dtype=np.int64)


def bleu(counts: Counts, times: np.ndarray | None = None) -> float:
    """Of the corpus of these sentences, each so many times."""
    sums = [int(n) for n in (counts.sum(0) if times is None else times @ counts)]
    parts = sums[:_ORDER], sums[_ORDER : 2 * _ORDER]
    return float(BLEU.compute_bleu(*parts, sums[-2], sums[-1], smooth_method="exp").score)


def _difference(plan: Plan, results: Results, decision: Decision) -> Verdict | None:
    on = str(Scored.read(decision.split))
    planned = _planned(plan, decision)
    pairs = [pair for pair in planned if all(results.of(trial, on) for trial in pair)]
    if not pairs:
        return None
    seeds = len(pairs), len(planned)
    differences = {
        ours.seed: _bleu(results, ours, on) - _bleu(results, theirs, on) for ours, theirs in pairs
    }
    value = float(np.mean(list(differences.values())))
    if not all(has_translations(trial, on) for pair in pairs for trial in pair):
        return Verdict(decision, differences, seeds, value)
    found = []
    for pair in pairs:
        lines = [read_translations(trial, on) for trial in pair]
        if lines[0][1] != lines[1][1]:
            raise SystemExit(f"{pair[0].folder} and {pair[1].folder}: other references of {on}")
        counts = counts_of(*lines[0]), counts_of(*lines[1])
        for trial, own in zip(pair, counts, strict=True):
            if abs(bleu(own) - _bleu(results, trial, on)) > ROUNDED:
                raise SystemExit(
                    f"{trial.folder}: its translations of {on} have BLEU {bleu(own):.3f}, in the "
                    f"results it is {_bleu(results, trial, on):.3f}; score the run again"
                )
        found.append(counts)
    value, interval, p = bootstrap(found, below=decision.not_below)
    return Verdict(decision, differences, seeds, value, interval, p)


def _share(plan: Plan, results: Results, decision: Decision) -> Verdict | None:
    """(row in one pass − other in one pass) / (other in the most passes − other in one pass).

    Over seeds the ratio of both means, so that no seed is left out; a seed's own share is empty
    where it has no gap. None where there is none in the mean.
    """
    one, most = (str(Scored(decision.split, count)) for count in (1, max(plan.passes)))
    planned = _planned(plan, decision)
    closed, gaps = {}, {}
    for ours, theirs in planned:
        if all(results.of(*each) for each in ((ours, one), (theirs, one), (theirs, most))):
            low = _bleu(results, theirs, one)
            closed[ours.seed] = _bleu(results, ours, one) - low
            gaps[ours.seed] = _bleu(results, theirs, most) - low
    if sum(gaps.values()) <= 0:
        return None
    shares = {seed: closed[seed] / gap for seed, gap in gaps.items() if gap > 0}
    value = sum(closed.values()) / sum(gaps.values())
    return Verdict(decision, shares, (len(gaps), len(planned)), value)


def _planned(plan: Plan, decision: Decision) -> list[tuple[Trial, Trial]]:
    """The runs of both rows, a pair for each seed that the row is to be run with."""
    row = plan.rows[decision.better]
    seeds = plan.seeds[:1] if row.teacher else row.seeds or plan.seeds
    ours = [Trial(plan, decision.better, seed) for seed in seeds]
    return [(trial, trial.of(decision.than)) for trial in ours]


def _bleu(results: Results, trial: Trial, on: str) -> float:
    line = results.of(trial, on)
    assert line is not None
    return float(line["bleu"])


def table(plan: Plan, verdicts: Sequence[Verdict]) -> tables.Table:
    header = ["better", "than", "on", *(f"seed {seed}" for seed in plan.seeds), "seeds"]
    header += ["mean", "95 % interval", "p", "asked", "holds"]
    remark = f"paired bootstrap over sentences, seeds drawn within, {DRAWS:,} draws"
    return tables.Table(plan.corpus, header, [_line(plan, each) for each in verdicts], [remark])


def _line(plan: Plan, verdict: Verdict) -> list[str]:
    decision, interval = verdict.decision, verdict.interval
    form = "+.2f" if decision.share is None else ".0%"
    seeds = [format(d, form) if (d := verdict.differences.get(s)) is not None else ""
             for s in plan.seeds]  # fmt: skip
    return [
        decision.better,
        decision.than,
        decision.split,
        *seeds,
        "{} of {}".format(*verdict.seeds),
        format(verdict.value, form),
        "" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}",
        "" if verdict.p is None else f"{verdict.p:.3f}",
        _asked(decision),
        {True: "yes", False: "no", None: "not told"}[verdict.holds],
    ]


def _asked(decision: Decision) -> str:
    if decision.share is not None:
        return f"{decision.share:.0%} of the gap"
    if decision.not_below:
        return "not below"
    return f"{decision.by:+.1f}" if decision.by else "above"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rehearse", type=int, metavar="UPDATES", help="of what was rehearsed")
    options = parser.parse_args(arguments)
    try:
        plan = read_plan(options.plan)
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"{options.plan}: {' '.join(str(error).split())}")
    if options.rehearse:
        plan, options.out = rehearsed(plan, options.rehearse)
    results = Results.of_plan(plan, options.out / f"{options.plan.stem}.csv")
    found = decided(plan, results)
    if not found:
        raise SystemExit(f"{options.plan}: nothing to decide yet; no decision has both its rows")
    shown = table(plan, found)
    tables.show([shown])
    file = options.out / "decided" / f"{options.plan.stem}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([shown.header, *shown.lines])


if __name__ == "__main__":
    main()
