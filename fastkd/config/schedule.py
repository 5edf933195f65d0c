"""Values that change over training: they begin late, end early, ramp or decay."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag
from pydantic.dataclasses import dataclass

from fastkd.config.types import STRICT, Natural, NonNegative, Positive, Repeats, Share


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Schedule:
    """A value at each update, or epoch, the first being 1; with t of them since `begin`:

        before                                        up to `begin`, itself included
        before + (value − before) · t / ramp          for 0 < t < ramp
        value · decay^(t − max(ramp, 1))              then
        after                                         past `end`

    So `{value: 1, begin: 3000}` is 0 in the first 3,000 updates and 1 from update 3,001 on.
    """

    value: NonNegative
    begin: Natural = 0
    ramp: Natural = 0
    decay: Share = 1.0
    end: Positive | None = None
    before: NonNegative = 0.0
    after: NonNegative = 0.0
    by: Literal["update", "epoch"] = "update"

    def __post_init__(self) -> None:
        if self.end is not None and self.end <= self.begin + self.ramp:
            raise ValueError(f"an end above begin + ramp = {self.begin + self.ramp}")

    def at(self, update: int, epoch: int) -> float:
        time = update if self.by == "update" else epoch
        passed = time - self.begin
        if passed <= 0:
            return self.before
        if self.end is not None and time > self.end:
            return self.after
        if passed < self.ramp:
            return self.before + (self.value - self.before) * passed / self.ramp
        return float(self.value * self.decay ** (passed - max(self.ramp, 1)))

    @property
    def highest(self) -> float:
        return max(self.value, self.before, self.after)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RepeatsSchedule:
    """A number of repetitions: `before` up to `begin`, then `value`, and `after` past `end`."""

    value: Repeats
    begin: Natural = 0
    end: Positive | None = None
    before: Repeats = 1
    after: Repeats = 1
    by: Literal["update", "epoch"] = "update"

    def __post_init__(self) -> None:
        if self.end is not None and self.end <= self.begin:
            raise ValueError(f"an end above begin = {self.begin}")

    def at(self, update: int, epoch: int) -> int:
        time = update if self.by == "update" else epoch
        if time <= self.begin:
            return self.before
        return self.after if self.end is not None and time > self.end else self.value

    @property
    def highest(self) -> int:
        return max(self.value, self.before, self.after)


def _kind(value: Any) -> str:
    scheduled = isinstance(value, dict | Schedule | RepeatsSchedule)
    return "schedule" if scheduled else "number"


Weight = Annotated[
    Annotated[NonNegative, Tag("number")] | Annotated[Schedule, Tag("schedule")],
    Discriminator(_kind),
]
Passes = Annotated[
    Annotated[Repeats, Tag("number")] | Annotated[RepeatsSchedule, Tag("schedule")],
    Discriminator(_kind),
]
