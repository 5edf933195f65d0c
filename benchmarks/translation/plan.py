"""What a table is made of: rows (methods), each a recipe with overrides, run with every seed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from benchmarks.translation.splits import Scored
from fastkd.config.load import load_config
from fastkd.config.tree import Config
from fastkd.config.types import AboveZero, NonNegative

STRICT = ConfigDict(extra="forbid")


@checked(frozen=True, kw_only=True, config=STRICT)
class Pieces:
    """A row that is trained `training.updates` at a time until dev BLEU gains no more."""

    gain: NonNegative  # over the best before it; a piece that gives less, or none, is one in vain
    patience: Annotated[int, Field(ge=1)] = 1  # so many in vain in a row are the last
    hours: AboveZero | None = None  # of training after which no other piece begins

    def ended(self, lines: Sequence[Mapping[str, str]]) -> bool:
        """lines: a run's results on dev, of each piece so far"""
        best, vain = -math.inf, 0
        by_updates = {int(line["updates"]): line for line in lines}
        for _, line in sorted(by_updates.items()):
            bleu = float(line["bleu"])
            vain = vain + 1 if bleu < best + self.gain or bleu <= best else 0
            best = max(best, bleu)
        if self.hours is not None and lines:
            spent = max(float(line["training_seconds"]) for line in lines)
            if spent >= 3600 * self.hours:
                return True
        return vain >= self.patience


@checked(frozen=True, kw_only=True, config=STRICT)
class Decision:
    """What a trial is decided by: a row that is to be better than another one, in BLEU.

    by: the least mean difference over the seeds, which must also be above 0 and told from chance
        (p < 0.05)
    not_below: instead, holds unless the row is worse, told from chance (p < 0.05, one tail)
    share: instead, the least share of the other row's gap between one pass and the most that the
        row closes in one pass
    """

    better: str
    than: str
    split: str  # as `splits.Scored` is written
    by: NonNegative = 0.0
    not_below: bool = False
    share: AboveZero | None = None

    def refuse(self, plan: "Plan") -> None:
        """Raises ValueError where it cannot be decided of this plan."""
        for other in {self.better, self.than} - set(plan.rows):
            raise ValueError(f"expected names of rows, not {other!r}")
        on = Scored.read(self.split)
        if self.not_below and self.by:
            raise ValueError("expected one of by and not_below")
        if self.share is not None:
            if self.by or self.not_below:
                raise ValueError("expected share without by and not_below")
            if on.passes is not None or not plan.passes:
                raise ValueError("expected share of a split as it is, in a plan with passes")


@checked(frozen=True, kw_only=True, config=STRICT)
class Row:
    """A line of the table."""

    recipe: str  # of the plan's recipes
    set: tuple[str, ...] = ()  # key.path=value
    distilled: bool = False  # trained on the teacher's translations
    cached: Annotated[int, Field(ge=0)] = 0  # pieces a position of a cache in the teacher's place
    teacher: bool = False  # of all other rows; trained with the first seed alone
    begin: str | None = None  # the row whose last checkpoint of the same seed it begins with
    learned: bool = False  # with what that row's losses learned
    taught: str | None = None  # the row that is its teacher; None: the plan's teacher
    seeds: tuple[int, ...] | None = None  # of the plan's; None: all
    pieces: Pieces | None = None
    run: str | None = None  # folder, where it is not one of the plan's; of one seed

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(name for name in (self.begin, self.taught) if name is not None)


@checked(frozen=True, kw_only=True, config=STRICT)
class Plan:
    """A plan file; paths are relative to the current folder."""

    corpus: str
    recipes: str
    runs: str  # folder of all runs
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    baseline: str  # the row that others are compared with
    set: tuple[str, ...] = ()  # key.path=value, of all rows; a row's own come after
    checkpoint: Literal["best", "last"] = "best"  # that is scored; always the best of the teacher
    passes: tuple[Annotated[int, Field(ge=1)], ...] = ()  # at which masked rows are scored
    sealed: bool = False  # the test set is scored by halves, and the second one last
    reused: tuple[str, ...] = ()  # plans whose results also count as those of rows of that name
    rows: dict[str, Row] = field(default_factory=dict)
    decides: tuple[Decision, ...] = ()

    @property
    def stages(self) -> Iterator[list[str]]:
        """The rows that need no other but the teacher, then those that need these, and so on."""
        left = [name for name, row in self.rows.items() if not row.teacher]
        while left:
            stage = [name for name in left if not self.rows[name].needs & set(left)]
            yield stage
            left = [name for name in left if name not in stage]

    @property
    def teacher(self) -> "Trial":
        return next(
            Trial(self, name, self.seeds[0]) for name, row in self.rows.items() if row.teacher
        )

    def labels(self, splits: Sequence[str]) -> list[str]:
        """The columns of the table of these splits."""
        plain = [str(Scored(split)) for split in splits]
        passes = [str(Scored(split, count)) for split in splits for count in self.passes]
        return plain + passes

    def trials(self, rows: tuple[str, ...] = (), seeds: tuple[int, ...] = ()) -> Iterator["Trial"]:
        """The first seed of every row comes first."""
        for seed in seeds or self.seeds:
            for name, row in self.rows.items():
                run = row.seeds is None or seed in row.seeds
                if run and not row.teacher and (not rows or name in rows):
                    yield Trial(self, name, seed)


@dataclass(frozen=True)
class Trial:
    """One run of the table."""

    plan: Plan
    name: str
    seed: int

    @property
    def row(self) -> Row:
        return self.plan.rows[self.name]

    @property
    def folder(self) -> Path:
        if self.row.run is not None:
            return Path(self.row.run)
        return Path(self.plan.runs) / f"{self.name.replace(' ', '_')}-{self.seed}"

    @property
    def recipe(self) -> str:
        return f"{self.plan.recipes}/{self.row.recipe}"

    @property
    def distilled_corpus(self) -> Path:
        return Path(self.plan.runs) / "distilled"

    @property
    def cache(self) -> Path:
        return Path(self.plan.runs) / f"cache-{self.row.cached}"

    def of(self, name: str) -> "Trial":
        """Another row's run with the same seed, or its only one: the teacher's, and what was not
        trained with this seed."""
        row = self.plan.rows[name]
        if row.teacher:
            return self.plan.teacher
        seed = row.seeds[0] if row.seeds and self.seed not in row.seeds else self.seed
        return replace(self, name=name, seed=seed)

    def scored(self, split: str) -> list[Scored]:
        """What the run is scored on: a masked model at each of the plan's numbers of passes."""
        if self.plan.passes and self.config.model.kind == "cmlm":
            return [Scored(split, passes) for passes in self.plan.passes]
        return [Scored(split)]

    @property
    def config(self) -> Config:
        has_teacher = load_config(self.recipe).teacher is not None
        return load_config(self.recipe, self.overrides(has_teacher))

    @property
    def needs(self) -> list["Trial"]:
        """The runs whose checkpoints it takes."""
        names = [self.row.begin, self.row.taught]
        taught = load_config(self.recipe).teacher is not None and self.row.taught is None
        found = [self.of(name) for name in names if name is not None]
        if not self.row.teacher and (taught or self.row.distilled or self.row.cached):
            found.append(self.plan.teacher)
        return found

    @property
    def checkpoint(self) -> str:
        return "best" if self.row.teacher else self.plan.checkpoint

    def overrides(self, has_teacher: bool) -> list[str]:
        """Of the recipe; `has_teacher`: its config names one."""
        found = [f"run={self.folder}", f"training.seed={self.seed}"]
        if self.row.begin is not None:
            found += [f"start.run={self.of(self.row.begin).folder}", "start.checkpoint=last"]
            found += ["start.learned=true"] if self.row.learned else []
        found += [*self.plan.set, *self.row.set]
        if self.row.cached:
            found += ["teacher.run=null", f"teacher.cache={self.cache}"]
        elif has_teacher:
            teacher = self.of(self.row.taught) if self.row.taught else self.plan.teacher
            found.append(f"teacher.run={teacher.folder}")
        if self.row.distilled:
            corpus = self.distilled_corpus
            found += [
                f"data.train={corpus / 'train'}",
                f"data.prepared={corpus / 'prepared'}",
                f"tokenizer={self.plan.teacher.folder}",
            ]
        return found


def read_plan(path: Path) -> Plan:
    plan = TypeAdapter(Plan).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    above: set[str] = set()
    for name, row in plan.rows.items():
        for other in row.needs - above:
            raise ValueError(f"rows.{name}: expected the name of a row above it, not {other!r}")
        above.add(name)
        if row.seeds is not None and not set(row.seeds) <= set(plan.seeds):
            raise ValueError(f"rows.{name}.seeds: expected some of {list(plan.seeds)}")
        if row.learned and row.begin is None:
            raise ValueError(f"rows.{name}.learned: expected begin beside it")
    for place, decision in enumerate(plan.decides):
        try:
            decision.refuse(plan)
        except ValueError as error:
            raise ValueError(f"decides.{place}: {error}") from None
    return plan
