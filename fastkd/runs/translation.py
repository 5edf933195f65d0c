"""Translation with a run's model: its weights, its tokenizers, its decoding settings."""

import dataclasses
from collections.abc import Callable

from fastkd.config.tree import DecodingConfig
from fastkd.data.text import read_lines
from fastkd.decode.translate import translate
from fastkd.errors import InputError
from fastkd.runs.device import pick_device
from fastkd.runs.folder import RunFolder


def decoding_settings(
    run: RunFolder, beam: int | None = None, length_penalty: float | None = None
) -> DecodingConfig:
    """The run's own settings, with what the caller wants otherwise."""
    wanted = {"beam": beam, "length_penalty": length_penalty}
    given = {key: value for key, value in wanted.items() if value is not None}
    return dataclasses.replace(run.config.decoding, **given)


def translate_split(
    run: RunFolder,
    split: str,
    checkpoint: str = "best",
    beam: int | None = None,
    length_penalty: float | None = None,
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> tuple[list[str], list[str]]:
    """Translations of a split of the run's corpus, and its references."""
    data = run.config.data
    prefix = getattr(data, split)
    if prefix is None:
        raise InputError(f"{run.config_file}: data.{split}: names no corpus")
    sources, references = (list(read_lines(prefix, side)) for side in (data.source, data.target))
    where = pick_device(device)
    model = run.load_model(checkpoint, where)
    settings = decoding_settings(run, beam, length_penalty)
    return translate(model, run.tokenizers, sources, settings, where, progress), references
