"""What runs are scored on: a split, half of test, a masked model's number of passes.

Half of the test set is sealed until the end of a trial, by the parity of its lines: counted from 1,
`test-open` are the odd ones and `test-sealed` the even ones.
"""

import re
from dataclasses import dataclass
from typing import Self

HALVES = {"test-open": 0, "test-sealed": 1}
SPLITS = ("dev", "test", *HALVES)
_WRITTEN = re.compile(r"([a-z-]+)(?:, (\d+) pass(?:es)?)?")


@dataclass(frozen=True)
class Scored:
    """Written as `test-sealed` or `dev, 4 passes`."""

    split: str
    passes: int | None = None

    @classmethod
    def read(cls, text: str) -> Self:
        found = _WRITTEN.fullmatch(text)
        if not found or found[1] not in SPLITS:
            raise ValueError(f"expected one of {', '.join(SPLITS)}, with passes, not {text!r}")
        return cls(found[1], int(found[2]) if found[2] else None)

    def __str__(self) -> str:
        if self.passes is None:
            return self.split
        return f"{self.split}, {self.passes} pass{'es' if self.passes > 1 else ''}"

    @property
    def corpus(self) -> str:
        """The split of the corpus that it is, or is half of."""
        return self.split.partition("-")[0]

    def of(self, lines: list[str]) -> list[str]:
        """Of the corpus' lines those that are scored."""
        return lines[HALVES[self.split] :: 2] if self.split in HALVES else lines
