"""`fastkd prepare`."""

import shlex

import click

from fastkd.cli.arguments import CONFIG, OVERRIDES


@click.command("prepare", short_help="Train a tokenizer and encode a corpus.")
@CONFIG
@OVERRIDES
def command(config: str, overrides: tuple[str, ...]) -> None:
    """Train or take a tokenizer and encode the corpus of CONFIG."""
    from fastkd.cli.progress import stages
    from fastkd.config.load import load_config
    from fastkd.data.prepare import prepare

    resolved = load_config(config, overrides)
    with stages() as progress:
        report = prepare(resolved, progress)
    for line in report.lines():
        click.echo(line)
    if overrides:
        click.echo(f"fastkd train needs the same: {shlex.join(overrides)}")
