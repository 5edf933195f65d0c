"""`fastkd recipes`."""

import click

from fastkd.config.recipes import nearest, recipes
from fastkd.errors import InputError


@click.command("recipes", short_help="List the configurations to begin with.")
@click.argument("prefix", default="")
def command(prefix: str) -> None:
    """List the bundled recipes whose names begin with PREFIX, with what each is.

    A recipe's name stands for its file wherever a CONFIG is expected.
    """
    found = list(recipes(prefix))
    if not found:
        told = f"{prefix}: no recipe's name begins so; `fastkd recipes` lists all"
        raise InputError(told + nearest(prefix))
    width = max(len(recipe.name) for recipe in found)
    for recipe in found:
        click.echo(f"{recipe.name:{width}}  {recipe.summary}")
