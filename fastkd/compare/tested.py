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
Entry = dict[str, Any]
Way = tuple[str, str]  # how translations of any kind were made and scored; its kind's own search


@dataclass(frozen=True)
class Tested:
    """Scores of runs on a split, all made in one way.

    entries: by the runs' names; none where the scored runs have no way in common
    scored: whether any run has scores
    """

    split: str
    entries: Mapping[str, Entry]
    scored: bool

    @classmethod
    def of(cls, methods: Sequence[Method], split: str) -> "Tested":
        """Of those ways that all scored runs have in common, the first run's last one.

        One way is one `decoding`, engine, type of computation, BLEU signature and text; of
        `decoding`, an autoregressive and a masked model have only `unknown` in common.
        """
        runs = {run.name: run for method in methods for run in method.runs}
        ways = {name: found for name, run in runs.items() if (found := _ways(run, split))}
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
                entries = {
                    name: entry
                    for name, found in ways.items()
                    for way, entry in found.items()
                    if way == chosen[runs[name].config.model.kind]
                }
                return cls(split, entries, True)
        return cls(split, {}, bool(ways))

    def mean(self, method: Method, key: str) -> Mean | None:
        """Of a method's scored runs."""
        return Mean.of(
            self.entries[run.name][key] for run in method.runs if run.name in self.entries
        )

    @property
    def remark(self) -> str:
        if not self.scored:
            return f"fastkd score RUN {self.split} adds scores on {self.split}"
        if not self.entries:
            return (
                f"{self.split}: the runs were scored by different searches or BLEU signatures, or"
                f" on different texts; fastkd score RUN {self.split}, with the same options for"
                " each, adds scores that compare"
            )
        signature = next(iter(self.entries.values())).get("bleu_signature")
        return f"{self.split}: by fastkd score, {signature}"


def _ways(run: Facts, split: str) -> dict[Way, Entry]:
    """A run's scores by how they were made, the latest last."""
    found: dict[Way, Entry] = {}
    for entry in run.scores(split):
        kept = entry.get("decoding")
        decoding = asdict(DecodingConfig()) | (kept if isinstance(kept, dict) else {})
        general = [
            entry.get(key) for key in ("engine", "compute_type", "bleu_signature", "text_sha256")
        ]
        search = [decoding[key] for key in _SEARCH[run.config.model.kind]]
        way = json.dumps([*general, decoding["unknown"]]), json.dumps(search)
        found.pop(way, None)
        found[way] = entry
    return found
