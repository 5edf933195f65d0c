"""`fastkd prepare`."""

import click

from fastkd.cli.arguments import CONFIG, OVERRIDES


@click.command("prepare")
@CONFIG
@OVERRIDES
def command(config: str, overrides: tuple[str, ...]) -> None:
    """Train or take a tokenizer and encode the corpus of CONFIG."""
    from fastkd.cli.progress import counting
    from fastkd.config.load import load_config
    from fastkd.data.prepare import prepare

    resolved = load_config(config, overrides)
    with counting("preparing", "pairs") as progress:
        report = prepare(resolved, progress=progress)
    click.echo(str(report))
