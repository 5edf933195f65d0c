"""Makes `kernel[grid](...)` on CPU tensors compile for a GPU and run on the machine."""

import contextlib
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import triton
from fastkd_kernels import offline
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from tests.compiled.executor.assemble import assemble
from tests.compiled.executor.buffers import buffers_of, unwritten
from tests.compiled.executor.launch import Finding, Outcome, Schedule, execute
from tests.compiled.executor.program import Program

FORMATS = {"i8": "b", "i16": "h", "i32": "i", "i64": "q", "u8": "B", "u16": "H", "u32": "I",
           "u64": "Q", "fp32": "f", "fp64": "d", "i1": "b", "u1": "B"}  # fmt: skip
PROGRAMS = 64  # assembled kernels that are kept

Launcher = Callable[[JITFunction, tuple[Any, ...], Any, dict[str, Any]], None]


@dataclass
class Specialised:
    """What a call of a kernel compiles, before it is compiled."""

    key: tuple[object, ...]
    bound: dict[str, Any]  # arguments by name
    source: ASTSource
    target: GPUTarget
    options: dict[str, Any]

    @property
    def arguments(self) -> dict[str, object]:
        """By name a type for what is passed, and the value of what is compiled in."""
        names = [parameter.name for parameter in self.source.fn.params]
        compiled_in = {names[path[0]]: value for path, value in self.source.constants.items()}
        return dict(self.source.signature) | compiled_in


@dataclass
class Kernel:
    """A kernel compiled for one specialisation, and its program."""

    compiled: CompiledKernel
    program: Program
    kinds: tuple[str, ...]  # types of its arguments, "constexpr" where compiled in


@dataclass
class KernelRun:
    """What was seen of one kernel in one specialisation."""

    kernel: Kernel
    launches: int = 0
    programs: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.uint64))
    traffic: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))


@dataclass
class Session:
    """target: compute capability, 80 or 90; resources: which kernels take too much of the chip."""

    schedule: Schedule = field(default_factory=Schedule)
    target: int = 80
    runs: dict[tuple[object, ...], KernelRun] = field(default_factory=dict)
    resources: set[str] = field(default_factory=set)
    _findings: dict[tuple[str, ...], Finding] = field(default_factory=dict)
    _kernels: OrderedDict[tuple[object, ...], Kernel] = field(default_factory=OrderedDict)
    _binders: dict[int, Any] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        return list(self._findings.values())

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.harmless]

    def clear(self) -> None:
        self._findings.clear()
        self.resources.clear()
        self.runs.clear()

    def note(self, outcome: Outcome) -> None:
        for found in outcome.findings:
            key = (found.kernel, found.kind, found.instruction, found.other)
            earlier = self._findings.get(key)
            if earlier is not None:
                found = replace(earlier, count=earlier.count + found.count)
            self._findings[key] = found

    def launch(
        self, function: JITFunction, args: tuple[Any, ...], grid: Any, options: dict[str, Any]
    ) -> None:
        wanted = self.specialised(function, args, options)
        bound, kernel = wanted.bound, self._compiled(wanted)
        grid = (*(grid(bound) if callable(grid) else grid), 1, 1)[:3]
        passed = [
            (kind, value)
            for kind, value in zip(kernel.kinds, bound.values(), strict=True)
            if kind != "constexpr"
        ]
        buffers, bases = buffers_of([value for kind, value in passed if kind.startswith("*")])
        values = [_packed(kind, value, bases) for kind, value in passed]
        # Triton adds pointers to scratch of its own, which these kernels do not use.
        values += [struct.pack("<Q", 0)] * (len(kernel.program.parameters) - len(values))
        shared = kernel.compiled.metadata.shared
        outcome = execute(kernel.program, grid, values, buffers, shared, self.schedule)
        run = self.runs.setdefault(wanted.key, KernelRun(kernel))
        run.launches += 1
        run.programs += grid[0] * grid[1] * grid[2]
        run.counts = run.counts + outcome.counts
        run.traffic = run.traffic + outcome.traffic
        self.note(outcome)

    def specialised(
        self, function: JITFunction, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Specialised:
        """As the JIT would choose for these arguments."""
        target = GPUTarget("cuda", self.target, 32)
        backend = make_backend(target)
        if id(function) not in self._binders:
            self._binders[id(function)] = create_function_from_signature(
                function.signature, function.params, backend
            )
        options = {"debug": False, **options}
        bound, specialization, left = self._binders[id(function)](*args, **options)
        chosen, signature, constants, attributes = function._pack_args(
            backend, options, bound, specialization, left
        )
        key = (self.target, id(function), str(specialization), str(left))
        source = ASTSource(function, signature, constants, attributes)
        return Specialised(key, bound, source, target, chosen.__dict__)

    def _compiled(self, wanted: Specialised) -> Kernel:
        """From Triton's cache, where another process has compiled the same."""
        if wanted.key not in self._kernels:
            compiled = triton.compile(wanted.source, target=wanted.target, options=wanted.options)
            program = assemble(compiled.asm["ptx"])
            names = [parameter.name for parameter in wanted.source.fn.params]
            kinds = tuple(wanted.source.signature[name] for name in names)
            self._kernels[wanted.key] = Kernel(compiled, program, kinds)
            chip = f"sm_{self.target}"
            complaint = offline.cuda_resources(compiled).complaint(chip)
            if complaint:
                self.resources.add(f"{program.name} on {chip}: {complaint}")
            while len(self._kernels) > PROGRAMS:
                self._kernels.popitem(last=False)
        self._kernels.move_to_end(wanted.key)
        return self._kernels[wanted.key]


def _packed(kind: str, value: Any, bases: dict[int, int]) -> bytes:
    if kind.startswith("*"):
        host = value.untyped_storage().data_ptr()
        return struct.pack("<Q", bases.get(host, 0) + value.data_ptr() - host)
    if kind == "fp32":
        return struct.pack("<f", np.float32(value))
    raw = struct.pack("<" + FORMATS[kind], value)
    return raw if len(raw) >= 4 else struct.pack("<i", value)


@contextlib.contextmanager
def launches_to(launch: Launcher) -> Iterator[None]:
    """Hands launches of kernels to `launch`."""

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launch(self, args, grid, options)

    kept = JITFunction.run
    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = kept


@contextlib.contextmanager
def installed(session: Session) -> Iterator[Session]:
    """Kernels run on the machine, and memory that is allocated without a value reads as NaN."""
    places = [(torch, name) for name in ("empty", "empty_like", "empty_strided")]
    places += [(torch.Tensor, name) for name in ("new_empty", "new_empty_strided")]
    kept = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, make in kept:
        setattr(owner, name, unwritten(make))
    try:
        with launches_to(session.launch):
            yield session
    finally:
        for owner, name, make in kept:
            setattr(owner, name, make)
