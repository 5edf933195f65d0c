"""Launches planned once for a shape, and played for every call of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    programs: int
    names: tuple[str | None, ...]  # of the tensors, in the kernel's order
    scalars: tuple[int | float, ...]
    constants: Mapping[str, object]
    options: Mapping[str, object]
    compiled: dict[int, CompiledKernel] = field(default_factory=dict)

    def run(self, tensors: Mapping[str | None, Tensor | None]) -> None:
        pointers = [tensors[name] for name in self.names]
        pattern = 0
        for pointer in pointers:
            pattern *= 3
            if pointer is not None:
                pattern += 2 if pointer.data_ptr() & 15 else 1
        kernel = self.compiled.get(pattern)
        if kernel is None or knobs.runtime.launch_enter_hook is not None:
            made = self.kernel[(self.programs,)](
                *pointers, *self.scalars, **self.constants, **self.options
            )
            if isinstance(made, CompiledKernel):
                self.compiled[pattern] = made
            return
        stream = driver.active.get_current_stream(driver.active.get_current_device())
        kernel.run(
            self.programs, 1, 1, stream, kernel.function, kernel.packed_metadata, None, None, None,
            *pointers, *self.scalars, *self.constants.values(),
        )  # fmt: skip


def step(
    kernel,
    programs: int,
    tensors: Mapping[str, str | None],
    scalars: Mapping[str, int | float],
    constants: Mapping[str, object],
    options: Mapping[str, object],
) -> Step:
    """Arguments by the kernel's own names; tensors: the name under which a call has each."""
    names = [name for name in kernel.arg_names if name not in scalars and name not in constants]
    numbers = [name for name in kernel.arg_names if name in scalars]
    fixed = {name: constants[name] for name in kernel.arg_names if name in constants}
    unknown = {*tensors, *scalars, *constants} - {*kernel.arg_names}
    if unknown:
        raise TypeError(f"{kernel} has no argument {', '.join(sorted(unknown))}")
    return Step(
        kernel, programs, tuple(tensors[name] for name in names),
        tuple(scalars[name] for name in numbers), fixed, options,
    )  # fmt: skip


def play(steps: Sequence[Step], tensors: Mapping[str, Tensor | None]) -> None:
    known: dict[str | None, Tensor | None] = {None: None}
    known.update(tensors)
    for each in steps:
        each.run(known)
