"""The verbs of the command line."""

import difflib
import importlib
import logging

import click
from click.exceptions import NoArgsIsHelpError

import fastkd
from fastkd.cli.status import told

VERBS = (
    "prepare",
    "train",
    "translate",
    "score",
    "average",
    "cache-teacher",
    "distill",
    "export",
    "import",
    "bench",
    "memory",
    "demo",
    "runs",
    "compare",
    "heads",
    "recipes",
)


class _ByPackage(logging.Formatter):
    """Says whose warning it is: libraries have theirs."""

    def format(self, record: logging.LogRecord) -> str:
        record.package = record.name.partition(".")[0]
        return super().format(record)


class Verbs(click.Group):
    """Each verb is the `command` of a module of its name, imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        nearest = difflib.get_close_matches(args[0], VERBS, 1)
        if args[0] not in VERBS and nearest:
            ctx.fail(f"no such verb: {args[0]!r}; did you mean {nearest[0]}?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module = importlib.import_module(f"fastkd.cli.{name.replace('-', '_')}")
        command: click.Command = module.command
        return command


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fastkd.__version__)
def group() -> None:
    """Knowledge distillation of Transformer translation models."""


def app(arguments: list[str]) -> int:
    """Runs one verb; `fastkd.cli.status.ended` tells what it raises, and the status of that."""
    handler = logging.StreamHandler()
    handler.setFormatter(_ByPackage("%(package)s: %(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    try:
        status = group.main(arguments, prog_name="fastkd", standalone_mode=False)
    except NoArgsIsHelpError as error:
        error.show()  # the help
        return 2
    except click.ClickException as error:
        return told(_complaint(error), 2)
    except click.Abort:
        raise KeyboardInterrupt from None
    return status if isinstance(status, int) else 0  # of click.exceptions.Exit, or nothing


def _complaint(error: click.ClickException) -> str:
    """In one line, with where the arguments that there are stand."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message().rstrip(".")
    if context is None:
        return message
    path = context.command_path
    verb = f"{context.info_name}: " if context.parent is not None else ""
    return f"{verb}{message[:1].lower()}{message[1:]}; {path} --help shows the arguments"
