"""Translates text: pieces, batches, a search for each batch, and text again."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from fastkd.config.tree import DecodingConfig
from fastkd.data.tokenizer import Tokenizers
from fastkd.decode.beam import Hypotheses, beam_search
from fastkd.decode.mask_predict import mask_predict
from fastkd.errors import InputError
from fastkd.nn.cmlm import CMLM
from fastkd.nn.transformer import Transformer

Progress = Callable[[int], None]  # the number of lines done since the last call
Warn = Callable[[str], None]


class Translation(NamedTuple):
    """What a line became, and its score: log p / length ** length_penalty, 0 of an empty line.

    Of a masked model the score is the mean log-probability of the pieces.
    """

    text: str
    score: float


def translate(
    model: Transformer,
    tokenizers: Tokenizers,
    lines: Sequence[str],
    config: DecodingConfig,
    device: torch.device | str,
    progress: Progress | None = None,
    warn: Warn = warnings.warn,
) -> list[str]:
    """The translation of each line, in order; an empty line has an empty one.

    model: on `device`; put into evaluation mode for the while
    progress: called with the number of lines done since the last call
    warn: called with a sentence for each line that is cut to the model's max_positions
    """
    translator = Translator(tokenizers, OwnSearch(model, tokenizers, config, device), config, warn)
    found = translator.translate(lines, progress or (lambda count: None))
    return [best.text for best, *_ in found]


def translate_stream(
    model: Transformer,
    tokenizers: Tokenizers,
    lines: Iterable[str],
    config: DecodingConfig,
    device: torch.device | str,
    buffer: int = 1024,
    warn: Warn = warnings.warn,
) -> Iterator[str]:
    """`translate` for lines that may never end; see `Translator.stream`."""
    translator = Translator(tokenizers, OwnSearch(model, tokenizers, config, device), config, warn)
    return (best.text for best, *_ in translator.stream(lines, buffer))


class Search(Protocol):
    """What finds the translations of a batch."""

    max_positions: int  # pieces of a source, end-of-sentence included
    width: int  # hypotheses of a sentence at the same time

    def __call__(self, batch: list[list[int]], limits: list[int], n_best: int) -> Hypotheses:
        """Of sources that end with end-of-sentence; limits: most tokens of each, its end too."""
        ...


class Translator:
    """Text to text by any search; counts the lines it has seen, to name them in warnings."""

    def __init__(
        self,
        tokenizers: Tokenizers,
        search: Search,
        config: DecodingConfig,
        warn: Warn = warnings.warn,
        n_best: int = 1,
    ) -> None:
        self.tokenizers = tokenizers
        self.search = search
        self.config = config
        self.warn = warn
        self.n_best = n_best
        self.seen = 0

    def stream(self, lines: Iterable[str], buffer: int = 1024) -> Iterator[list[Translation]]:
        """Reads `buffer` lines, yields their translations, and so on.

        With a buffer of 1 each line is answered before the next one is read. Where reading raises
        an InputError, the lines before it are answered first.
        """
        for block in _blocks(lines, buffer):
            yield from self.translate(block)

    def translate(
        self, lines: Sequence[str], progress: Progress = lambda count: None
    ) -> list[list[Translation]]:
        """The `n_best` translations of each line, in order, the best first."""
        pieces = self._encode(lines)
        longest_first = sorted(
            (i for i, ids in enumerate(pieces) if ids), key=lambda i: -len(pieces[i])
        )
        translations = [[Translation("", 0.0)] for _ in lines]
        progress(len(lines) - len(longest_first))
        for batch in self._batches(longest_first, pieces):
            found = self._search([pieces[i] for i in batch])
            for i, hypotheses in zip(batch, found.lists, strict=True):
                texts = self.tokenizers.target.decode(h.tokens for h in hypotheses)
                translations[i] = [
                    Translation(text, hypothesis.score)
                    for text, hypothesis in zip(texts, hypotheses, strict=True)
                ]
            progress(len(batch))
        return translations

    def _search(self, batch: list[list[int]]) -> Hypotheses:
        ratio, extra = self.config.max_length_ratio, self.config.max_length_extra
        limits = [int(len(ids) * ratio + extra) for ids in batch]
        limits = [min(limit, self.search.max_positions) for limit in limits]
        return self.search(batch, limits, self.n_best)

    def _encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Source ids of each line with the end token; none at all for one of white space."""
        longest = self.search.max_positions
        encoded: list[list[int]] = []
        for line, ids in zip(lines, self.tokenizers.source.encode(lines), strict=True):
            self.seen += 1
            if not line.strip():
                encoded.append([])
                continue
            if len(ids) >= longest:
                self.warn(
                    f"line {self.seen}: cut from {len(ids)} to {longest - 1} pieces, "
                    f"as model.max_positions is {longest}"
                )
            encoded.append([*ids[: longest - 1], self.tokenizers.source.eos_id] if ids else [])
        return encoded

    def _batches(self, longest_first: list[int], pieces: list[list[int]]) -> Iterator[list[int]]:
        """Sentences of like length, up to batch_tokens source tokens with their padding.

        There are no more hypotheses at once either, however many a sentence has.
        """
        start = 0
        while start < len(longest_first):
            longest = len(pieces[longest_first[start]])
            stop = start + max(1, self.config.batch_tokens // max(longest, self.search.width))
            yield longest_first[start:stop]
            start = stop


class OwnSearch:
    """Beam search; mask-predict for a masked model."""

    def __init__(
        self,
        model: Transformer,
        tokenizers: Tokenizers,
        config: DecodingConfig,
        device: torch.device | str,
    ) -> None:
        self.model = model
        self.tokenizers = tokenizers
        self.config = config
        self.device = torch.device(device)
        self.max_positions: int = model.config.max_positions
        masked = isinstance(model, CMLM)
        self.width = 2 * config.length_window + 1 if masked else config.beam
        target = tokenizers.target
        self.banned = (*target.never_text, *(() if config.unknown else (target.unk_id,)))

    def __call__(self, batch: list[list[int]], limits: list[int], n_best: int) -> Hypotheses:
        lengths = torch.tensor([len(ids) for ids in batch])
        padded = torch.full((len(batch), int(lengths.max())), self.tokenizers.source.pad_id)
        for row, ids in zip(padded, batch, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        source = padded.to(self.device, non_blocking=True)
        was_training = self.model.training
        self.model.eval()
        try:
            if isinstance(self.model, CMLM):
                return mask_predict(
                    self.model,
                    source,
                    lengths,
                    passes=self.config.passes,
                    # The end of sentence takes a position too.
                    max_lengths=torch.tensor(limits).clamp(max=self.max_positions - 1),
                    length_window=self.config.length_window,
                    remove_duplicates=self.config.remove_duplicates,
                    reconsider=self.config.reconsider,
                    banned=self.banned,
                    n_best=n_best,
                )
            target = self.tokenizers.target
            starts = {"bos": target.bos_id, "eos": target.eos_id, "pad": target.pad_id}
            return beam_search(
                self.model,
                source,
                lengths,
                bos=starts[self.model.config.decoder_start],
                eos=target.eos_id,
                pad=target.pad_id,
                beam=self.config.beam,
                length_penalty=self.config.length_penalty,
                max_lengths=torch.tensor(limits),
                banned=self.banned,
                n_best=n_best,
            )
        finally:
            self.model.train(was_training)


def _blocks(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    """Up to `size` lines at a time, without their ends."""
    source, error = iter(lines), None
    while error is None:
        block: list[str] = []
        try:
            for line in itertools.islice(source, size):
                block.append(line.rstrip("\r\n"))
        except InputError as raised:
            error = raised
        if block:
            yield block
        elif error is None:
            return
    raise error
