"""The largest number that fits, where each question what a number takes is costly."""

import math
from collections.abc import Callable

ENOUGH = 1 << 26  # more than anybody means


def largest(
    taken: Callable[[int], float], smallest: int, guess: int, capacity: float, accuracy: float
) -> int | None:
    """The largest n >= `smallest` with taken(n) <= capacity, but for `accuracy`; None: no n.

    ENOUGH stands for itself and whatever is larger.

    taken(n) rises with n, nearly in a straight line. Each call may take seconds, so few are made:
    about six where it is one. Every third call multiplies by 8 what fits, or halves on a scale of
    logarithms what is left between, so that there are never more than 60.
    """
    known: dict[int, float] = {}
    low, high = smallest - 1, ENOUGH + 1  # fits or is no n; does not fit, or nobody means it
    while high - low > max(accuracy * low, 1):
        known[guess] = taken(guess)
        if known[guess] <= capacity:
            low = guess
        else:
            high = guess
        guess = _next(known, low, high, capacity, accuracy)
    if high > ENOUGH:
        return ENOUGH
    return low if low >= smallest else None


def _next(known: dict[int, float], low: int, high: int, capacity: float, accuracy: float) -> int:
    """Where to look next, inside of `low` and `high` while there is anything inside."""
    step = max(accuracy * low, 1)
    if len(known) % 3 == 0:  # a curve or a leap must not hold the search up
        place = math.sqrt(max(low, 1) * high) if high in known else 8 * low
    elif high not in known:
        place = min(max(_crossing(known, capacity), low + step), 64 * max(low, 1))
    else:
        place = _crossing({n: known[n] for n in (low, high) if n in known}, capacity)
        # A step beyond the crossing ends the search if it is right; before one, it is prepared.
        if place - low < step:
            place = low + step
        elif high - place < step:
            place = high - step
        else:
            place *= 1 - accuracy / 3
    return int(min(max(place, low + 1), high - 1))


def _crossing(known: dict[int, float], capacity: float) -> float:
    """Where the line through the two largest points meets the capacity."""
    if len(known) == 1:
        ((n, memory),) = known.items()
        return n * capacity / memory
    one, two = sorted(known)[-2:]
    slope = (known[two] - known[one]) / (two - one)
    return one + (capacity - known[one]) / slope if slope > 0 else 2.0 * two
