"""The demo's table in docs/figures.md, from the `table.csv` that a demo leaves.

make demo && python -m benchmarks.demo demo-out
"""

import csv
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from fastkd.bench.record import Machine, this_machine
from fastkd.tables import markdown_table

RESULTS = Path(__file__).resolve().parent / "results" / "demo"
TABLE, MACHINE = RESULTS / "table.csv", RESULTS / "machine.json"
_HEADER = ("model", "parameters", "BLEU", "chrF", "training")


def body() -> str:
    """What stands between the markers."""
    if not TABLE.is_file():
        return "Its recipes have changed since it was last recorded: no figures."
    with TABLE.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    machine = Machine(**json.loads(MACHINE.read_text(encoding="utf-8")))
    lines = [
        (
            row["model"],
            f"{int(row['parameters']) / 1e6:.2f} M",
            f"{float(row['bleu']):.1f}",
            f"{float(row['chrf']):.1f}",
            f"{float(row['training_seconds']):.0f} s",
        )
        for row in rows
    ]
    seconds = sum(float(row["training_seconds"]) for row in rows)
    where = f"{machine.where('cpu')}; {seconds / 60:.1f} minutes of training in all, one seed."
    return f"{where}\n\n{markdown_table(_HEADER, lines)}"


def record(folder: Path) -> None:
    """Keeps the table of a demo that ended on this machine just now, at this commit."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "table.csv", TABLE)
    machine = asdict(this_machine(torch.device("cpu")))
    MACHINE.write_text(json.dumps(machine, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from benchmarks.readme import pages

    record(Path(sys.argv[1]))
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
