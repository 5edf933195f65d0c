"""What the machine is there for: each kind of fault in a kernel of a few lines, and its cure."""

import pytest
import torch

from tests.compiled.executor.assemble import assemble
from tests.compiled.executor.launch import Schedule
from tests.compiled.executor.program import UnknownInstructionError
from tests.compiled.written import faults, kernel, run

pytestmark = pytest.mark.usefixtures("compiler")

# Every thread writes its word of shared memory and reads that of the thread 32 further on.
EXCHANGE = """
cvt.u32.u64 %r3, %rd9;
st.shared.b32 [%r3], %r1;
{between}
xor.b32 %r4, %r3, 128;
ld.shared.b32 %r5, [%r4];
add.s64 %rd10, %rd1, %rd9;
st.global.b32 [%rd10], %r5;
"""
COPY = """
cvt.u32.u64 %r3, %rd9;
add.s64 %rd10, %rd2, %rd9;
cp.async.ca.shared.global [%r3+0], [%rd10+0], 0x4;
cp.async.commit_group;
{between}
ld.shared.b32 %r5, [%r3];
add.s64 %rd11, %rd1, %rd9;
st.global.b32 [%rd11], %r5;
"""


@pytest.mark.parametrize("seed", range(1, 6))
def test_race_of_warps_is_found_whatever_the_schedule(seed: int) -> None:
    assert faults(EXCHANGE.format(between=""), schedule=Schedule(seed)) >= {"race of warps"}
    assert not faults(EXCHANGE.format(between="bar.sync 0;"), schedule=Schedule(seed))


def test_race_of_warps_in_global_memory() -> None:
    body = """
    add.s64 %rd10, %rd1, %rd9;
    st.global.b32 [%rd10], %r1;
    {between}
    xor.b64 %rd11, %rd9, 128;
    add.s64 %rd12, %rd1, %rd11;
    ld.global.b32 %r5, [%rd12];
    add.s64 %rd13, %rd2, %rd9;
    st.global.b32 [%rd13], %r5;
    """
    assert faults(body.format(between="")) == {"race of warps"}
    assert not faults(body.format(between="bar.sync 0;"))


@pytest.mark.parametrize("late", [False, True])
def test_copy_read_before_it_was_waited_for(late: bool) -> None:
    found = faults(COPY.format(between=""), schedule=Schedule(late=late))
    assert "still pending" in found
    waited = COPY.format(between="cp.async.wait_group 0x0;")
    out, source = torch.zeros(64), torch.arange(64.0)
    assert not run(kernel(waited), [out, source], schedule=Schedule(late=late)).findings
    assert torch.equal(out, source)


# Ones at 0 and 2048, threes at 4096: the product of the ones, whose descriptor's register is used
# again while it is on its way.
PRODUCT = """
mov.u32 %r20, 0x3f803f80;
mov.u32 %r21, 0x40404040;
shl.b32 %r3, %r1, 4;
st.shared.v4.b32 [%r3], {{%r20, %r20, %r20, %r20}};
setp.lt.u32 %p1, %r1, 16;
@%p1 st.shared.v4.b32 [%r3+2048], {{%r20, %r20, %r20, %r20}};
@%p1 st.shared.v4.b32 [%r3+4096], {{%r21, %r21, %r21, %r21}};
fence.proxy.async.shared::cta;
bar.sync 0;
mov.b64 %rd10, {a};
mov.b64 %rd11, {b};
setp.ne.u32 %p2, 0, 0;
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%r4,%r5,%r6,%r7}},%rd10,%rd11,%p2,1,1,0,0;
wgmma.commit_group.sync.aligned;
mov.b64 %rd11, {other};
{between}
bar.sync 0;
@%p1 st.shared.b32 [%r3+{stored}], %r21;
wgmma.wait_group.sync.aligned 0;
add.s64 %rd12, %rd1, %rd9;
st.global.b32 [%rd12], %r4;
"""


def descriptor(start: int) -> int:
    """A matrix of 16-bit numbers in cores of 128 bytes, two along the depth, then the next rows."""
    return start >> 4 | 128 >> 4 << 16 | 256 >> 4 << 32


@pytest.mark.parametrize("late", [False, True])
def test_product_keeps_the_descriptors_it_was_issued_with(late: bool) -> None:
    matrices = {"a": descriptor(0), "b": descriptor(2048), "other": descriptor(4096)}
    out = torch.zeros(128)

    def found(stored: int, between: str = "") -> set[str]:
        body = PRODUCT.format(**matrices, stored=stored, between=between)
        ptx = kernel(body, pointers=1, threads=128)
        outcome = run(ptx, [out], shared=8192, schedule=Schedule(late=late))
        return {finding.kind for finding in outcome.findings if not finding.harmless}

    assert not found(2048, "wgmma.wait_group.sync.aligned 0;")
    assert out.tolist() == [16.0] * 128
    assert not found(4096)
    assert out.tolist() == [16.0] * 128
    assert "still pending" in found(2048)


def test_programs_write_the_same_place() -> None:
    body = "add.s64 %rd10, %rd1, %rd9; st.global.b32 [%rd10], %r2;"
    assert faults(body, programs=2) == {"race of programs"}
    apart = f"mul.wide.u32 %rd11, %r2, 256; add.s64 %rd1, %rd1, %rd11; {body}"
    assert not faults(apart, [torch.zeros(128)], programs=2)


def test_lanes_store_different_values_at_one_place() -> None:
    assert faults("st.global.b32 [%rd1], %r1;", threads=32) == {"lanes collide"}
    assert not faults("mov.u32 %r3, 7; st.global.b32 [%rd1], %r3;", threads=32)


@pytest.mark.parametrize("offset", [-4, 256])
def test_address_outside_the_elements(offset: int) -> None:
    load = f"add.s64 %rd10, %rd1, {offset}; ld.global.b32 %r3, [%rd10];"
    assert faults(load) == {"out of bounds"}


def test_gaps_of_a_strided_tensor_are_not_its_elements() -> None:
    load = "ld.global.b32 %r3, [%rd1+4];"
    assert faults(load, [torch.zeros(64)[::2]]) == {"out of bounds"}
    assert not faults(load, [torch.zeros(64)])


def test_misaligned_vector() -> None:
    assert faults("ld.global.v2.b32 {%r3, %r4}, [%rd1+4];") == {"misaligned"}


def test_memory_that_nobody_wrote() -> None:
    load = "mov.u32 %r4, 64; ld.shared.b32 %r3, [%r4];"
    assert faults(load) == {"unwritten shared memory"}
    fresh = torch.zeros(64)
    fresh.view(torch.int32).fill_(-1)
    assert faults("ld.global.b32 %r3, [%rd1];", [fresh]) == {"unwritten global memory"}
    assert not faults("ld.global.b32 %r3, [%rd1];", [torch.full((64,), torch.nan)])


def test_outside_shared_memory() -> None:
    body = "mov.u32 %r3, 1024; st.shared.b32 [%r3], %r1;"
    assert faults(body, threads=32) == {"outside shared memory"}


def test_barrier_that_only_some_lanes_reach() -> None:
    body = "setp.lt.u32 %p1, %r1, 16; @%p1 bra $L1; bar.sync 0;\n$L1:\n"
    assert faults(body, threads=32) == {"diverged"}


def test_barrier_that_only_some_warps_reach() -> None:
    assert faults("setp.lt.u32 %p1, %r1, 32; @%p1 ret; bar.sync 0;") == {"deadlock"}


def test_lanes_part_and_meet_again() -> None:
    body = """
    setp.lt.u32 %p1, %r1, 20;
    mov.u32 %r3, 5;
    @%p1 bra $L1;
    mov.u32 %r3, 9;
    $L1:
    bar.sync 0;
    add.s64 %rd10, %rd1, %rd9;
    st.global.b32 [%rd10], %r3;
    """
    out = torch.zeros(64, dtype=torch.int32)
    outcome = run(kernel(body, pointers=1), [out])
    assert not outcome.findings and outcome.divergences == 1
    assert out.tolist() == [5] * 20 + [9] * 44


def test_unknown_instruction_is_named_with_its_kernel() -> None:
    with pytest.raises(UnknownInstructionError, match=r"kept: unknown instruction `vote\.sync"):
        assemble(kernel("vote.sync.any.pred %p1, %p2, -1;", name="kept"))


def test_launch_that_would_take_too_much_memory_is_refused() -> None:
    huge = torch.empty(1 << 28, dtype=torch.uint8)
    with pytest.raises(MemoryError, match=r"written: .* execute a smaller call"):
        run(kernel("ld.global.b8 %rs1, [%rd1];", pointers=1), [huge])


def test_findings_name_kernel_instruction_and_place() -> None:
    outcome = run(kernel("st.global.b32 [%rd1], %r1;", pointers=1, threads=32), [torch.zeros(64)])
    text = str(outcome.findings[0])
    assert text.startswith("written: lanes collide, ")
    assert "`st.global.b32 [%rd1], %r1`" in text and "program 0 warp 0 lane 1" in text
