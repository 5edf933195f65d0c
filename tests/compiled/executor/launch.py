"""One launch of a program on the machine, and what was found."""

import ctypes
from dataclasses import dataclass

import numpy as np

from tests.compiled.executor.library import library
from tests.compiled.executor.program import LANES, Program

SPECIALS = (
    "%tid.x", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid",
    "%warpid", "%ntid.x",
)  # fmt: skip
ZERO_SPECIALS = {"%tid.y", "%tid.z"}
KINDS = (
    "out of bounds", "misaligned", "race of warps", "race of programs", "lanes collide",
    "still pending", "unwritten shared memory", "lanes without bar.warp.sync", "diverged",
    "deadlock", "outside shared memory", "same value by lanes", "trapped",
    "unwritten global memory", "same value by warps", "not fenced for asynchronous products",
)  # fmt: skip
# What a correct kernel may do: the value is the same whoever comes last; converged lanes run in
# step. Triton leaves the fence between cp.async (and some stores) and wgmma out itself. Everything
# else is a fault.
HARMLESS = {"same value by lanes", "same value by warps", "lanes without bar.warp.sync", KINDS[-1]}
REPORTS = 256  # kinds and places told apart in one launch
MOST_BYTES = 2 << 30  # of the machine's own, for registers and for who touched what


class _Region(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_uint64), ("size", ctypes.c_uint64), ("host", ctypes.c_void_p),
        ("valid", ctypes.c_void_p), ("poison", ctypes.c_void_p), ("shadow", ctypes.c_void_p),
    ]  # fmt: skip


class _Report(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "pc", "other", "program", "warp", "lane")),
        ("address", ctypes.c_uint64), ("count", ctypes.c_uint64),
    ]  # fmt: skip


class _Launch(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_void_p), ("operands", ctypes.c_void_p),
        ("register_bytes", ctypes.c_int32), ("fixed_bytes", ctypes.c_int32),
        ("fixed", ctypes.c_void_p), ("garbage", ctypes.c_int32), ("warps", ctypes.c_int32),
        ("grid", ctypes.c_int32 * 3), ("special", ctypes.c_int32 * len(SPECIALS)),
        ("shared_bytes", ctypes.c_int32), ("small_shared", ctypes.c_int32),
        ("small_global", ctypes.c_int32), ("regions", ctypes.c_void_p),
        ("region_count", ctypes.c_int32), ("seed", ctypes.c_uint64), ("quantum", ctypes.c_int32),
        ("late", ctypes.c_int32), ("check", ctypes.c_int32), ("perturb", ctypes.c_int32),
        ("reports", ctypes.c_void_p), ("report_room", ctypes.c_int32),
        ("report_count", ctypes.c_int32), ("counts", ctypes.c_void_p),
        ("traffic", ctypes.c_uint64 * 4), ("divergences", ctypes.c_uint64),
        ("table", ctypes.c_void_p),
    ]  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """In which order things happen, of all the orders that a GPU may choose.

    seed: of the order of programs, the turns of warps and the garbage in fresh registers
    late: copies and asynchronous products arrive as late as they may
    perturb: a seed for the errors of approximate instructions, or 0 for none
    check: whether accesses are watched at all; without, a launch runs about twice as fast
    quantum: instructions of a warp's usual turn, at most
    """

    seed: int = 1
    late: bool = False
    perturb: int = 0
    check: bool = True
    quantum: int = 200


@dataclass(frozen=True)
class Finding:
    """A fault, or something harmless: the first time, and how often it happened again."""

    kernel: str
    kind: str
    instruction: str
    other: str  # the instruction that touched the same bytes before
    program: int
    warp: int
    lane: int
    address: int
    count: int

    @property
    def harmless(self) -> bool:
        return self.kind in HARMLESS

    def __str__(self) -> str:
        other = f" with `{self.other}`" if self.other else ""
        return (
            f"{self.kernel}: {self.kind}, {self.count} times, `{self.instruction}`{other}, first "
            f"in program {self.program} warp {self.warp} lane {self.lane} at {self.address:#x}"
        )


@dataclass
class Outcome:
    findings: list[Finding]
    counts: np.ndarray  # how often each instruction was run by a warp
    traffic: np.ndarray  # bytes: global read, global written, shared read, shared written
    divergences: int


@dataclass
class Buffer:
    """Bytes that a kernel may reach."""

    base: int  # the address that the kernel sees
    host: int
    size: int
    valid: np.ndarray  # of each byte, whether an argument covers it
    poison: np.ndarray  # of each byte, whether nobody has written it


def execute(
    program: Program,
    grid: tuple[int, int, int],
    values: list[bytes],
    buffers: list[Buffer],
    shared: int,
    schedule: Schedule,
) -> Outcome:
    """Runs all programs of the grid; values: the bytes of each argument."""
    machine = library()
    machine.need(program.opcodes)
    machine.perturb.value = schedule.perturb
    unknown = program.special.keys() - {*SPECIALS, *ZERO_SPECIALS}
    if unknown:
        raise NotImplementedError(f"{program.name}: special registers {', '.join(sorted(unknown))}")
    warps = program.threads // LANES
    _refuse_more_than_fits(program, warps, buffers, machine.shadow_bytes)
    fixed = program.fixed.copy()
    for (place, _), value in zip(program.parameters, values, strict=True):
        start = len(fixed) + place
        fixed[start : start + LANES * len(value)] = np.frombuffer(value * LANES, np.uint8)
    regions = (_Region * max(len(buffers), 1))(
        *(_Region(b.base, b.size, b.host, *map(_at, (b.valid, b.poison)), None) for b in buffers)
    )
    counts = np.zeros(len(program.instructions), np.uint64)
    reports = (_Report * REPORTS)()
    launch = _Launch(
        code=_at(program.instructions),
        operands=_at(program.operands),
        register_bytes=program.register_bytes,
        fixed_bytes=len(fixed),
        fixed=_at(fixed),
        garbage=0xA5 if schedule.seed % 2 else 0,
        warps=warps,
        grid=(ctypes.c_int32 * 3)(*grid),
        special=(ctypes.c_int32 * len(SPECIALS))(*(program.special.get(n, 0) for n in SPECIALS)),
        shared_bytes=shared,
        small_shared=program.small_shared,
        small_global=program.small_global,
        regions=ctypes.addressof(regions),
        region_count=len(buffers),
        seed=schedule.seed,
        quantum=schedule.quantum,
        late=schedule.late,
        check=schedule.check,
        perturb=schedule.perturb,
        reports=ctypes.addressof(reports),
        report_room=REPORTS,
        counts=_at(counts),
        table=ctypes.addressof(machine.table),
    )
    machine.machine.run_launch(ctypes.byref(launch))
    findings = [_finding(program, report) for report in reports[: launch.report_count]]
    return Outcome(findings, counts, np.array(launch.traffic, np.int64), launch.divergences)


def _at(array: np.ndarray) -> int:
    return array.ctypes.data


def _refuse_more_than_fits(
    program: Program, warps: int, buffers: list[Buffer], shadow_bytes: int
) -> None:
    registers = warps * (program.register_bytes + len(program.fixed))
    shadows = sum(buffer.size for buffer in buffers) // program.small_global * shadow_bytes
    if registers + shadows > MOST_BYTES:
        raise MemoryError(
            f"{program.name}: {registers >> 20} MiB of registers and {shadows >> 20} MiB to watch "
            f"its buffers, more than {MOST_BYTES >> 20}: execute a smaller call"
        )


def _finding(program: Program, report: _Report) -> Finding:
    other = program.text[report.other] if report.other >= 0 else ""
    where = (report.program, report.warp, report.lane, report.address, report.count)
    return Finding(program.name, KINDS[report.kind], program.text[report.pc], other, *where)
