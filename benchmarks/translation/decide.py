"""What a trial decides: differences between rows, and whether chance explains them.

    python -m benchmarks.translation.decide PLAN.yaml [--out FOLDER] [--rehearse N]

Reads what `python -m benchmarks.translation` has scored, and writes decided/NAME.csv beside it.
Translations must still lie beside the runs; where they do not, differences are those of the CSV and
nothing is said of chance.

The bootstrap draws sentences, and in each draw the seeds, both with replacement: a difference is
the mean over the drawn seeds of BLEU(row) − BLEU(other) on the drawn sentences. Then the interval
is that of its middle 95 %, and p the share of draws that lie farther from their mean than that mean
from 0, as sacrebleu has it.
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
_ORDER = 4  # of BLEU
Counts = np.ndarray  # (sentences, 2 · 4 + 2): matches and n-grams by order, lengths of both


@dataclass(frozen=True)
class Verdict:
    """Of a decision: a difference in BLEU, or the share of a gap that is closed."""

    decision: Decision
    differences: dict[int, float]  # by seed
    value: float
    interval: tuple[float, float] | None = None
    p: float | None = None

    @property
    def holds(self) -> bool | None:
        """None where chance cannot be told."""
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
    pairs: Sequence[tuple[Counts, Counts]], draws: int = DRAWS, seed: int = 12345
) -> tuple[float, tuple[float, float], float]:
    """Mean difference over pairs, a seed each, of the same sentences; its interval, and p."""
    random = np.random.default_rng(seed)
    sentences = len(pairs[0][0])
    value = float(np.mean([bleu(ours) - bleu(theirs) for ours, theirs in pairs]))
    drawn = np.empty(draws)
    for draw in range(draws):
        times = np.bincount(random.integers(sentences, size=sentences), minlength=sentences)
        by_seed = [bleu(ours, times) - bleu(theirs, times) for ours, theirs in pairs]
        drawn[draw] = np.mean([by_seed[n] for n in random.integers(len(pairs), size=len(pairs))])
    low, high = np.percentile(drawn, (2.5, 97.5))
    # As sacrebleu: one more draw, the observed one, is as far.
    farther = int(np.sum(np.abs(drawn - drawn.mean()) >= abs(value)))
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
    pairs = _pairs(plan, results, decision, on)
    if not pairs:
        return None
    differences = {
        ours.seed: _bleu(results, ours, on) - _bleu(results, theirs, on) for ours, theirs in pairs
    }
    value = float(np.mean(list(differences.values())))
    if not all(has_translations(trial, on) for pair in pairs for trial in pair):
        return Verdict(decision, differences, value)
    found = []
    for pair in pairs:
        lines = [read_translations(trial, on) for trial in pair]
        if lines[0][1] != lines[1][1]:
            raise SystemExit(f"{pair[0].folder} and {pair[1].folder}: other references of {on}")
        found.append((counts_of(*lines[0]), counts_of(*lines[1])))
    value, interval, p = bootstrap(found)
    return Verdict(decision, differences, value, interval, p)


def _share(plan: Plan, results: Results, decision: Decision) -> Verdict | None:
    """(row in one pass − other in one pass) / (other in the most passes − other in one pass)."""
    one, most = (Scored(decision.split, count) for count in (1, max(plan.passes)))
    shares = {}
    for ours, theirs in _pairs(plan, results, decision, str(one)):
        if results.of(theirs, str(most)):
            low, high = (_bleu(results, theirs, str(on)) for on in (one, most))
            if high > low:  # else there is no gap to close
                shares[ours.seed] = (_bleu(results, ours, str(one)) - low) / (high - low)
    return Verdict(decision, shares, float(np.mean(list(shares.values())))) if shares else None


def _pairs(plan: Plan, results: Results, decision: Decision, on: str) -> list[tuple[Trial, Trial]]:
    """The runs of both rows, by the seeds that both were scored with."""
    row = plan.rows[decision.better]
    ours = [Trial(plan, decision.better, seed) for seed in row.seeds or plan.seeds]
    pairs = [(trial, trial.of(decision.than)) for trial in ours]
    return [pair for pair in pairs if all(results.of(trial, on) for trial in pair)]


def _bleu(results: Results, trial: Trial, on: str) -> float:
    line = results.of(trial, on)
    assert line is not None
    return float(line["bleu"])


def table(plan: Plan, verdicts: Sequence[Verdict]) -> tables.Table:
    header = ["better", "than", "on", *(f"seed {seed}" for seed in plan.seeds), "mean"]
    header += ["95 % interval", "p", "asked", "holds"]
    remark = "paired bootstrap over sentences, seeds drawn within, 1,000 draws"
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
