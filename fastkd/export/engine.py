"""Search by CTranslate2 in place of our own, and what quantized weights are worth on a machine."""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastkd.config.tree import DecodingConfig
from fastkd.decode.beam import Hypotheses, Hypothesis
from fastkd.decode.score import score
from fastkd.decode.translate import OwnSearch, Translator
from fastkd.errors import InputError
from fastkd.export.ctranslate2 import export_ctranslate2
from fastkd.files import temporary_folder
from fastkd.runs.folder import RunFolder, Weights

MKL = "CT2_USE_MKL"
TRIED = 40  # lines
CLOSE = 90.0  # BLEU between two ways of computing, below which they are told to differ


class CTranslate2Search:
    """A run's search as CTranslate2 does it, on the CPU or a GPU.

    compute_type: "float32" gives the translations of our own search; "int8" is faster and near
        them. A hypothesis that may have been ended by its limit is searched again by our own.
    folder: an export of the run; None makes a temporary one
    weights: those of the checkpoint, where they are read already
    """

    def __init__(
        self,
        run: RunFolder,
        config: DecodingConfig,
        checkpoint: str = "best",
        device: torch.device | str = "cpu",
        compute_type: str = "float32",
        folder: Path | None = None,
        weights: Weights | None = None,
    ) -> None:
        if run.config.model.kind != "transformer":
            raise InputError("--engine ctranslate2: expected a model of kind transformer")
        if compute_type.startswith("int8"):
            prefer_right_products()
        self.run, self.config = run, config
        self._weights = weights or run.read_weights(checkpoint)  # one reading for both searches
        self.device = torch.device(device)
        self.tokenizers = run.tokenizers
        self.max_positions = run.config.model.max_positions
        self.width = config.beam
        self._own: OwnSearch | None = None
        if folder is not None:
            self._translator = _loaded(folder, self.device, compute_type)
        else:
            with temporary_folder(Path(tempfile.gettempdir()), "fastkd") as temporary:
                made = temporary / "model"
                export_ctranslate2(run, made, weights=self._weights)
                self._translator = _loaded(made, self.device, compute_type)
        target = self.tokenizers.target
        self._ids = {target.piece(index): index for index in range(target.size)}
        self._never = [[target.piece(index)] for index in target.never_text]

    def __call__(self, batch: list[list[int]], limits: list[int], n_best: int) -> Hypotheses:
        piece = self.tokenizers.source.piece
        results = self._translator.translate_batch(
            [[piece(index) for index in row[:-1]] for row in batch],
            beam_size=self.config.beam,
            num_hypotheses=n_best,
            length_penalty=self.config.length_penalty,
            max_decoding_length=max(limits),
            min_decoding_length=0,  # it gives the end's probability to the others otherwise
            max_input_length=0,
            disable_unk=not self.config.unknown,
            suppress_sequences=self._never,
            return_scores=True,
        )
        lists = [
            [
                Hypothesis([self._ids[piece] for piece in row], float(value))
                for row, value in zip(result.hypotheses, result.scores, strict=True)
            ]
            for result in results
        ]
        ended = [
            place
            for place, (found, limit) in enumerate(zip(lists, limits, strict=True))
            if any(len(hypothesis.tokens) + 1 >= limit for hypothesis in found)
        ]
        if ended:
            again = self._own_search()(
                [batch[place] for place in ended], [limits[place] for place in ended], n_best
            )
            for place, found in zip(ended, again.lists, strict=True):
                lists[place] = found
        return Hypotheses(lists)

    def _own_search(self) -> OwnSearch:
        if self._own is None:
            model = self.run.load_model(device=self.device, weights=self._weights)
            self._own = OwnSearch(model, self.tokenizers, self.config, self.device)
        return self._own


@dataclass(frozen=True)
class Trial:
    """Translations of some lines by a quantized model beside those in float32."""

    lines: int
    equal: int
    bleu: float  # of the one against the other

    def __str__(self) -> str:
        return (
            f"{self.equal} of {self.lines} lines translated as in float32, "
            f"BLEU {self.bleu:.1f} against each other"
        )

    @property
    def close(self) -> bool:
        return self.bleu >= CLOSE


def try_export(
    run: RunFolder, folder: Path, lines: Sequence[str], checkpoint: str = "best"
) -> Trial:
    """What an export in `folder` makes of lines on this machine, beside float32."""
    config = run.config.decoding
    texts = []
    for where, kind in ((None, "float32"), (folder, "default")):
        search = CTranslate2Search(run, config, checkpoint, "cpu", kind, where)
        found = Translator(run.tokenizers, search, config, lambda text: None).translate(lines)
        texts.append([best.text for best, *_ in found])
    plain, quantized = texts
    equal = sum(one == other for one, other in zip(plain, quantized, strict=True))
    bleu = 100.0 if plain == quantized else score(quantized, plain).bleu
    return Trial(len(lines), equal, bleu)


def far_apart(trial: Trial, quantization: str) -> str:
    """A warning of a trial that was not close: the cause, and what there is to be done."""
    cause = "the quantized weights lose too much for this model"
    remedy = "use float32, or int16"
    if quantization.startswith("int8") and not exact_int8():
        cause = (
            "this processor has no VNNI, without which products of 8-bit numbers saturate in the "
            "library (oneDNN) that CTranslate2 takes here"
        )
        remedy = f"set {MKL}=1 before CTranslate2 is loaded, or use float32"
    return f"{quantization}: {trial}: {cause}; {remedy}"


def prefer_right_products(warn: Callable[[str], None] = lambda text: None) -> None:
    """Where 8-bit products are wrong as CTranslate2 computes them, makes it compute them by MKL.

    It reads the variable when it is loaded, so this comes before that.
    """
    if not exact_int8() and MKL not in os.environ and "ctranslate2" not in sys.modules:
        os.environ[MKL] = "1"


def exact_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies 8-bit numbers without saturating: VNNI, or no x86 at all."""
    try:
        flags = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    found = next((line for line in flags.splitlines() if line.startswith("flags")), "")
    return not found or "vnni" in found


def _loaded(folder: Path, device: torch.device, compute_type: str) -> Any:
    import ctranslate2

    try:
        return ctranslate2.Translator(
            str(folder),
            device=device.type,
            compute_type=compute_type,
            inter_threads=1,
            intra_threads=torch.get_num_threads(),
        )
    except ValueError as error:
        raise InputError(f"--compute-type {compute_type}: {error}") from None
