"""How threads of PyTorch wait for each other between two operations.

GNU's OpenMP, which PyTorch's packages for Linux bring, lets a thread that has nothing to do spin
for milliseconds before it sleeps. Alone on its cores that hides the time to wake it. Where other
work wants the cores too, the thread that spins keeps the one off its core that it waits for, at
every operation anew. A short spin still bridges the gap between two operations, and costs little.
"""

import os

# Of the processor's pause instruction, 15 to 45 ns each: some hundred microseconds.
SPINS = 10_000
_OTHERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # by which the user has decided


def wait_briefly() -> None:
    """Has an effect until PyTorch is imported; leaves alone what the environment already says."""
    if not any(name in os.environ for name in _OTHERS):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
