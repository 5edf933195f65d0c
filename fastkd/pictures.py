"""Figures of matplotlib as files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkd.files import whole_file, writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_picture(figure: "Figure", file: Path, **options: Any) -> None:
    """Writes a figure, in the format that the file's name ends in, and closes it.

    options: of `Figure.savefig`
    """
    from matplotlib import pyplot

    try:
        with writable(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as stream:
                figure.savefig(stream, format=file.suffix[1:], **options)
    finally:
        pyplot.close(figure)
