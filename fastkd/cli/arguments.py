"""Arguments that several verbs share."""

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
BEAM = click.option("--beam", type=click.IntRange(min=1), help="Beam size; 1 is greedy.")
LENGTH_PENALTY = click.option(
    "--length-penalty", type=float, help="Scores are divided by length to this power."
)
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)
