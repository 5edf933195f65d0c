"""The table of what the sweep over Transformers' classes found, from its files."""

import csv
from collections import Counter
from pathlib import Path

from packaging.version import Version

from benchmarks.models.tiny import TASKS

TEXT = "of text alone"
OUTCOMES = {
    "equal": "the loss is the model's own",
    "different": "it is another",
    "refused": "in one line, below",
    "broken": "by another error",
    "no own loss": "such a model takes other inputs than text, sound or an image",
    "not built": "its configuration does not become small by usual names",
}
_HEAD = """# Which classes of Transformers are served

Each causal, masked and sequence-to-sequence class, speech and images to text too, built small
from the defaults of its configuration: the loss of `Distillation` (cross-entropy, without a
teacher) beside the model's own. Made by `python -m benchmarks.models --table` of the files in this
folder, one for each version of Transformers. Classes of images read one a row, where a form of it
was found that changes the model's loss.
"""


def table(folder: Path) -> str:
    """Markdown of the files `VERSION.csv` in a folder, the newest version first."""
    files = sorted(folder.glob("*.csv"), key=lambda file: Version(file.stem), reverse=True)
    parts = [_HEAD]
    for file in files:
        with file.open(newline="") as opened:
            parts.append(_of_version(file.stem, list(csv.DictReader(opened))))
    return "\n".join(parts)


def _of_version(version: str, rows: list[dict[str, str]]) -> str:
    counts = Counter((row["outcome"], row["task"]) for row in rows)
    lines = [f"## Transformers {version}", ""]
    lines += [f"| | {' | '.join(TASKS)} | |", "|---|" + "---|" * (len(TASKS) + 1)]
    for outcome, meaning in OUTCOMES.items():
        cells = (str(counts[outcome, task]) for task in TASKS)
        lines.append(f"| {outcome} | {' | '.join(cells)} | {meaning} |")
    alone = sorted(row["class"] for row in rows if row["line"] == TEXT)
    if alone:
        lines += ["", f"Of text alone: {', '.join(alone)}."]
    lines += ["", "| class | | |", "|---|---|---|"]
    others = [row for row in rows if row["outcome"] != "equal"]
    for row in sorted(others, key=lambda row: (list(OUTCOMES).index(row["outcome"]), row["class"])):
        line = row["line"].replace("|", "\\|").replace("`", "'")
        lines.append(f"| {row['class']} ({row['task']}) | {row['outcome']} | {line} |")
    return "\n".join([*lines, ""])
