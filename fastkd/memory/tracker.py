"""The life of every tensor's memory, on any device, real or fake."""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, UntypedStorage, nn
from torch._guards import active_fake_mode
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode
from torch.utils._pytree import tree_leaves

from fastkd.memory.scopes import Scope, Scopes

# What only holds other tensors, whose own operations are the ones to be seen.
_WRAPPERS = {"DTensor", "AsyncCollectiveTensor"}
WHOLE = "whole parameters"


@dataclass(eq=False, slots=True)
class Block:
    """Memory of one storage. Times count births and deaths; `death` is None while it lives."""

    size: int
    device: str
    birth: int
    scope: Scope
    operation: str
    phase: str
    label: str | None = None
    death: int | None = None

    def lives(self, time: int) -> bool:
        return self.birth <= time and (self.death is None or self.death > time)


@dataclass(eq=False, slots=True)
class _Unit:
    """Storages that FSDP2 fills and empties together, by their numbers.

    even: whether all of them had something in them when they were looked at, or none
    """

    blocks: dict[int, Block]
    even: bool = False


class _Entered(TorchDispatchMode):
    """Entered once for every tracker that is at work in the process.

    PyTorch notes for the whole process whether a mode is entered, as the last one found it that
    left. Trackers of several threads leave in any order; this one mode finds what it left.
    """


_ENTERED = _Entered()  # type: ignore[no-untyped-call]
_ENTERING = threading.RLock()


class Tracker(TorchDispatchMode):
    """Records the birth and death of storages while it is entered.

    It sees what operators return. What an operator takes and gives back inside (a library's
    workspace, a packed operand) it does not see, nor what code compiled by `torch.compile` takes.
    Storages that are older than it count only where they are given to `hold`, or to `watch`: what
    FSDP2 puts into storages and takes out of them is seen at the next operator.
    """

    def __init__(self, modules: dict[str, nn.Module] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scopes = Scopes(modules)
        self.blocks: list[Block] = []
        self.time = 0
        self.forward_ends: list[int] = []
        self._alive: dict[int, tuple[weakref.ref[UntypedStorage], Block]] = {}
        self._older: dict[int, weakref.ref[UntypedStorage]] = {}
        self._last_phase = "forward"
        self._units: dict[Callable[[], Sequence[Tensor]], _Unit] = {}

    def __enter__(self) -> Self:
        self._inside = contextlib.ExitStack()
        self._inside.enter_context(self.scopes.watching())
        with _ENTERING:
            _ENTERED.__enter__()  # type: ignore[no-untyped-call]
            _pop_mode()
            _push_mode(self)
        return self

    def __exit__(self, *exception: object) -> None:
        """Modes that were entered later, and are not left yet, stay."""
        with _ENTERING:
            later = []
            while (mode := _pop_mode()) is not self:
                later.append(mode)
            _push_mode(_ENTERED)
            _ENTERED.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            for mode in reversed(later):
                _push_mode(mode)
        self._inside.close()

    def hold(self, tensors: Iterable[Tensor | None], label: str) -> None:
        """Counts these tensors, from now on if they are older than the tracker, as `label`."""
        for tensor in tensors:
            if tensor is None:
                continue
            tensor = local(tensor)
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive:
                self._older.pop(storage._cdata, None)
                self._born(tensor, (), label, "before")
            self._alive[storage._cdata][1].label = label

    def watch(self, units: Iterable[Callable[[], Sequence[Tensor]]]) -> None:
        """Counts what is put into the storages of units' tensors, as FSDP2 fills and empties them.

        units: each tells its tensors, or none as long as they are not made
        """
        for unit in units:
            self._units.setdefault(unit, _Unit({}))
        self._see_refilled()  # what was taken out since the last operator

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(kind.__name__ in _WRAPPERS for kind in types):
            return NotImplemented
        kwargs = kwargs or {}
        if active_fake_mode() is not None:
            return func(*args, **kwargs)  # only shapes are asked for, as by DTensor
        phase = self.scopes.phase
        self._see_refilled()
        if phase == "backward" and self._last_phase == "forward":
            self.forward_ends.append(self.time)
        self._last_phase = phase
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive and storage._cdata not in self._older:
                self._older[storage._cdata] = weakref.ref(storage, self._forget(storage._cdata))
        result = self.run(func, args, kwargs)
        for tensor in _tensors(result):
            number = tensor.untyped_storage()._cdata
            if number not in self._alive and number not in self._older:
                self._born(tensor, self.scopes.current, func._schema.name, phase)
        inside = self.workspace(func, args)
        if inside:
            self._add_transient(inside, func._schema.name)
        return result

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def workspace(self, func: Any, args: tuple[Any, ...]) -> int:
        """Bytes that an operator is known to take and give back inside, beside what it returns."""
        return 0

    def _add_transient(self, size: int, operation: str) -> None:
        """Counts `size` bytes that lived for the length of the operator at hand."""
        block = Block(size, "cpu", self.time, self.scopes.current, operation, self.scopes.phase)
        self.time += 1
        block.death = self.time
        self.time += 1
        self.blocks.append(block)

    def _born(self, tensor: Tensor, scope: Scope, operation: str, phase: str) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        block = Block(size, str(tensor.device), self.time, scope, operation, phase)
        self.time += 1
        self.blocks.append(block)
        number = storage._cdata
        self._alive[number] = (weakref.ref(storage, self._died(number)), block)

    def _see_refilled(self) -> None:
        """Storages that have another size than before are as another's."""
        for tensors, unit in self._units.items():
            if not unit.blocks:
                self._begin(unit, tensors())
            first = next(iter(unit.blocks.items()), None)
            if first is None or (unit.even and not self._changed(*first)):
                continue  # models have hundreds of storages, and steps ten thousands of operators
            for number, block in tuple(unit.blocks.items()):
                if self._changed(number, block):
                    self._refill(unit, number, block)
            unit.even = len({block.size > 0 for block in unit.blocks.values()}) == 1

    def _begin(self, unit: _Unit, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self.hold([tensor], WHOLE)
            number = tensor.untyped_storage()._cdata
            unit.blocks[number] = self._alive[number][1]

    def _changed(self, number: int, block: Block) -> bool:
        """Whether the storage is gone, or of another size."""
        found = self._alive.get(number)
        storage = found[0]() if found is not None and found[1] is block else None
        return storage is None or storage.nbytes() != block.size

    def _refill(self, unit: _Unit, number: int, block: Block) -> None:
        found = self._alive.get(number)
        storage = found[0]() if found is not None and found[1] is block else None
        if found is None or storage is None:
            del unit.blocks[number]
            return
        block.death = self.time
        self.time += 1
        new = dataclasses.replace(block, size=storage.nbytes(), birth=self.time, death=None)
        new.phase, new.label = self.scopes.phase, WHOLE
        unit.blocks[number] = new
        self.time += 1
        self.blocks.append(new)
        self._alive[number] = (found[0], new)

    def _died(self, number: int) -> Callable[[weakref.ref[UntypedStorage]], None]:
        def died(reference: weakref.ref[UntypedStorage]) -> None:
            known = self._alive.get(number)
            if known is not None and known[0] is reference:
                del self._alive[number]
                known[1].death = self.time
                self.time += 1

        return died

    def _forget(self, number: int) -> Callable[[weakref.ref[UntypedStorage]], None]:
        def forget(reference: weakref.ref[UntypedStorage]) -> None:
            if self._older.get(number) is reference:
                del self._older[number]

        return forget


def running_total(blocks: Sequence[Block], time: int) -> np.ndarray:
    """Bytes alive after each of the first `time` births and deaths."""
    change = np.zeros(time + 1, np.int64)
    for block in blocks:
        change[block.birth] += block.size
        if block.death is not None:
            change[block.death] -= block.size
    return np.cumsum(change[:time]) if time else np.zeros(1, np.int64)


def local(tensor: Tensor) -> Tensor:
    """The part of a distributed tensor that this process has, or the tensor itself."""
    if type(tensor).__name__ in _WRAPPERS:
        part: Tensor = tensor._local_tensor  # type: ignore[attr-defined]
        return part
    return tensor


def _tensors(tree: Any) -> list[Tensor]:
    return [
        leaf
        for leaf in tree_leaves(tree)
        if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided
    ]
