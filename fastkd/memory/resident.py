"""What the operating system says a process holds: the check on a CPU that owes PyTorch nothing."""

import gc
import os
import re
import sys
from pathlib import Path

# glibc then gives every freed block of 64 KiB and more back at once, so that resident memory
# follows the tensors. It reads these when a process starts.
PROMPT_RETURN = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_MMAP_MAX_": "1000000",
}
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident() -> tuple[int, int]:
    """Resident bytes of this process, now and at most since `restart_peak`."""
    if not _STATUS.exists():
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return peak, peak
    found = dict(re.findall(r"(VmHWM|VmRSS):\s+(\d+) kB", _STATUS.read_text()))
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


def restart_peak() -> None:
    """Lets the peak of `resident` begin anew from what is resident now, where Linux allows it."""
    gc.collect()
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def child_environment(threads: int) -> dict[str, str]:
    """The environment of a process whose resident memory follows its tensors."""
    # Waiting threads sleep: beside other work, spinning ones would slow each other down.
    wait = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **PROMPT_RETURN, **wait}
