"""`fastkd compare`."""

import contextlib
from pathlib import Path

import click

from fastkd.cli.arguments import DEVICE


@click.command("compare", short_help="Show runs side by side, also as a page.")
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(), help="Also write a page with pictures here (.html)."
)
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    help="Sentences of dev whose translations the page shows.",
)
@click.option(
    "--split",
    type=click.Choice(["dev", "test"]),
    help="Also translate this split, and say what of the differences may be chance.",
)
@click.option(
    "--memory/--no-memory",
    default=True,
    show_default=True,
    help="Whether the page shows where the memory of a training step goes, as predicted.",
)
@DEVICE
def command(
    runs: tuple[str, ...],
    output: str | None,
    samples: int,
    split: str | None,
    memory: bool,
    device: str,
) -> None:
    """Show RUNS beside each other: sizes, time, scores, and which settings differ.

    Runs that differ in their seed alone are one method. With --output a page that needs no other
    file has curves, losses by component, head alignments, memory and translations too.
    """
    from fastkd.cli.progress import counting
    from fastkd.compare.facts import Facts
    from fastkd.compare.memory import Steps, steps_of
    from fastkd.compare.methods import methods_of
    from fastkd.compare.page import page
    from fastkd.compare.samples import samples_of
    from fastkd.compare.table import of_methods, of_settings, of_verdicts
    from fastkd.compare.verdicts import Verdict, sentences, verdicts
    from fastkd.data.lines import opened_output
    from fastkd.errors import InputError
    from fastkd.tables import show

    if output and Path(output).suffix != ".html":
        raise InputError(f"--output: expected a name that ends in .html, not {output!r}")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(opened_output(output, None)) if output else None
        methods = methods_of([Facts.read(run) for run in runs])
        settings = of_settings(methods)
        show([of_methods(methods), *([settings] if settings.lines else [])])
        found: list[Verdict] = []
        if split:
            with counting(f"translating {split}", sentences(methods, split)) as done:
                found = verdicts(methods, split, device, done)
            show([of_verdicts(found, split)])
        if file:
            trained = all(method.first.meta for method in methods)
            with counting("translating samples", len(methods)) as done:
                shown = samples_of(methods, samples, device, done) if samples and trained else []
            steps: Steps = []
            if memory:
                with counting("predicting memory", len(methods)) as done:
                    steps = steps_of(methods, done)
            file.write(page(methods, shown, found, split or "dev", steps).encode())
    if output:
        click.echo(f"{output}: written")
