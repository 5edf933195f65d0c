"""Drawn cases within a time: a slow machine tries fewer of them, and none takes longer."""

import functools
import time
from collections.abc import Callable
from typing import Any

from hypothesis.errors import StopTest, UnsatisfiedAssumption

SECONDS = 20.0  # for a test of drawn cases that names no other time


def within(seconds: float, test: Callable[..., Any]) -> Callable[..., Any]:
    """`test`, which draws no more from its case on with which the time is over.

    What a case needs is drawn before the test is called, in a strategy: a test that itself draws
    would draw less when the time is over, which hypothesis takes for a fault of the test.

    Once a case has failed all are tried again, as hypothesis looks for a smaller one that fails.
    """
    end, failed = None, False

    @functools.wraps(test)
    def limited(*arguments: Any, **named: Any) -> Any:
        nonlocal end, failed
        now = time.monotonic()
        end = now + seconds if end is None else end
        if now > end and not failed:
            return None
        try:
            return test(*arguments, **named)
        except (StopTest, UnsatisfiedAssumption):
            raise
        except BaseException:
            failed = True
            raise

    return limited
