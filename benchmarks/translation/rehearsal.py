"""A plan with a few updates of every row, so that nothing fails hours later."""

import dataclasses
from pathlib import Path

from benchmarks.translation.plan import Plan

LINES = 4  # of a split that are scored


def rehearsed(plan: Plan, updates: int) -> tuple[Plan, Path]:
    """The plan in a new folder beside its runs, and the folder of its results.

    What would translate the whole training text is left out: rows on the teacher's translations
    and from a cache, and what is decided of them.
    """
    folder = Path(f"{plan.runs}-rehearsal")
    fewer = (
        f"training.updates={updates}",
        f"training.validate_every={updates}",
        "training.bleu_sentences=2",
    )
    rows = {
        name: dataclasses.replace(row, set=(*row.set, *fewer), run=None)
        for name, row in plan.rows.items()
        if not row.distilled and not row.cached
    }
    decides = tuple(each for each in plan.decides if {each.better, each.than} <= rows.keys())
    short = dataclasses.replace(
        plan, runs=str(folder / "runs"), rows=rows, reused=(), decides=decides
    )
    return short, folder / "results"
