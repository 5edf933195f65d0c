"""Arguments that several verbs share."""

from collections.abc import Callable

import click

CONFIG = click.argument("config", type=click.Path())
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY.PATH=VALUE]...")
RUN = click.argument("run", type=click.Path())
CHECKPOINT = click.option(
    "--checkpoint",
    type=click.Choice(["best", "last", "average"]),
    default="best",
    show_default=True,
    help="Which weights to use.",
)
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)


_SEARCH = (
    click.option("--beam", type=click.IntRange(min=1), help="Beam size; 1 is greedy."),
    click.option(
        "--length-penalty", type=float, help="Scores are divided by length to this power."
    ),
    click.option("--passes", type=click.IntRange(min=1), help="Passes of mask-predict (cmlm)."),
    click.option(
        "--length-window",
        type=click.IntRange(min=0),
        help="Lengths tried: the predicted one ± so many (cmlm).",
    ),
    click.option(
        "--unknown/--no-unknown",
        default=None,
        help="Whether the unknown piece may be written, as ⁇; default: the run's, which is no.",
    ),
)
_ENGINE = (
    click.option(
        "--engine",
        type=click.Choice(["pytorch", "ctranslate2"]),
        default="pytorch",
        show_default=True,
        help="What searches; CTranslate2 is faster, in float32 with almost always the same result.",
    ),
    click.option(
        "--compute-type",
        type=click.Choice(["float32", "int8", "int8_float32", "int16", "float16", "bfloat16"]),
        default="float32",
        show_default=True,
        help="Of CTranslate2: in what it computes.",
    ),
)


def search_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the settings of both searches; each is None where it is not given."""
    for option in reversed(_SEARCH):
        command = option(command)
    return command


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds what searches, `engine` and `compute_type`."""
    for option in reversed(_ENGINE):
        command = option(command)
    return command
