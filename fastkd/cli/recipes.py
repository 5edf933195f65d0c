"""`fastkd recipes`."""

import click


@click.command("recipes", short_help="List the configurations to begin with.")
@click.argument("prefix", default="")
@click.option("--show", is_flag=True, help="Print the recipe PREFIX with every key, as YAML.")
def command(prefix: str, show: bool) -> None:
    """List the bundled recipes whose names begin with PREFIX, with what each is.

    A recipe's name stands for its file wherever a CONFIG is expected.
    """
    from fastkd.config.recipes import nearest, recipes
    from fastkd.errors import InputError

    if show:
        from fastkd.config.load import dump_config, load_config

        if not prefix:
            raise InputError("--show: expected a recipe's name; `fastkd recipes` lists all")
        click.echo(dump_config(load_config(prefix)), nl=False)
        return
    found = list(recipes(prefix))
    if not found:
        told = f"{prefix}: no recipe's name begins so; `fastkd recipes` lists all"
        raise InputError(told + nearest(prefix))
    width = max(len(recipe.name) for recipe in found)
    for recipe in found:
        click.echo(f"{recipe.name:{width}}  {recipe.summary}")
