"""Instructions of the machine against NumPy and PyTorch."""

import zlib

import numpy as np
import pytest
import torch

from tests.compiled.executor.alu import WIDTH, parts
from tests.compiled.executor.launch import Schedule
from tests.compiled.written import kernel, run

pytestmark = pytest.mark.usefixtures("compiler")

TYPES = {"u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32, "u64": np.uint64,
         "s64": np.int64, "f32": np.float32}  # fmt: skip
PREFIX = {2: "%rs", 4: "%r", 8: "%rd"}
SPECIAL_FLOATS = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-40, 3e38, 65504.0, 7e-8]


def values(kind: str, seed: int) -> np.ndarray:
    """64 values: random ones, and those at the edges of the type."""
    draw = np.random.default_rng(seed)
    if kind == "f32":
        found = (draw.standard_normal(64) * 10.0 ** draw.integers(-6, 6, 64)).astype(np.float32)
        found[: len(SPECIAL_FLOATS)] = draw.permutation(np.float32(SPECIAL_FLOATS))
        return found
    limits = np.iinfo(TYPES[kind])
    found = draw.integers(limits.min, limits.max, 64, dtype=TYPES[kind], endpoint=True)
    edges = [limits.min, limits.max, 0, 1, limits.max - 1]
    found[: len(edges)] = draw.permutation(np.array(edges, TYPES[kind]))
    return found


def computed(opcode: str, *operands: np.ndarray, schedule: Schedule | None = None) -> np.ndarray:
    """What the machine makes of 64 operands."""
    destination, sources, _ = parts(opcode)
    lines = []
    for index, kind in enumerate(sources):
        width = WIDTH[kind]
        lines.append(f"mul.wide.u32 %rd10, %r1, {width}; add.s64 %rd11, %rd{index + 2}, %rd10;")
        lines.append(f"ld.global.b{8 * width} {PREFIX[width]}{20 + index}, [%rd11];")
    width = WIDTH[destination]
    names = ", ".join(f"{PREFIX[WIDTH[kind]]}{20 + index}" for index, kind in enumerate(sources))
    out = f"{PREFIX[width or 4]}30"
    if destination == "p":
        lines.append(f"{opcode} %p1, {names}; selp.b32 {out}, 1, 0, %p1;")
    else:
        lines.append(f"{opcode} {out}, {names};")
    lines.append(f"mul.wide.u32 %rd10, %r1, {width or 4}; add.s64 %rd11, %rd1, %rd10;")
    lines.append(f"st.global.b{8 * (width or 4)} [%rd11], {out};")
    result = np.zeros(64, np.uint32 if destination == "p" else TYPES[destination])
    raw = [torch.from_numpy(array.view(np.uint8)) for array in (result, *operands)]
    outcome = run(kernel("\n".join(lines), pointers=len(raw)), raw, schedule=schedule)
    assert not outcome.findings
    return result.astype(bool) if destination == "p" else result


def shift_left(a, b):
    return np.where(b > 31, 0, a << (b & 31)).astype(a.dtype)


def fused(a, b, c):
    """Exact in extended precision for all but the rarest double roundings."""
    wide = a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)
    return wide.astype(np.float32)


def bits_of(kind: torch.dtype):
    def rounded(a):
        return torch.from_numpy(a).to(kind).view(torch.int16).numpy().view(np.uint16)

    return rounded


def unordered_less(a, b):
    return ~(a >= b)


ORACLES = {
    "add.s32": lambda a, b: a + b,
    "sub.s64": lambda a, b: a - b,
    "mul.lo.s32": lambda a, b: a * b,
    "mad.lo.s32": lambda a, b, c: a * b + c,
    "min.s16": np.minimum,
    "max.u32": np.maximum,
    "mul.wide.s32": lambda a, b: a.astype(np.int64) * b,
    "mul.hi.u32": lambda a, b: (a.astype(np.uint64) * b >> 32).astype(np.uint32),
    "and.b64": np.bitwise_and,
    "xor.b32": np.bitwise_xor,
    "not.b32": np.invert,
    "shl.b32": shift_left,
    "setp.lt.s32": np.less,
    "setp.lo.u32": np.less,
    "setp.ltu.f32": unordered_less,
    "setp.gt.f32": np.greater,
    "popc.b32": lambda a: np.array([int(x).bit_count() for x in a], np.uint32),
    "add.f32": np.add,
    "mul.f32": np.multiply,
    "fma.rn.f32": fused,
    "div.rn.f32": np.divide,
    "max.f32": np.fmax,
    "min.f32": np.fmin,
    "cvt.rn.f32.s32": lambda a: a.astype(np.float32),
    "cvt.s64.s32": lambda a: a.astype(np.int64).view(np.uint64),
    "cvt.u64.u32": lambda a: a.astype(np.uint64),
    "cvt.rn.bf16.f32": bits_of(torch.bfloat16),
    "cvt.rn.f16.f32": bits_of(torch.float16),
}


@pytest.mark.parametrize("opcode", ORACLES)
def test_instruction(opcode: str) -> None:
    _, sources, _ = parts(opcode)
    seed = zlib.crc32(opcode.encode())
    operands = [values(kind, seed + index) for index, kind in enumerate(sources)]
    if opcode == "shl.b32":
        operands[1] %= 40
    with np.errstate(all="ignore"):
        expected = ORACLES[opcode](*operands)
    found = computed(opcode, *operands)
    if expected.dtype == np.float32:
        same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    elif opcode.startswith("cvt.rn.") and opcode.endswith("16.f32"):
        same = (found == expected) | np.isnan(operands[0])  # of NaN only that it stays one
    else:
        same = found == expected
    assert same.all(), (operands, found, expected)


@pytest.mark.parametrize("opcode", ["cvt.f32.bf16", "cvt.f32.f16"])
def test_halves_become_float32_exactly(opcode: str) -> None:
    halves = values("u16", 5)
    kind = torch.bfloat16 if "bf16" in opcode else torch.float16
    exact = torch.from_numpy(halves.view(np.int16)).view(kind).float().numpy()
    found = computed(opcode, halves).view(np.float32)
    assert ((found == exact) | (np.isnan(found) & np.isnan(exact))).all()


def test_approximate_instructions_err_within_their_bound_where_the_schedule_asks() -> None:
    x = values("f32", 3)
    with np.errstate(over="ignore"):
        exact = np.exp2(x.astype(np.float64)).astype(np.float32)
    assert np.array_equal(computed("ex2.approx.f32", x), exact, equal_nan=True)
    erring = computed("ex2.approx.f32", x, schedule=Schedule(perturb=1))
    steps = erring.view(np.int32).astype(np.int64) - exact.view(np.int32)
    assert 1 <= np.abs(steps[np.isfinite(exact)]).max() <= 2
