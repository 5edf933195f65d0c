"""`fastkd train`."""

import click

from fastkd.cli.arguments import CONFIG, OVERRIDES


@click.command("train")
@CONFIG
@OVERRIDES
def command(config: str, overrides: tuple[str, ...]) -> None:
    """Train the model of CONFIG, a YAML file or the name of a recipe.

    Goes on from the newest checkpoint of the run folder where there is one. Where CONFIG names a
    teacher and losses, the model is its student.
    """
    from fastkd.config.load import load_config
    from fastkd.train.start import start

    trainer = start(load_config(config, overrides))
    if trainer.finished:
        click.echo(f"{trainer.run.path}: finished at update {trainer.position.update}", err=True)
        return
    position = trainer.train()
    if not trainer.finished:
        click.echo(
            f"{trainer.run.path}: stopped at update {position.update}; the same command goes on",
            err=True,
        )
