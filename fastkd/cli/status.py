"""The exit statuses that work ends with: 0 done, 1 it failed, 2 what was asked is wrong."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable

from fastkd.cli.streams import drop_unwritten, enduring
from fastkd.errors import BackendUnavailable, InputError, RunFailed, Stopped

_LESS = "a smaller model, training.batch_tokens, decoding.batch_tokens or decoding.beam"


def ended(work: Callable[[], int]) -> int:
    """The status of `work`, or the one of what it raised, which is told in one line.

    What is printed may be cut off by its reader; the work goes on, and its files are written.

    Raises ModuleNotFoundError: told by `main`, which also meets those that the caller needs.
    """
    with enduring():
        return _ended(work)


def _ended(work: Callable[[], int]) -> int:
    try:
        status = work()
        if sys.stdout is not None:
            sys.stdout.flush()  # which a full disk refuses
    except (InputError, BackendUnavailable) as error:
        return told(str(error), 2)
    except RunFailed as error:
        return told(str(error), 1)
    except Stopped as error:
        return 128 + error.number
    except KeyboardInterrupt:
        return told("interrupted", 1)
    except OSError as error:
        if sys.stdout is not None:
            drop_unwritten(sys.stdout)
        if error.errno == errno.EPIPE:
            return 1  # the reader has seen enough
        place = f"{error.filename}: " if error.filename else ""
        return told(f"{place}{error.strerror or error}", 1)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        if _out_of_memory(error):
            return told(f"out of memory; less is taken by {_LESS} ({error})", 1)
        if os.strerror(errno.EAGAIN) in str(error):  # of a thread, from a library
            return told(f"the system's limits of processes or memory are reached ({error})", 1)
        if os.environ.get("FASTKD_TRACEBACK"):
            raise
        return told(f"{type(error).__name__}: {error} (FASTKD_TRACEBACK=1 shows where)", 1)
    return status


def told(message: str, status: int) -> int:
    """Says why, in one line, and hands the status on."""
    with contextlib.suppress(OSError):  # standard error may lie on the disk that is full
        print("fastkd: " + " ".join(message.split()), file=sys.stderr, flush=True)
    return status


def _out_of_memory(error: Exception) -> bool:
    """Whether Python, a GPU or PyTorch's allocator on the CPU could not have the memory."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    told = ("allocate memory", "failed to map segment")  # the latter of a library, as it is loaded
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or any(t in str(error) for t in told)
