"""Translation with a run's model: its weights, its tokenizers, its decoding settings."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastkd.config.load import revised
from fastkd.config.tree import DecodingConfig
from fastkd.data.text import read_pairs, text_file
from fastkd.decode.translate import translate, translate_stream
from fastkd.errors import InputError
from fastkd.runs.device import pick_device
from fastkd.runs.folder import RunFolder

LOGGER = logging.getLogger(__name__)
SEARCH = {"transformer": ("beam", "length_penalty"), "cmlm": ("passes", "length_window")}


def translate_split(
    run: RunFolder,
    split: str,
    checkpoint: str = "best",
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
    **search: Any,
) -> tuple[list[str], list[str]]:
    """Translations of a split of the run's corpus, and its references.

    search: settings of `decoding_settings`
    """
    data = run.config.data
    prefix = getattr(data, split)
    if prefix is None:
        raise InputError(f"{run.config_file}: data.{split}: names no corpus")
    pairs = list(read_pairs(text_file(prefix, data.source), text_file(prefix, data.target)))
    where, settings = pick_device(device), decoding_settings(run, **search)
    model = run.load_model(checkpoint, where)
    sources, references = [source for source, _ in pairs], [target for _, target in pairs]
    translations = translate(
        model, run.tokenizers, sources, settings, where, progress, LOGGER.warning
    )
    return translations, references


def translate_lines(
    run: RunFolder,
    lines: Iterable[str],
    checkpoint: str = "best",
    device: str = "auto",
    buffer: int = 1024,
    **search: Any,
) -> Iterator[str]:
    """Translations of `lines`, read and translated `buffer` at a time; `search` as above."""
    where, settings = pick_device(device), decoding_settings(run, **search)
    model = run.load_model(checkpoint, where)
    return translate_stream(model, run.tokenizers, lines, settings, where, buffer, LOGGER.warning)


def decoding_settings(run: RunFolder, **search: Any) -> DecodingConfig:
    """The run's own settings, with what the caller wants otherwise; None is no wish.

    search: `beam` and `length_penalty` of an autoregressive model, `passes` and `length_window`
        of a masked one

    Raises InputError for a setting that the other kind of model has.
    """
    config = run.config
    given = {key: value for key, value in search.items() if value is not None}
    for key in given:
        if key not in SEARCH[config.model.kind]:
            raise InputError(
                f"{key}: no setting of {run.path}, whose model.kind is {config.model.kind}; "
                f"expected {' or '.join(SEARCH[config.model.kind])}"
            )
    return revised(config.decoding, str(run.path), **given)
