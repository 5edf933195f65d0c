"""Values of a configuration, with the bounds within which they make sense."""

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("a path")
    return text


# Strict: true is no number, 1e3 no whole one, and "5" neither. Bounds keep what is far outside of
# any use from ending in NaN, in an overflow or in a process that the system kills.
PathText = Annotated[str, AfterValidator(_path)]
Flag = Annotated[bool, Field(strict=True)]
Natural = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Positive = Annotated[int, Field(gt=0, lt=2**63, strict=True)]
Size = Annotated[int, Field(gt=0, le=2**20, strict=True)]
Width = Annotated[int, Field(gt=0, le=2**16, strict=True)]
Repeats = Annotated[int, Field(gt=0, le=2**10, strict=True)]
NonNegative = Annotated[float, Field(ge=0, le=1e6, strict=True)]
AboveZero = Annotated[float, Field(gt=0, le=1e6, strict=True)]
Share = Annotated[float, Field(gt=0, le=1, strict=True)]
Probability = Annotated[float, Field(ge=0, lt=1, strict=True)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3, strict=True)]
Exponent = Annotated[float, Field(ge=-10, le=10, strict=True)]
BleuTokenizer = Literal["13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"]
