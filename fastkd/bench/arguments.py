"""The command line of `fastkd bench`, by the standard library alone."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fastkd.bench import SUMMARY, providers
from fastkd.bench.chips import CHIPS
from fastkd.bench.command import DTYPES, NAMES, Question, answer, check, results_file
from fastkd.bench.plan import plan, told
from fastkd.bench.predict import predictions
from fastkd.bench.run import Effort
from fastkd.bench.tables import TRAINING, tables
from fastkd.cli.progress import counting
from fastkd.errors import InputError
from fastkd.runs.device import pick_device
from fastkd.tables import show

_DETAILS = """
Each provider first shows that it computes the same loss and gradients. "pace" is the time that
the machine's rates allow, as PyTorch's own operators reach them, as a share of the time taken."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"bench: {message}")


def bench(arguments: Sequence[str]) -> int:
    """Measures, prints a table for each case, and returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit:
        return 0  # after --help; what is wrong is an InputError
    if options.list:
        print(f"operations: {', '.join(NAMES)}")
        print(f"providers: {', '.join(providers.NAMES)}")
        return 0
    question = Question(
        operations=options.operations or _served(),
        device=pick_device(options.device),
        shapes=options.shapes,
        against=options.against.split(",") if options.against else providers.NAMES,
        dtype=options.dtype,
        effort=_effort(options),
        out=options.out,
    )
    check(question)
    if options.predict:
        _check_prediction(options, question)
        show(predictions(question, CHIPS[options.predict]))
        if question.device.type == "cpu":
            return 0
    cases = plan(question)
    print("\n".join(told(cases, question.device)), file=sys.stderr, flush=True)
    with counting("measuring", len(cases)) as done:
        for rows in answer(question):
            show(tables(rows))
            done(1)
    if question.out is not None:
        _draw(question, question.out)
    return 0


def _effort(options: argparse.Namespace) -> Effort:
    given = {"seconds": options.seconds, "memory": options.memory}
    return Effort(**{name: value for name, value in given.items() if value is not None})


def _check_prediction(options: argparse.Namespace, question: Question) -> None:
    """InputError for what a prediction would not heed."""
    if TRAINING in options.operations:
        raise InputError(f"--predict: expected a loss with --op, not {TRAINING!r}")
    if options.dtype not in (None, "bfloat16"):
        raise InputError(
            f"--predict is of bfloat16: expected no other --dtype, not {options.dtype!r}"
        )
    if question.device.type == "cpu":
        for name in ("against", "out", "seconds", "memory"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name}: with --predict and without a GPU nothing is measured")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("fastkd bench", description=SUMMARY + _DETAILS, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--op", dest="operations", metavar="NAME", action="append", default=[],
        help="what to measure; repeat",
    )  # fmt: skip
    add(
        "--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="where to compute (default: auto)",
    )  # fmt: skip
    add(
        "--shapes", metavar="SHAPE", action="append", default=[],
        help="such as B=8,T=512, or a sweep: smoke, cpu, cuda; repeat (default: the device's)",
    )  # fmt: skip
    add("--against", metavar="NAMES", help="who takes part, with commas (default: everyone)")
    add("--dtype", choices=tuple(DTYPES))
    add("--seconds", type=_seconds, help="time for each shape (default: 3)")
    add(
        "--memory", action=argparse.BooleanOptionalAction,
        help="whether to measure peak memory (default: yes)",
    )  # fmt: skip
    add(
        "--predict", metavar="CHIP", choices=tuple(CHIPS),
        help=f"times that counts predict for a GPU, here or not: {', '.join(CHIPS)}",
    )  # fmt: skip
    add("--out", type=Path, metavar="FOLDER", help="for CSV and plots")
    add("--list", action="store_true", help="name the operations and providers, and end")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds, not {text!r}")
    return seconds


def _served() -> tuple[str, ...]:
    """All operations but those for which a package is missing, which is said."""
    try:
        importlib.import_module("fastkd.bench.training")
    except ModuleNotFoundError as error:
        print(f"fastkd: {TRAINING}: absent: needs the package {error.name}", file=sys.stderr)
        return tuple(name for name in NAMES if name != TRAINING)
    return NAMES


def _draw(question: Question, out: Path) -> None:
    from fastkd.bench.record import latest, read

    try:
        from fastkd.bench.plots import plot_all
    except ModuleNotFoundError as error:
        print(f"fastkd: no plots: needs the package {error.name}", file=sys.stderr)
        return
    file = results_file(out, question.device)
    plot_all(latest(read(file)), out, question.device.type)
