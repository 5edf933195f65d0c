"""Translation with a run's model: its weights, its tokenizers, its decoding settings."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastkd.config.load import revised
from fastkd.config.tree import DecodingConfig
from fastkd.data.text import read_pairs, text_file
from fastkd.decode.translate import OwnSearch, Search, Translator
from fastkd.errors import InputError
from fastkd.runs.device import pick_device
from fastkd.runs.folder import RunFolder, Weights

LOGGER = logging.getLogger(__name__)
SEARCH = {
    "transformer": ("beam", "length_penalty", "unknown"),
    "cmlm": ("passes", "length_window", "unknown"),
}
ENGINES = ("pytorch", "ctranslate2")


@dataclass(frozen=True)
class Engine:
    """What searches: our own code in PyTorch, or CTranslate2 in a type of its own."""

    name: str = "pytorch"
    compute_type: str = "float32"

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise InputError(f"--engine: expected {' or '.join(ENGINES)}, not {self.name}")
        if self.name == "pytorch" and self.compute_type != "float32":
            raise InputError("--compute-type: goes with --engine ctranslate2")


OWN = Engine()


def open_translator(
    run: RunFolder,
    checkpoint: str = "best",
    device: str = "auto",
    engine: Engine = OWN,
    n_best: int = 1,
    weights: Weights | None = None,
    **search: Any,
) -> Translator:
    """The run's model, loaded to translate.

    weights: those of the checkpoint, where they are read already
    search: settings of `decoding_settings`
    """
    where, settings = pick_device(device), decoding_settings(run, **search)
    masked = run.config.model.kind == "cmlm"
    most = 2 * settings.length_window + 1 if masked else settings.beam
    if n_best > most:
        kind = "lengths tried, 2 · length_window + 1" if masked else "beam"
        raise InputError(f"--n-best {n_best}: expected at most {most}, the {kind}")
    found: Search
    if engine.name == "ctranslate2":
        from fastkd.export.engine import CTranslate2Search

        found = CTranslate2Search(
            run, settings, checkpoint, where, engine.compute_type, weights=weights
        )
    else:
        model = run.load_model(checkpoint, where, weights)
        if where.type == "cpu":
            model.lay_out_for_decoding()
        found = OwnSearch(model, run.tokenizers, settings, where)
    return Translator(run.tokenizers, found, settings, LOGGER.warning, n_best)


def split_text(run: RunFolder, split: str) -> tuple[list[str], list[str]]:
    """Source sentences and references of a split of the run's corpus."""
    data = run.config.data
    prefix = getattr(data, split)
    if prefix is None:
        raise InputError(f"{run.config_file}: data.{split}: names no corpus")
    pairs = list(read_pairs(text_file(prefix, data.source), text_file(prefix, data.target)))
    return [source for source, _ in pairs], [target for _, target in pairs]


def translate_split(
    run: RunFolder,
    split: str,
    checkpoint: str = "best",
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
    engine: Engine = OWN,
    weights: Weights | None = None,
    text: tuple[list[str], list[str]] | None = None,
    **search: Any,
) -> tuple[list[str], list[str]]:
    """Translations of a split of the run's corpus, and its references; the rest as above.

    text: what `split_text` gives, where it is read already
    """
    sources, references = text or split_text(run, split)
    translator = open_translator(run, checkpoint, device, engine, weights=weights, **search)
    found = translator.translate(sources, progress or (lambda count: None))
    return [best.text for best, *_ in found], references


def translate_lines(
    run: RunFolder,
    lines: Iterable[str],
    checkpoint: str = "best",
    device: str = "auto",
    buffer: int = 1024,
    **search: Any,
) -> Iterator[str]:
    """Translations of `lines`, read and translated `buffer` at a time; `search` as above."""
    translator = open_translator(run, checkpoint, device, **search)
    return (best.text for best, *_ in translator.stream(lines, buffer))


def decoding_settings(run: RunFolder, **search: Any) -> DecodingConfig:
    """The run's own settings, with what the caller wants otherwise; None is no wish.

    search: `beam` and `length_penalty` of an autoregressive model, `passes` and `length_window`
        of a masked one, `unknown` of both

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
