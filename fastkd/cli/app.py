"""The verbs of the command line and the exit statuses they end with."""

import errno
import importlib
import logging
import os
import sys

import click

from fastkd.errors import BackendUnavailable, InputError, RunFailed

VERBS = (
    "prepare",
    "train",
    "translate",
    "score",
    "average",
    "cache-teacher",
    "export",
    "import",
    "bench",
    "memory",
    "demo",
)


_LESS = "a smaller model, training.batch_tokens, decoding.batch_tokens or decoding.beam"


class Verbs(click.Group):
    """Each verb is the `command` of a module of its name, imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        return importlib.import_module(f"fastkd.cli.{name.replace('-', '_')}").command


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fastkd")
def group() -> None:
    """Knowledge distillation of Transformer translation models."""


def app(arguments: list[str]) -> int:
    """Runs one verb and returns the exit status: 0 done, 1 failed, 2 wrong input."""
    logging.basicConfig(format="fastkd: %(levelname)s: %(message)s", level=logging.WARNING)
    try:
        group.main(arguments, prog_name="fastkd", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # which a full disk refuses
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (InputError, BackendUnavailable) as error:
        return _fail(str(error), 2)
    except RunFailed as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 1)
    except OSError as error:
        _drop_unwritten()
        if error.errno == errno.EPIPE:
            return 1  # the reader has seen enough
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}", 1)
    except ModuleNotFoundError:
        raise  # told by `main`, which also meets those that this module needs
    except Exception as error:
        if _out_of_memory(error):
            return _fail(f"out of memory; less is taken by {_LESS} ({error})", 1)
        if os.environ.get("FASTKD_TRACEBACK"):
            raise
        return _fail(f"{type(error).__name__}: {error} (FASTKD_TRACEBACK=1 shows where)", 1)
    return 0


def _out_of_memory(error: Exception) -> bool:
    """Whether Python, a GPU or PyTorch's allocator on the CPU could not have the memory."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "allocate memory" in str(error)


def _drop_unwritten() -> None:
    """Forgets what standard output does not take, so that nothing fails again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> int:
    print("fastkd: " + " ".join(message.split()), file=sys.stderr)
    return status
