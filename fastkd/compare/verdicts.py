"""How methods translate a split, and whether chance explains what the first one differs by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastkd.compare.methods import Method
from fastkd.data.text import read_pairs, text_file
from fastkd.decode.score import DEFAULT, compare, score
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
    interval: float | None = None  # of the first one, where there is another
    p: float | None = None  # of all but the first


def judged(
    systems: Sequence[tuple[str, Sequence[str]]],
    references: Sequence[str],
    tokenizer: str = DEFAULT,
) -> list[Verdict]:
    """Of systems' translations of the same sentences; the first one is the baseline."""
    (title, baseline), *others = systems
    own = score(baseline, references, tokenizer)
    interval: float | None = None
    found: list[Verdict] = []
    for name, lines in others:
        scores = score(lines, references, tokenizer)
        bleu = compare(baseline, lines, references, tokenizer)[0]
        interval = bleu.baseline_interval
        found.append(Verdict(name, scores.bleu, scores.chrf, bleu.system_interval, bleu.p))
    return [Verdict(title, own.bleu, own.chrf, interval), *found]


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
    systems: list[tuple[str, list[str]]] = []
    expected: list[str] = []
    for method in methods:
        lines: list[str] = []
        references: list[str] = []
        for run in method.runs[: _runs_each(methods)]:
            ours, theirs = translate_split(run.folder, split, device=device, progress=progress)
            lines += ours
            references += theirs
        if systems and references != expected:
            raise InputError(
                f"{method.first.name}: its {split} text is not that of {methods[0].first.name}"
            )
        systems.append((method.title, lines))
        expected = references
    return judged(systems, expected, bleu_tokenizer_of(methods[0].first.folder))
