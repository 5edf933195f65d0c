"""`fastkd train`."""

from typing import TYPE_CHECKING

import click

from fastkd.cli.arguments import CONFIG, OVERRIDES

if TYPE_CHECKING:
    from fastkd.config.tree import Config
    from fastkd.data.prepare import Prepared
    from fastkd.train.ranks import Ranks


@click.command("train", short_help="Train a model, or go on with it.")
@CONFIG
@OVERRIDES
def command(config: str, overrides: tuple[str, ...]) -> None:
    """Train the model of CONFIG, a YAML file or the name of a recipe.

    Goes on from the newest checkpoint of the run folder where there is one. Where CONFIG names a
    teacher and losses, the model is its student. On several devices: torchrun --nproc-per-node N -m
    fastkd train CONFIG computes the same updates; training.sharding=fully_shard divides weights,
    gradients and the optimizer's state over them.
    """
    from fastkd.config.load import load_config
    from fastkd.data.prepare import open_prepared

    resolved = load_config(config, overrides)
    prepared = open_prepared(resolved)

    # Whoever is refused by now need not wait for PyTorch to be imported.
    from fastkd.errors import Stopped
    from fastkd.train.ranks import noticing_loss

    with noticing_loss():
        ranks, stopped_by = _train(resolved, prepared)
    ranks.leave()
    if stopped_by is not None:
        raise Stopped(stopped_by)


def _train(config: "Config", prepared: "Prepared") -> "tuple[Ranks, int | None]":
    """Trains to the end, or until a signal asks to stop; the processes, and that signal."""
    from fastkd.train.start import start

    trainer = start(config, prepared)
    trainer.train()
    how = "finished" if trainer.finished else "stopped; the same command goes on;"
    if trainer.ranks.first:
        click.echo(f"{trainer.run.path}: {how} at update {trainer.position.update}", err=True)
    return trainer.ranks, None if trainer.finished else trainer.stopped_by
