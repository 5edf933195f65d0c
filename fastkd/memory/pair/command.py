"""What `fastkd memory` says of a Transformers pair."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from fastkd.errors import InputError
from fastkd.memory.pair.config import PairConfig
from fastkd.memory.resident import child_environment
from fastkd.memory.step.command import UNMEASURED, Watch, compared, of_processes, unwatched
from fastkd.memory.step.fit import available, needed
from fastkd.memory.step.report import StepMemory
from fastkd.memory.step.search import ENOUGH
from fastkd.memory.step.tables import step_tables
from fastkd.tables import Table, size


@dataclass(frozen=True)
class PairQuestion:
    config: PairConfig
    device: torch.device | None  # None: predict for a GPU of `capacity`
    capacity: int | None
    largest: bool = True
    plot: Path | None = None
    snapshot: Path | None = None


def answer(question: PairQuestion, watch: Watch = unwatched) -> Iterator[str | Table]:
    """Tables and lines for a terminal, one after another as they are known.

    `watch` opens a count of the steps that are predicted between two of them.
    """
    config, device, plot = question.config, question.device, question.plot
    pair = config.pair()
    kind = "cpu" if device is not None and device.type == "cpu" else "cuda"
    with watch("steps predicted") as progress:
        predicted = pair.predicted(kind)
        progress(1)
    memory, remark = predicted, f"Predicted{of_processes(config.processes, config.sharding)}."
    if device is not None and config.processes == 1:
        measured = _in_own_process(config) if kind == "cpu" else None
        memory = measured or pair.measured(device, question.snapshot)
        remark = compared(predicted, memory)
    target = config.target_length or config.length
    shape = f"{config.batch} sentences of {config.length} and {target} pieces"
    yield f"{config.accumulation} × {shape}. {remark}"
    title = "Memory of a training step"
    columns = [(f"batch {config.batch}", memory)]
    yield from step_tables(title, columns)
    if device is None:
        yield UNMEASURED
    if plot is not None:
        from fastkd.memory.step.plots import plot_timeline

        plot_timeline(columns, title, plot)
        yield f"timeline: {plot}"
    if question.largest:
        capacity = question.capacity or available(device)
        with watch("steps predicted for the largest batch") as progress:
            known = {config.batch: needed(predicted)}
            found = pair.largest(capacity, kind, known, progress)
        yield _found(found, capacity)


def _found(found: int | None, capacity: int) -> str:
    if found is None:
        return f"Not even one sentence is predicted to fit into {size(capacity)}."
    if found >= ENOUGH:
        return f"batch = {ENOUGH:,} or more is predicted to fit into {size(capacity)}."
    return f"Largest batch predicted to fit into {size(capacity)}: batch = {found:,}."


def _in_own_process(config: PairConfig) -> StepMemory:
    """Measured on the CPU in a new process, so that resident memory tells of it alone."""
    done = subprocess.run(
        [sys.executable, "-m", "fastkd.memory.pair.command"],
        input=json.dumps(_adapter().dump_python(config, mode="json")),
        capture_output=True,
        text=True,
        env=child_environment(torch.get_num_threads()),
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        if lines[-1].startswith(_REFUSED):
            raise InputError(lines[-1].removeprefix(_REFUSED))
        raise RuntimeError(f"the measured step failed: {lines[-1]}")
    return StepMemory.from_plain(json.loads(done.stdout.splitlines()[-1]))


_REFUSED = "refused: "


def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(PairConfig)


def main() -> None:
    config: PairConfig = _adapter().validate_python(json.loads(sys.stdin.read()))
    try:
        print(json.dumps(config.pair().measured().plain()))
    except InputError as error:
        sys.exit(f"{_REFUSED}{error}")


if __name__ == "__main__":
    main()
