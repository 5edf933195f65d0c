"""A memory snapshot that PyTorch recorded on a GPU, as a profile tells it.

Source of the format: torch/cuda/_memory_viz.py and `torch.cuda.memory._dump_snapshot`.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastkd.errors import InputError
from fastkd.memory.profiling import MemoryProfile, summarised
from fastkd.memory.tracker import Block
from fastkd.reading import open_file

_EARLIER = "before the recording"
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
    found = _loaded(Path(file))
    try:
        traces, segments = found["device_traces"], found["segments"]
        trace = traces[device] if device < len(traces) else []
        blocks, time = _lives(trace, [s for s in segments if s.get("device", 0) == device], device)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: no snapshot of PyTorch's CUDA memory: lacks {error}") from None
    if not blocks:
        raise InputError(f"{file}: nothing was recorded of device {device}")
    return summarised(blocks, time)


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
        alive[address] = Block(size, where, time, (_EARLIER,), "alloc", "forward")
        blocks.append(alive[address])
        time += 1
    for entry in trace:
        address = entry["addr"]
        if entry["action"] == "alloc":
            place, phase = _place(entry.get("frames", ()))
            alive[address] = Block(entry["size"], where, time, (place,), "alloc", phase)
            blocks.append(alive[address])
            time += 1
        elif entry["action"] == "free_completed" and address in alive:
            alive.pop(address).death = time
            time += 1
    return blocks, time


def _place(frames: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Line and phase of an allocation; frames are given from the innermost."""
    files = [str(frame["filename"]).replace("\\", "/") for frame in frames]
    phase = "forward"
    if any("/torch/optim/" in file for file in files):
        phase = "optimizer"
    elif any("/torch/autograd/" in f for f in files) or any(
        str(frame["name"]) == "backward" for frame in frames
    ):
        phase = "backward"
    for file, frame in zip(files, frames, strict=True):
        if file.endswith(".py") and not any(part in file for part in _PASSING):
            return f"{Path(file).name}:{frame['line']} {frame['name']}", phase
    return _NOWHERE, phase
