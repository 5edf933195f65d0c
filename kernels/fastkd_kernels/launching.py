"""Launches planned once for a shape, and played for every call of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import driver

from fastkd_kernels.common import INTERPRETED

if not INTERPRETED:
    from triton import knobs


@dataclass
class Step:
    """One launch: its kernel with all but the tensors, which come by name.

    What Triton looks at before each launch (types, divisibility, options) is fixed here but for
    the alignment of the tensors, so that a compiled kernel is kept for each pattern of it.
    """

    kernel: Any  # a function of Triton's, compiled or interpreted
    programs: int  # where they are the same for every launch
    names: tuple[str | None, ...]  # of the tensors, in the kernel's order
    scalars: tuple[int | float, ...]
    constants: Mapping[str, object]
    options: Mapping[str, object]
    compiled: dict[int, CompiledKernel] = field(default_factory=dict)

    def run(self, tensors: Mapping[str | None, Tensor | None]) -> None:
        self.launch([tensors[name] for name in self.names], self.programs)

    def launch(
        self,
        pointers: Sequence[Tensor | None],
        programs: int,
        varying: tuple[int | float, ...] = (),
    ) -> None:
        """On tensors in the kernel's order; `varying`: the scalars that were not planned."""
        device = _device_of(pointers)
        # Triton launches on the current device, whichever the tensors are on.
        if device < 0 or device == torch.cuda.current_device():
            self._launch(device, pointers, programs, varying)
            return
        with torch.cuda.device(device):
            self._launch(device, pointers, programs, varying)

    def _launch(
        self,
        device: int,
        pointers: Sequence[Tensor | None],
        programs: int,
        varying: tuple[int | float, ...],
    ) -> None:
        pattern = device + 1  # a compiled kernel is loaded on one device
        addresses: list[int | None] = []
        for pointer in pointers:
            address = None if pointer is None else pointer.data_ptr()
            addresses.append(address)
            pattern = 3 * pattern + (0 if address is None else 2 if address & 15 else 1)
        kernel = self.compiled.get(pattern)
        if kernel is None or launches_are_watched():
            made = self.kernel[(programs,)](
                *pointers, *varying, *self.scalars, **self.constants, **self.options
            )
            if isinstance(made, CompiledKernel):
                self.compiled[pattern] = made
            return
        stream = driver.active.get_current_stream(max(device, 0))
        kernel.run(
            programs, 1, 1, stream, kernel.function, kernel.packed_metadata, None, None, None,
            *addresses, *varying, *self.scalars, *self.constants.values(),
        )  # fmt: skip


def _device_of(pointers: Sequence[Tensor | None]) -> int:
    """Number of the GPU that the first tensor is on, or −1."""
    for pointer in pointers:
        if pointer is not None:
            return pointer.get_device()
    return -1


def launches_are_watched() -> bool:
    """Whether a profiler or another tool has hooks at Triton's launches."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    # Each is None, a function, or a chain of them, which may be empty.
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def step(
    kernel,
    programs: int,
    tensors: Mapping[str, str | None],
    scalars: Mapping[str, int | float],
    constants: Mapping[str, object],
    options: Mapping[str, object],
    varying: Sequence[str] = (),
) -> Step:
    """Arguments by the kernel's own names; tensors: the name under which a call has each.

    varying: scalars that each launch brings, of one type in all; the kernel has them after its
    tensors and before the others.
    """
    planned = {*scalars, *constants, *varying}
    names = [name for name in kernel.arg_names if name not in planned]
    numbers = [name for name in kernel.arg_names if name in scalars]
    fixed = {name: constants[name] for name in kernel.arg_names if name in constants}
    unknown = {*tensors, *planned} - {*kernel.arg_names}
    if unknown:
        raise TypeError(f"{kernel} has no argument {', '.join(sorted(unknown))}")
    if [*names, *varying, *numbers, *fixed] != [*kernel.arg_names]:
        raise TypeError(f"{kernel} takes tensors, varying and planned scalars, then constants")
    return Step(
        kernel, programs, tuple(tensors[name] for name in names),
        tuple(scalars[name] for name in numbers), fixed, options,
    )  # fmt: skip


def play(steps: Sequence[Step], tensors: Mapping[str, Tensor | None]) -> None:
    known: dict[str | None, Tensor | None] = {None: None}
    known.update(tensors)
    for each in steps:
        each.run(known)
