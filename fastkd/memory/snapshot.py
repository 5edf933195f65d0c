"""A memory snapshot that PyTorch recorded on a GPU, as a profile tells it.

Source of the format: torch/cuda/_memory_viz.py and `torch.cuda.memory._dump_snapshot`.
"""

import itertools
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkd.errors import InputError
from fastkd.memory.profiling import MemoryProfile, summarised
from fastkd.memory.tracker import Block
from fastkd.reading import open_file

if TYPE_CHECKING:
    from fastkd.memory.step.report import StepMemory

_EARLIER = "before the recording"
_KEPT = {"before": _EARLIER, "backward": "gradients", "optimizer": "optimizer"}
_NOWHERE = "outside Python"
# Code that only passes a call on, or asks for memory on behalf of who called it.
_PASSING = ("/torch/", "<frozen", "<string>", "<__array_function__")


def read_snapshot(file: str | Path, device: int = 0) -> MemoryProfile:
    """What `torch.cuda.memory._dump_snapshot(file)` wrote, of one GPU, by the lines that allocated.

    A place is the innermost line of Python outside of PyTorch that an allocation came from, with
    `backward` or `optimizer` where it came from there. What was there when the recording began,
    and did not end in it, is a place of its own. Blocks count as the allocator rounds them.

    Raises InputError for what is no such file.
    """
    found = _recording(Path(file), device)
    return summarised(found.blocks, found.time)


def recorded_step(file: str | Path, device: int = 0) -> "StepMemory":
    """The same recording as `fastkd memory` tells a step: its table and its timeline.

    What backward passes made and the recording never freed counts as gradients, what the optimizer
    made and kept as its state.
    """
    from fastkd.memory.step.report import summarise

    return summarise(_recording(Path(file), device), 0, "cuda")


@dataclass
class _Recording:
    blocks: list[Block]  # in the order of their births
    time: int  # births and deaths
    forward_ends: list[int]


def _recording(file: Path, device: int) -> _Recording:
    found = _loaded(file)
    try:
        traces, segments = found["device_traces"], found["segments"]
        trace = traces[device] if device < len(traces) else []
        blocks, time = _lives(trace, [s for s in segments if s.get("device", 0) == device], device)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: no snapshot of PyTorch's CUDA memory: lacks {error}") from None
    if not blocks:
        raise InputError(f"{file}: nothing was recorded of device {device}")
    for block in blocks:
        if block.phase == "before" or (block.death is None and block.phase in _KEPT):
            block.label = _KEPT[block.phase]
    turns = itertools.pairwise(block for block in blocks if block.phase != "before")
    ends = [two.birth for one, two in turns if (one.phase, two.phase) == ("forward", "backward")]
    return _Recording(blocks, time, ends)


class _Plain(pickle.Unpickler):
    """Reads lists, mappings, numbers and words; a snapshot holds nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"holds {module}.{name}")


def _loaded(path: Path) -> Mapping[str, Any]:
    try:
        with open_file(path) as file:
            found = _Plain(file).load()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except Exception as error:  # whatever a damaged pickle leads to
        raise InputError(f"{path}: no snapshot of PyTorch's CUDA memory: {error}") from None
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: no snapshot of PyTorch's CUDA memory")
    return found


def _lives(
    trace: Sequence[Mapping[str, Any]], segments: Sequence[Mapping[str, Any]], device: int
) -> tuple[list[Block], int]:
    """Blocks in the order of their births, and how many births and deaths there were."""
    where, alive, blocks = f"cuda:{device}", {}, []
    earlier: dict[int, int] = {}  # sizes of what was allocated before the recording, by address
    seen: set[int] = set()
    for entry in trace:
        if entry["action"] == "free_completed" and entry["addr"] not in seen:
            earlier[entry["addr"]] = entry["size"]
        if entry["action"] in ("alloc", "free_completed"):
            seen.add(entry["addr"])
    for segment in segments:
        address = segment["address"]
        for block in segment["blocks"]:
            address = block.get("address", address)
            if block["state"] == "active_allocated" and address not in seen:
                earlier[address] = block["size"]
            address += block["size"]
    time = 0
    for address, size in earlier.items():
        alive[address] = Block(size, where, time, (_EARLIER,), "alloc", "before")
        blocks.append(alive[address])
        time += 1
    told = any(entry.get("frames") for entry in trace)
    for entry in trace:
        address = entry["addr"]
        if entry["action"] == "alloc":
            place, phase = _place(entry.get("frames", ()), told)
            alive[address] = Block(entry["size"], where, time, (place,), "alloc", phase)
            blocks.append(alive[address])
            time += 1
        elif entry["action"] == "free_completed" and address in alive:
            alive.pop(address).death = time
            time += 1
    return blocks, time


def _place(frames: Sequence[Mapping[str, Any]], told: bool) -> tuple[str, str]:
    """Line and phase of an allocation; frames are given from the innermost.

    Backward passes run in threads of PyTorch's, which no Python is in: what has no frames, where
    others have some, comes from there.
    """
    files = [str(frame["filename"]).replace("\\", "/") for frame in frames]
    phase = "forward" if frames or not told else "backward"
    if any("/torch/optim/" in file for file in files):
        phase = "optimizer"
    elif any("/torch/autograd/" in f for f in files) or any(
        str(frame["name"]) == "backward" or "autograd::Engine" in str(frame["name"])
        for frame in frames
    ):
        phase = "backward"
    for file, frame in zip(files, frames, strict=True):
        if file.endswith(".py") and not any(part in file for part in _PASSING):
            return f"{Path(file).name}:{frame['line']} {frame['name']}", phase
    return _NOWHERE, phase
