"""Turns the maxima and sums of a row's blocks into the factors that normalise them."""

import triton
import triton.language as tl

RUNTIME = ["student_rows", "teacher_rows", "key_blocks"]


@triton.jit(do_not_specialize=RUNTIME)
def factors_fwd(
    student_max,  # (student rows, key blocks), overwritten by the factors
    student_sum,
    teacher_max,  # (teacher rows, key blocks), overwritten by the factors
    teacher_sum,
    student_rows,  # sentences · N · rows
    teacher_rows,
    key_blocks,
    BLOCK_R: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """A block holds exp2(s − its own maximum); times its factor, it is the softmax of its row.

    A block of which a row sees nothing has the sum 0.
    """
    program = tl.program_id(0)
    student_programs = tl.cdiv(student_rows, BLOCK_R)
    if program < student_programs:
        block_max = student_max
        block_sum = student_sum
        rows = student_rows
    else:
        block_max = teacher_max
        block_sum = teacher_sum
        rows = teacher_rows
        program -= student_programs
    row = program * BLOCK_R + tl.arange(0, BLOCK_R)
    place = row.to(tl.int64) * key_blocks
    high = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, key_blocks, BLOCK_B):
        block = start + tl.arange(0, BLOCK_B)
        mask = (row < rows)[:, None] & (block < key_blocks)[None, :]
        here = place[:, None] + block[None, :]
        part = tl.load(block_sum + here, mask=mask, other=0.0)
        maximum = tl.load(block_max + here, mask=mask, other=float("-inf"))
        maximum = tl.where(part > 0, maximum, float("-inf"))
        new = tl.maximum(high, tl.max(maximum, 1))
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(high - base) + tl.sum(part * tl.exp2(maximum - base[:, None]), 1)
        high = new
    high = tl.where(total > 0, high, 0.0)
    inverse = 1 / tl.where(total > 0, total, 1.0)
    for start in range(0, key_blocks, BLOCK_B):
        block = start + tl.arange(0, BLOCK_B)
        mask = (row < rows)[:, None] & (block < key_blocks)[None, :]
        here = place[:, None] + block[None, :]
        maximum = tl.load(block_max + here, mask=mask, other=0.0)
        factor = tl.exp2(maximum - high[:, None]) * inverse[:, None]
        tl.store(block_max + here, factor, mask=mask)
