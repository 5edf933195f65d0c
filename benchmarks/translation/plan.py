"""What a table is made of: rows (methods), each a recipe with overrides, run with every seed."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

STRICT = ConfigDict(extra="forbid")


@checked(frozen=True, kw_only=True, config=STRICT)
class Row:
    """A line of the table."""

    recipe: str  # of the plan's recipes
    set: tuple[str, ...] = ()  # key.path=value
    distilled: bool = False  # trained on the teacher's translations
    cached: Annotated[int, Field(ge=0)] = 0  # pieces a position of a cache in the teacher's place
    teacher: bool = False  # of all other rows; trained with the first seed alone
    begin: str | None = None  # the row whose last checkpoint of the same seed it begins with
    taught: str | None = None  # the row that is its teacher; None: the plan's teacher
    seeds: tuple[int, ...] | None = None  # of the plan's; None: all

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
    rows: dict[str, Row] = field(default_factory=dict)

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

    def _of(self, name: str) -> "Trial":
        """Another row's run with the same seed; the teacher has but one."""
        return self.plan.teacher if self.plan.rows[name].teacher else replace(self, name=name)

    def overrides(self, has_teacher: bool) -> list[str]:
        """Of the recipe; `has_teacher`: its config names one."""
        found = [f"run={self.folder}", f"training.seed={self.seed}", *self.plan.set, *self.row.set]
        if self.row.begin is not None:
            found += [f"start.run={self._of(self.row.begin).folder}", "start.checkpoint=last"]
        if self.row.cached:
            found += ["teacher.run=null", f"teacher.cache={self.cache}"]
        elif has_teacher:
            teacher = self._of(self.row.taught) if self.row.taught else self.plan.teacher
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
    return plan
