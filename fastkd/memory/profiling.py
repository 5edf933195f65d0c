"""`fastkd.memory.profile`: what rose, where, and what is still held, in one's own code."""

import contextlib
import gc
import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch import nn

from fastkd.errors import InputError
from fastkd.memory.scopes import loss_of
from fastkd.memory.tracker import Block, Tracker, running_total
from fastkd.tables import size, text_table

if TYPE_CHECKING:
    from fastkd.memory.pair.pair import Pair, PairMemory


@dataclass(frozen=True)
class Use:
    """What one place in the code took."""

    place: str  # module or loss, and the phase
    peak: int  # at most at one time
    at_peak: int  # at the moment of the whole peak
    held: int  # at the end


@dataclass(frozen=True)
class MemoryProfile:
    """Memory that tensors took over what was there before, in bytes, of one device."""

    device: str
    peak: int
    peak_place: str
    peak_operation: str
    held: int
    uses: tuple[Use, ...]  # largest at the peak first
    allocator_peak: int | None = None  # CUDA: rise of max_memory_allocated

    def __str__(self) -> str:
        lines = [
            f"{self.device}: rose by {size(self.peak)} at most, in {self.peak_operation} of "
            f"{self.peak_place}; {size(self.held)} still held"
        ]
        if self.allocator_peak is not None:
            lines.append(f"by the allocator's count it rose by {size(self.allocator_peak)}")
        uses = [(use.place, size(use.at_peak), size(use.peak), size(use.held)) for use in self.uses]
        lines.append(text_table(("", "at peak", "own peak", "held"), uses))
        return "\n".join(lines)


@overload
def profile(pair: "Pair", /, *, device: str = "cpu") -> "PairMemory": ...


@overload
def profile(
    modules: Mapping[str, nn.Module] | None = None,
    show: Callable[[MemoryProfile], None] | None = None,
) -> "Profiling": ...


def profile(
    modules: "Mapping[str, nn.Module] | Pair | None" = None,
    show: Callable[[MemoryProfile], None] | None = None,
    *,
    device: str | None = None,
) -> "Profiling | PairMemory":
    """Watches the tensors made inside, as a context manager or a decorator.

        with fastkd.memory.profile({"model": model}) as memory:
            loss = step(batch)
        print(memory.result)

        @fastkd.memory.profile({"model": model})
        def step(batch): ...

    modules: named roots whose parts give places their names; others go by their class
    show: takes the `MemoryProfile` at the end; a decorated function prints it where not given

    `result` is the `MemoryProfile` of the device on which most was taken. Tensors that were there
    before do not count, nor does what an operator takes and gives back inside, nor code compiled
    by `torch.compile`; on CUDA `allocator_peak` counts those too.

    Of a `Pair` it is its training step, predicted for `device`, "cpu" (the default) or "cuda", and
    measured:

        found = fastkd.memory.profile(fastkd.memory.Pair(student, losses, teacher, batch=16))
        print(found)  # a table; found.predicted.peak, found.measured.peak, found.apart

    Raises InputError for anything else, and for `show` with a Pair or `device` without one.
    """
    if modules is None or isinstance(modules, Mapping):
        if device is not None:
            raise InputError("device: expected with a Pair; what runs inside chooses its own")
        return Profiling(modules, show)
    if isinstance(modules, nn.Module) or not hasattr(modules, "profiled"):
        called = "; as a decorator, @profile()" if inspect.isroutine(modules) else ""
        raise InputError(
            'modules: expected a mapping from names to modules, such as {"model": model}, or a '
            f"Pair, not {type(modules).__name__}{called}"
        )
    if show is not None:
        raise InputError("show: expected without a Pair, whose memory is what profile returns")
    return modules.profiled("cpu" if device is None else device)


class Profiling(contextlib.ContextDecorator):
    """A context manager and decorator; see `profile`."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module] | None = None,
        show: Callable[[MemoryProfile], None] | None = None,
    ) -> None:
        self.modules = dict(modules or {})
        self.show = show
        self.result: MemoryProfile | None = None

    def __enter__(self) -> "Profiling":
        gc.collect()
        self._cuda_before = None
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
            self._cuda_before = torch.cuda.memory_allocated()
        self._tracker = Tracker(self.modules)
        self._tracker.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._tracker.__exit__(*exception)
        gc.collect()
        allocator = None
        if self._cuda_before is not None:
            allocator = torch.cuda.max_memory_allocated() - self._cuda_before
        self.result = summarised(self._tracker.blocks, self._tracker.time, allocator)
        if self.show is not None:
            self.show(self.result)

    def _recreate_cm(self) -> "Profiling":
        return Profiling(self.modules, self.show or (lambda result: print(result, file=sys.stderr)))


def summarised(lives: Sequence[Block], time: int, allocator: int | None = None) -> MemoryProfile:
    """What blocks add up to over `time` births and deaths, on the device that held the most."""
    by_device: dict[str, list[Block]] = defaultdict(list)
    for block in lives:
        by_device[block.device.partition(":")[0]].append(block)
    curves = {device: running_total(own, time) for device, own in by_device.items()}
    device = max(curves, key=lambda name: curves[name].max(), default="cpu")
    blocks, curve = by_device[device], curves.get(device, np.zeros(1, np.int64))
    moment = int(np.argmax(curve))
    by_place: dict[str, list[Block]] = defaultdict(list)
    for block in blocks:
        by_place[_place(block)].append(block)
    uses = [
        Use(
            place,
            int(running_total(own, time).max()),
            sum(block.size for block in own if block.lives(moment)),
            sum(block.size for block in own if block.death is None),
        )
        for place, own in by_place.items()
    ]
    last = max((b for b in blocks if b.lives(moment)), key=lambda b: b.birth, default=None)
    return MemoryProfile(
        device=device,
        peak=int(curve.max()),
        peak_place=_place(last) if last else "nothing",
        peak_operation=last.operation.removeprefix("aten::") if last else "nothing",
        held=int(curve[-1]),
        uses=tuple(sorted(uses, key=lambda use: (-use.at_peak, -use.peak))),
        allocator_peak=allocator if device == "cuda" else None,
    )


def _place(block: Block) -> str:
    scope = loss_of(block.scope) or (block.scope[-1] if block.scope else "outside modules")
    return scope if block.phase in ("forward", "before") else f"{scope}, {block.phase}"
