"""`fastkd bench`, whose arguments are read where no package is needed for it."""

import click

from fastkd.bench import SUMMARY


@click.command(
    "bench",
    help=SUMMARY,
    short_help="Measure the losses on this machine.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(context: click.Context, arguments: tuple[str, ...]) -> None:
    from fastkd.bench.arguments import bench

    context.exit(bench(arguments))
