"""Translation with a run's model: its weights, its tokenizers, its decoding settings."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from fastkd.config.tree import DecodingConfig
from fastkd.data.text import read_pairs, text_file
from fastkd.decode.translate import translate, translate_stream
from fastkd.errors import InputError
from fastkd.runs.device import pick_device
from fastkd.runs.folder import RunFolder


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
    pairs = list(read_pairs(text_file(prefix, data.source), text_file(prefix, data.target)))
    where, settings = pick_device(device), decoding_settings(run, beam, length_penalty)
    model = run.load_model(checkpoint, where)
    sources, references = [source for source, _ in pairs], [target for _, target in pairs]
    return translate(model, run.tokenizers, sources, settings, where, progress), references


def translate_lines(
    run: RunFolder,
    lines: Iterable[str],
    checkpoint: str = "best",
    beam: int | None = None,
    length_penalty: float | None = None,
    device: str = "auto",
    buffer: int = 1024,
) -> Iterator[str]:
    """Translations of `lines`, read and translated `buffer` at a time."""
    where, settings = pick_device(device), decoding_settings(run, beam, length_penalty)
    model = run.load_model(checkpoint, where)
    return translate_stream(model, run.tokenizers, lines, settings, where, buffer)


def decoding_settings(
    run: RunFolder, beam: int | None = None, length_penalty: float | None = None
) -> DecodingConfig:
    """The run's own settings, with what the caller wants otherwise."""
    wanted = {"beam": beam, "length_penalty": length_penalty}
    given = {key: value for key, value in wanted.items() if value is not None}
    return dataclasses.replace(run.config.decoding, **given)
