"""Kernels written in PTX, for tests of the machine itself."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.compiled.executor.assemble import assemble
from tests.compiled.executor.buffers import buffers_of
from tests.compiled.executor.launch import Outcome, Schedule, execute

# %rd1 and on hold the pointers, %r1 the thread, %r2 the program, %rd9 four bytes a thread.
HEAD = """
    .reg .pred %p<8>;
    .reg .b16 %rs<32>;
    .reg .b32 %r<64>;
    .reg .b64 %rd<64>;
"""


def kernel(body: str, pointers: int = 2, threads: int = 64, name: str = "written") -> str:
    """PTX of a kernel that takes so many pointers."""
    parameters = ",\n".join(
        f"\t.param .u64 .ptr .global .align 1 {name}_param_{index}" for index in range(pointers)
    )
    loads = "".join(
        f"ld.param.b64 %rd{index + 1}, [{name}_param_{index}];\n" for index in range(pointers)
    )
    return (
        f".visible .entry {name}(\n{parameters}\n)\n.reqntid {threads}\n{{\n{HEAD}{loads}"
        f"mov.u32 %r1, %tid.x;\nmov.u32 %r2, %ctaid.x;\nmul.wide.u32 %rd9, %r1, 4;\n"
        f"{body}\nret;\n}}\n// -- End function\n"
    )


def run(
    ptx: str,
    tensors: Sequence[Tensor],
    programs: int = 1,
    shared: int = 1024,
    schedule: Schedule | None = None,
) -> Outcome:
    buffers, bases = buffers_of(list(tensors))
    hosts = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    values = [
        struct.pack("<Q", bases[host] + tensor.data_ptr() - host)
        for host, tensor in zip(hosts, tensors, strict=True)
    ]
    return execute(assemble(ptx), (programs, 1, 1), values, buffers, shared, schedule or Schedule())


def faults(
    body: str,
    tensors: Sequence[Tensor] | None = None,
    programs: int = 1,
    shared: int = 1024,
    threads: int = 64,
    schedule: Schedule | None = None,
) -> set[str]:
    """The kinds of faults of a kernel; without tensors it gets two of 64 floats."""
    given = tensors if tensors is not None else [torch.zeros(64), torch.zeros(64)]
    outcome = run(
        kernel(body, pointers=len(given), threads=threads), given, programs, shared, schedule
    )
    return {finding.kind for finding in outcome.findings if not finding.harmless}
