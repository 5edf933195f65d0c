"""How methods translate a split, and whether chance explains what the first one differs by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastkd.compare.methods import Method
from fastkd.data.text import read_pairs, text_file
from fastkd.decode.score import compare, score
from fastkd.errors import InputError
from fastkd.runs.scores import bleu_tokenizer_of
from fastkd.runs.translation import translate_split


@dataclass(frozen=True)
class Verdict:
    """A method on a split; figures of the runs' translations taken together as one long text.

    interval: half of BLEU's 95 % one by the paired bootstrap over sentences
    p: of a difference in BLEU as large as that to the first method, were both equally good
    """

    title: str
    bleu: float
    chrf: float
    interval: float | None = None
    p: float | None = None


def sentences(methods: Sequence[Method], split: str) -> int:
    """How many `verdicts` translates."""
    data = methods[0].first.config.data
    prefix = getattr(data, split)
    if prefix is None:
        raise InputError(f"{methods[0].first.folder.config_file}: data.{split}: names no corpus")
    lines = sum(
        1 for _ in read_pairs(text_file(prefix, data.source), text_file(prefix, data.target))
    )
    return lines * len(methods) * _runs_each(methods)


def _runs_each(methods: Sequence[Method]) -> int:
    return min(len(method.runs) for method in methods)


def verdicts(
    methods: Sequence[Method],
    split: str,
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> list[Verdict]:
    """Of each method, by as many of its runs as all methods have.

    progress: called with the number of sentences that were translated since its last call

    Raises InputError where the methods' references are not the same.
    """
    runs = _runs_each(methods)
    tokenizer = bleu_tokenizer_of(methods[0].first.folder)
    found: list[Verdict] = []
    first: list[str] = []
    expected: list[str] = []
    for method in methods:
        lines: list[str] = []
        references: list[str] = []
        for run in method.runs[:runs]:
            ours, theirs = translate_split(run.folder, split, device=device, progress=progress)
            lines += ours
            references += theirs
        if not found:
            first, expected = lines, references
        elif references != expected:
            raise InputError(
                f"{method.first.name}: its {split} text is not that of {methods[0].first.name}"
            )
        scores = score(lines, references, tokenizer)
        verdict = Verdict(method.title, scores.bleu, scores.chrf)
        if found:
            bleu = compare(first, lines, references, tokenizer)[0]
            verdict = Verdict(method.title, scores.bleu, scores.chrf, bleu.system_interval, bleu.p)
        found.append(verdict)
    return found
