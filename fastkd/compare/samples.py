"""The same sentences by several runs, with what differs from the reference marked."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastkd.compare.methods import Method
from fastkd.data.text import read_pairs, text_file
from fastkd.runs.translation import translate_lines

Marked = list[tuple[str, bool]]  # text, and whether the reference has other words there


@dataclass(frozen=True)
class Sample:
    source: str
    reference: str
    translations: list[Marked]  # one a method


def samples_of(
    methods: Sequence[Method],
    number: int,
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> list[Sample]:
    """The first `number` sentences of the first method's dev text by each method's first run.

    progress: called with the number of methods whose translations were made since its last call
    """
    data = methods[0].first.config.data
    pairs = read_pairs(text_file(data.dev, data.source), text_file(data.dev, data.target))
    chosen = [pair for pair, _ in zip(pairs, range(number), strict=False)]
    sources = [source for source, _ in chosen]
    columns = []
    for method in methods:
        columns.append(list(translate_lines(method.first.folder, sources, device=device)))
        if progress:
            progress(1)
    return [
        Sample(source, target, [marked(column[row], target) for column in columns])
        for row, (source, target) in enumerate(chosen)
    ]


def marked(translation: str, reference: str) -> Marked:
    """The translation in stretches of words, each with whether the reference lacks them there.

    Text without spaces is compared by characters.
    """
    spaced = " " in reference
    ours, theirs = (text.split() if spaced else list(text) for text in (translation, reference))
    matcher = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    glue = " " if spaced else ""
    return [
        (glue.join(ours[begin:end]), tag != "equal")
        for tag, _, _, begin, end in matcher.get_opcodes()
        if begin < end
    ]
