"""Measures one training step: its tensors, and what the system and the allocator say of it."""

import dataclasses
import gc
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from fastkd.config.load import validate
from fastkd.config.tree import Config, ModelConfig
from fastkd.memory.resident import child_environment, resident, restart_peak
from fastkd.memory.step.others import Others
from fastkd.memory.step.report import StepMemory, summarise
from fastkd.memory.step.training_step import TrainingStep
from fastkd.memory.step.workload import Update, Vocabulary
from fastkd.memory.tracker import Tracker


class Recordable(Protocol):
    """Something that makes an update each time it is called."""

    def __call__(self) -> object: ...

    def label(self, tracker: Tracker) -> None:
        """Tells `tracker` what the tensors are that outlive a step."""


def record_step(tracker: Tracker, step: Recordable, device: str = "cpu") -> StepMemory:
    """The step after the first one, as `tracker` sees it; the first one makes lasting state."""
    step.label(tracker)
    with tracker:
        step()
    gc.collect()
    step.label(tracker)
    start = tracker.time
    tracker.forward_ends.clear()
    with tracker:
        step()
    gc.collect()
    step.label(tracker)
    return summarise(tracker, start, device)


def measure_step(
    config: Config,
    vocabulary: Vocabulary,
    teacher: ModelConfig | None,
    update: Update,
    device: torch.device,
    snapshot: Path | None = None,
) -> StepMemory:
    """A real step. On a CPU also how far the process's resident memory rose over its start.

    On CUDA also the allocator's figures; `snapshot` is a file for PyTorch's memory viewer.
    """
    step = TrainingStep(config, vocabulary, teacher, device).of(update)
    return measured(step, step.modules(), device, snapshot)


def measured(
    step: Recordable, modules: dict[str, nn.Module], device: torch.device, snapshot: Path | None
) -> StepMemory:
    """`step` in earnest, with what the system or the allocator say of it."""
    if device.type == "cuda":
        independent = _cuda_figures(step, device, snapshot)
    else:
        independent = {"resident": _resident_rise(step)}
    return dataclasses.replace(record_step(Tracker(modules), step, device.type), **independent)


def _resident_rise(step: Recordable) -> int:
    step()
    restart_peak()
    before = resident()[0]
    step()
    return resident()[1] - before


def _cuda_figures(step: Recordable, device: torch.device, snapshot: Path | None) -> dict[str, Any]:
    """Without what PyTorch's allocator of this process held before.

    "device in use" has what other processes hold, and this one outside of that allocator.
    """
    others = Others.beside(step, device)
    step()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    if snapshot is not None:
        torch.cuda.memory._record_memory_history(max_entries=1_000_000)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    if snapshot is not None:
        torch.cuda.memory._dump_snapshot(str(snapshot))
        torch.cuda.memory._record_memory_history(enabled=None)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocator": {
            "allocated before": before - others.allocated,
            "peak allocated": torch.cuda.max_memory_allocated(device) - others.allocated,
            "peak reserved": torch.cuda.max_memory_reserved(device) - others.reserved,
            "device in use": total - free - others.reserved,
            "device total": total,
        }
    }


@dataclass(frozen=True)
class Request:
    """A measurement as it is handed to a process of its own."""

    config: Config
    vocabulary: tuple[int, int]  # pieces of source and target
    teacher: ModelConfig | None
    update: Update

    def dump(self) -> str:
        from pydantic import TypeAdapter

        return json.dumps(
            {
                "config": TypeAdapter(Config).dump_python(self.config, mode="json"),
                "vocabulary": self.vocabulary,
                "teacher": TypeAdapter(ModelConfig | None).dump_python(self.teacher, mode="json"),
                "source_lengths": self.update.source_lengths.tolist(),
                "target_lengths": self.update.target_lengths.tolist(),
            }
        )

    @classmethod
    def load(cls, text: str) -> "Request":
        import numpy as np
        from pydantic import TypeAdapter

        tree = json.loads(text)
        lengths = (np.array(tree[f"{side}_lengths"], np.int64) for side in ("source", "target"))
        return cls(
            validate(tree["config"], "config"),
            tuple(tree["vocabulary"]),
            TypeAdapter(ModelConfig | None).validate_python(tree["teacher"]),
            Update(*lengths),
        )


def measure_in_own_process(
    config: Config, vocabulary: Vocabulary, teacher: ModelConfig | None, update: Update
) -> StepMemory:
    """`measure_step` on the CPU in a new process, so that resident memory tells of it alone."""
    sizes = (vocabulary.source.size, vocabulary.target.size)
    done = subprocess.run(
        [sys.executable, "-m", "fastkd.memory.step.measure"],
        input=Request(config, sizes, teacher, update).dump(),
        capture_output=True,
        text=True,
        env=child_environment(torch.get_num_threads()),
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise RuntimeError(f"the measured step failed: {lines[-1]}")
    return StepMemory.from_plain(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    request = Request.load(sys.stdin.read())
    memory = measure_step(
        request.config,
        Vocabulary.of_sizes(*request.vocabulary),
        request.teacher,
        request.update,
        torch.device("cpu"),
    )
    print(json.dumps(memory.plain()))


if __name__ == "__main__":
    main()
