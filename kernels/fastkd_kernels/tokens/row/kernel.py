"""Token losses and their gradient, one program per row.

Two reads of the logits, three where the divergence needs both distributions normalised. A list
is written out as logits of every id, in scratch, where its divergence is not a sum over it.
"""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.divergence import KL
from fastkd_kernels.tokens.row.factors import gradient_factors
from fastkd_kernels.tokens.row.gradient import write_gradient
from fastkd_kernels.tokens.row.listed import TAIL, read_list
from fastkd_kernels.tokens.row.losses import row_losses
from fastkd_kernels.tokens.row.numbers import INF
from fastkd_kernels.tokens.row.sums import row_sums
from fastkd_kernels.tokens.row.write import store_losses, zero_row

NO_TEACHER = tl.constexpr(0)
DENSE = tl.constexpr(1)
LISTED = tl.constexpr(2)

# Sizes and strides change from batch to batch and must not be compiled in.
_SIZES = (
    "rows",
    "inner",
    "student_outer",
    "student_inner",
    "teacher_outer",
    "teacher_inner",
    "listed",
    "scale_step",
    "vocabulary_units",
    "compared_units",
)
POINTERS = (
    "student",
    "teacher",
    "ids",
    "log_probs",
    "kept",
    "target",
    "counted",
    "scale",
    "losses",
    "parts",
    "prediction",
    "gradient",
)
# Of sizes and floats, what changes from call to call of one layout.
VARYING = ("gain", "rows")


@triton.jit(do_not_specialize=_SIZES)
def token_losses_fwd(
    student,  # (rows, V) logits at outer·student_outer + inner·student_inner + id·student_step
    teacher,  # likewise, (rows, n) float32 scratch where WRITTEN, or None
    ids,  # (rows, K) of a listed teacher, or None
    log_probs,  # (rows, K)
    kept,  # (rows, K) float32 scratch where there is a gradient
    target,  # (rows,) or None
    counted,  # (rows,) or None
    scale,  # (rows,) or (1,) float32 factor of the gradient beside `gain`, or None
    losses,  # (rows,) float32
    parts,  # its components: (4, `rows`) float32, maybe of a longer table
    prediction,  # (rows,) int64, or None
    gradient,  # (rows, V), which may be the student's own contiguous logits, or None
    gain,
    rows,
    inner,
    student_outer,
    student_inner,
    student_step,
    teacher_outer,
    teacher_inner,
    teacher_step,
    listed,  # K
    scale_step,
    vocabulary_units,
    compared_units,
    ce_weight,
    kd_weight,
    rank_weight,
    entropy_weight,
    smoothing,
    student_scale,  # 1/τ_s
    teacher_scale,  # 1/τ_t
    beta,
    student_factor,  # what scores are read by, see `scores`
    student_cap,
    teacher_factor,
    teacher_cap,
    UNIT: tl.constexpr,  # divides V and the row strides, which come divided by it
    COMPARED_UNIT: tl.constexpr,  # likewise of n, where CUT
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_RANK: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    FORM: tl.constexpr,  # of the divergence
    NVIDIA: tl.constexpr,  # whether its own logarithm may be used
    SMOOTH: tl.constexpr,
    TEMPERED: tl.constexpr,  # τ_s ≠ 1
    TEACHER: tl.constexpr,
    REST: tl.constexpr,
    STUDENT_SCORES: tl.constexpr,
    TEACHER_SCORES: tl.constexpr,
    CUT: tl.constexpr,  # only the ids below n are compared with the teacher's
    TOP_K: tl.constexpr,
    TOP_K_PAD: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr,  # logits in 16 bytes
):
    row = tl.program_id(0).to(tl.int64)
    rows = rows.to(tl.int64)
    vocabulary = vocabulary_units * UNIT
    compared = compared_units * COMPARED_UNIT if CUT else vocabulary
    if prediction is not None:
        prediction += row
    if gradient is not None:
        gradient += row * vocabulary
    if counted is not None:
        if tl.load(counted + row) == 0:
            zero_row(losses + row, parts + row, rows, prediction, gradient, vocabulary, BLOCK_V)
            return
    # By logits of every id, or by the list and what all other ids share.
    LISTS: tl.constexpr = TEACHER == LISTED
    WRITTEN: tl.constexpr = HAS_KD and LISTS and (FORM != KL or REST == TAIL)
    EVERY: tl.constexpr = TEACHER == DENSE or (WRITTEN and REST != TAIL)
    TAILED: tl.constexpr = WRITTEN and REST == TAIL
    student += (row // inner * student_outer + row % inner * student_inner) * UNIT
    given, known = (None, None, None), (-INF, 1.0, -INF, None, 0)
    if TEACHER == DENSE:
        teacher += (row // inner * teacher_outer + row % inner * teacher_inner) * UNIT
    elif LISTS:
        given = (ids + row * listed, log_probs + row * listed, listed)
        if kept is not None:
            kept += row * listed
        if WRITTEN:
            teacher += row * compared
        known = read_list(
            teacher, given, compared, REST, WRITTEN, HAS_RANK, TOP_K, TOP_K_PAD, BLOCK_V, BLOCK_K
        )
    by_student = (student, student_step, student_factor, student_cap)
    by_teacher = (teacher, teacher_step, teacher_factor, teacher_cap)
    shifts, sums, there, of_ce, best, first_id = row_sums(
        by_student, by_teacher, given, kept, known, compared, vocabulary, student_scale,
        teacher_scale, beta, HAS_CE, HAS_KD, HAS_RANK, HAS_ENTROPY, FORM, SMOOTH, TEMPERED, LISTS,
        REST, EVERY, CUT, prediction is not None, TOP_K, TOP_K_PAD, BLOCK_V, BLOCK_K, VECTOR,
        STUDENT_SCORES, TEACHER_SCORES,
    )  # fmt: skip
    label = tl.load(target + row).to(tl.int32) if HAS_CE else -1
    found, hot, slopes, ranked = row_losses(
        label, by_student, by_teacher, given, known, compared, vocabulary, shifts, sums, there,
        of_ce, best, smoothing, HAS_CE, HAS_KD, HAS_RANK, HAS_ENTROPY, FORM, NVIDIA, SMOOTH, LISTS,
        EVERY, TAILED, TOP_K, TOP_K_PAD, BLOCK_V, BLOCK_K, VECTOR, STUDENT_SCORES, TEACHER_SCORES,
    )  # fmt: skip
    weights = (ce_weight, kd_weight, rank_weight, entropy_weight)
    store_losses(
        losses + row, parts + row, rows, prediction, found, first_id, weights,
        HAS_CE, HAS_KD, HAS_RANK, HAS_ENTROPY,
    )  # fmt: skip
    if gradient is not None:
        factor = gain if scale is None else gain * tl.load(scale + row * scale_step)
        factors, beyond, rank_factor = gradient_factors(
            factor, weights, found[2], label, smoothing, student_scale, shifts, sums, there, of_ce,
            slopes, HAS_CE, HAS_KD, HAS_RANK, HAS_ENTROPY, FORM, SMOOTH, TEMPERED, TAILED, CUT,
        )  # fmt: skip
        write_gradient(
            gradient, by_student, by_teacher, vocabulary, compared, given, kept, known[2], hot,
            ranked, rank_factor, factors, beyond, HAS_CE, HAS_KD, HAS_RANK, HAS_ENTROPY, SMOOTH,
            TEMPERED, FORM, NVIDIA, TAILED, STUDENT_SCORES, TEACHER_SCORES, CUT, EVERY, REST,
            BLOCK_V, BLOCK_K,
        )  # fmt: skip
