"""Translates text: pieces, batches, a search for each batch, and text again."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from fastkd.config.tree import DecodingConfig
from fastkd.data.tokenizer import Tokenizers
from fastkd.decode.beam import beam_search
from fastkd.decode.mask_predict import mask_predict
from fastkd.errors import InputError
from fastkd.nn.cmlm import CMLM
from fastkd.nn.transformer import Transformer


def translate(
    model: Transformer,
    tokenizers: Tokenizers,
    lines: Sequence[str],
    config: DecodingConfig,
    device: torch.device | str,
    progress: Callable[[int], None] | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> list[str]:
    """The translation of each line, in order; an empty line has an empty one.

    model: on `device`; put into evaluation mode for the while
    progress: called with the number of lines done since the last call
    warn: called with a sentence for each line that is cut to the model's max_positions
    """
    translator = _Translator(model, tokenizers, config, device, warn)
    return translator.translate(lines, progress or (lambda count: None))


def translate_stream(
    model: Transformer,
    tokenizers: Tokenizers,
    lines: Iterable[str],
    config: DecodingConfig,
    device: torch.device | str,
    buffer: int = 1024,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[str]:
    """`translate` for lines that may never end: reads `buffer` of them, yields their translations.

    With a buffer of 1 each line is answered before the next one is read. Where reading raises an
    InputError, the lines before it are answered first.
    """
    translator = _Translator(model, tokenizers, config, device, warn)
    for block in _blocks(lines, buffer):
        yield from translator.translate(block, lambda count: None)


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


class _Translator:
    """The work of `translate`; counts the lines it has seen, to name them in warnings."""

    def __init__(
        self,
        model: Transformer,
        tokenizers: Tokenizers,
        config: DecodingConfig,
        device: torch.device | str,
        warn: Callable[[str], None],
    ) -> None:
        self.model = model
        self.tokenizers = tokenizers
        self.config = config
        self.device = torch.device(device)
        self.warn = warn
        self.seen = 0
        target = tokenizers.target
        self.banned = (*target.never_text, *(() if config.unknown else (target.unk_id,)))

    def translate(self, lines: Sequence[str], progress: Callable[[int], None]) -> list[str]:
        pieces = self._encode(lines)
        longest_first = sorted(
            (i for i, ids in enumerate(pieces) if ids), key=lambda i: -len(pieces[i])
        )
        translations = [""] * len(lines)
        progress(len(lines) - len(longest_first))
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in self._batches(longest_first, pieces):
                hypotheses = self._search([pieces[i] for i in batch])
                texts = self.tokenizers.target.decode(hypotheses)
                for i, text in zip(batch, texts, strict=True):
                    translations[i] = text
                progress(len(batch))
        finally:
            self.model.train(was_training)
        return translations

    def _encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Source ids of each line with the end token; none at all for one of white space."""
        longest = self.model.config.max_positions
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
            stop = start + max(1, self.config.batch_tokens // max(longest, self._hypotheses))
            yield longest_first[start:stop]
            start = stop

    @property
    def _hypotheses(self) -> int:
        """Of a sentence, at the same time."""
        masked = isinstance(self.model, CMLM)
        return 2 * self.config.length_window + 1 if masked else self.config.beam

    def _search(self, batch: list[list[int]]) -> list[list[int]]:
        lengths = torch.tensor([len(ids) for ids in batch])
        padded = torch.full((len(batch), int(lengths.max())), self.tokenizers.source.pad_id)
        for row, ids in zip(padded, batch, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        source = padded.to(self.device, non_blocking=True)
        limits = lengths * self.config.max_length_ratio + self.config.max_length_extra
        limits = limits.long().clamp(max=self.model.config.max_positions)
        if isinstance(self.model, CMLM):
            return self._mask_predict(self.model, source, lengths, limits)
        return self._beam_search(source, lengths, limits)

    def _beam_search(self, source: Tensor, lengths: Tensor, limits: Tensor) -> list[list[int]]:
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
            max_lengths=limits,
            banned=self.banned,
        ).tokens

    def _mask_predict(
        self, model: CMLM, source: Tensor, lengths: Tensor, limits: Tensor
    ) -> list[list[int]]:
        return mask_predict(
            model,
            source,
            lengths,
            passes=self.config.passes,
            # The end of sentence takes a position too.
            max_lengths=limits.clamp(max=model.config.max_positions - 1),
            length_window=self.config.length_window,
            remove_duplicates=self.config.remove_duplicates,
            reconsider=self.config.reconsider,
            banned=self.banned,
        ).tokens
