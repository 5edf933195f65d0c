"""Which of the scores that `fastkd score` kept may stand beside each other."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastkd.compare.facts import Facts
from fastkd.compare.methods import Mean, Method
from fastkd.config.tree import DecodingConfig

_SEARCH = {  # the settings of `decoding` that change what a kind of model writes
    "transformer": ("beam", "length_penalty", "max_length_ratio", "max_length_extra"),
    "cmlm": ("passes", "length_window", "remove_duplicates", "reconsider"),
}
_GENERAL = ("engine", "compute_type", "bleu_signature")
_TEXT = "text_sha256"  # which entries of old lack
Entry = dict[str, Any]
Way = tuple[str, str]  # how translations of any kind were made and scored; its kind's own search


@dataclass(frozen=True)
class Tested:
    """Scores of runs on a split, all made in one way.

    entries: by the runs' names; none where the scored runs have no way in common
    scored: whether any run has scores
    unnoted: where they would have one if texts did not count, the runs whose texts nobody noted
    """

    split: str
    entries: Mapping[str, Entry]
    scored: bool
    unnoted: Sequence[str] = ()

    @classmethod
    def of(cls, methods: Sequence[Method], split: str) -> "Tested":
        """Of those ways that all scored runs have in common, the first run's last one.

        One way is one `decoding`, engine, type of computation, BLEU signature and text; of
        `decoding`, an autoregressive and a masked model have only `unknown` in common.
        """
        runs = {run.name: run for method in methods for run in method.runs}
        if entries := _alike(runs, split):
            return cls(split, entries, True)
        whatever = _alike(runs, split, texts=False)
        unnoted = [name for name, entry in whatever.items() if entry.get(_TEXT) is None]
        return cls(split, {}, any(run.scores(split) for run in runs.values()), unnoted)

    def mean(self, method: Method, key: str) -> Mean | None:
        """Of a method's scored runs."""
        return Mean.of(
            self.entries[run.name][key] for run in method.runs if run.name in self.entries
        )

    @property
    def remark(self) -> str:
        if not self.scored:
            return f"fastkd score RUN {self.split} adds scores on {self.split}"
        if self.unnoted:
            return (
                f"{self.split}: {', '.join(self.unnoted)}: scored before texts were noted; score"
                f" again: fastkd score RUN {self.split}"
            )
        if not self.entries:
            return (
                f"{self.split}: the runs were scored by different searches or BLEU signatures, or"
                f" on different texts; fastkd score RUN {self.split}, with the same options for"
                " each, adds scores that compare"
            )
        signature = next(iter(self.entries.values())).get("bleu_signature")
        return f"{self.split}: by fastkd score, {signature}"


def _alike(runs: Mapping[str, Facts], split: str, texts: bool = True) -> dict[str, Entry]:
    """Scored runs' entries of the way that all of them have in common; none where there is none.

    texts: whether the same text belongs to it
    """
    ways = {name: found for name, run in runs.items() if (found := _ways(run, split, texts))}
    by_kind: dict[str, list[dict[Way, Entry]]] = {}
    for name, found in ways.items():
        by_kind.setdefault(runs[name].config.model.kind, []).append(found)
    shared = {
        kind: [way for way in reversed(first) if all(way in other for other in others)]
        for kind, (first, *others) in by_kind.items()
    }
    for general, _ in next(iter(shared.values()), []):
        chosen = {
            kind: next((way for way in found if way[0] == general), None)
            for kind, found in shared.items()
        }
        if None not in chosen.values():
            return {
                name: entry
                for name, found in ways.items()
                for way, entry in found.items()
                if way == chosen[runs[name].config.model.kind]
            }
    return {}


def _ways(run: Facts, split: str, texts: bool) -> dict[Way, Entry]:
    """A run's scores by how they were made, the latest last."""
    found: dict[Way, Entry] = {}
    for entry in run.scores(split):
        kept = entry.get("decoding")
        decoding = asdict(DecodingConfig()) | (kept if isinstance(kept, dict) else {})
        general = [entry.get(key) for key in (*_GENERAL, *([_TEXT] if texts else []))]
        search = [decoding[key] for key in _SEARCH[run.config.model.kind]]
        way = json.dumps([*general, decoding["unknown"]]), json.dumps(search)
        found.pop(way, None)
        found[way] = entry
    return found
