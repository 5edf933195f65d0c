"""A row's losses, from what its first read has summed up."""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.divergence import KL, REVERSE_KL, read_divergence
from fastkd_kernels.tokens.row.listed import compare_with_tail, read_rest
from fastkd_kernels.tokens.row.numbers import INF, LN2
from fastkd_kernels.tokens.row.rank import rank_row
from fastkd_kernels.tokens.row.scores import load_scores
from fastkd_kernels.tokens.row.write import cross_entropy


@triton.jit
def divergence_of(
    by_student,  # this row's sides, see `scores`
    by_teacher,
    given,  # its list
    known_ids,  # of the list, with mass
    compared,
    shifts,  # m, n, log₂e/τ_s, log₂e/τ_t, log₂ of both sums, β
    sums,  # Σ exp((z − m)/τ_s), Σ exp((y − n)/τ_t), gap, see `read_row`
    there,  # whether any student score, any teacher score is above −inf; Σq
    FORM: tl.constexpr,
    NVIDIA: tl.constexpr,
    TAILED: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr,
    STUDENT: tl.constexpr,  # how scores are read
    TEACHER: tl.constexpr,
):
    """The divergence, S, the share of a tail's ids, and what log₂ p − log₂ q is shifted by.

    Of KL with a tail the last one is log₂ of the student's sum over the tail's ids.
    """
    m, n, student_bits, teacher_bits, log_p_sum, log_q_sum, beta = shifts
    sum_p, sum_q, gap = sums
    alive, taught, mass = there
    slopes = 0.0
    share_of_rest = 0.0
    log_sums = log_p_sum - log_q_sum
    if TAILED:
        log_q_sum -= tl.log2(tl.where(mass > 0, mass, 1.0))
        shifts = (m, n, student_bits, teacher_bits, log_p_sum, log_q_sum, beta)
        rest_bits = read_rest(
            by_student, by_teacher[0], compared, m, student_bits, BLOCK_V, VECTOR, STUDENT
        )
        # Where every id is listed there is no other outcome, and what misses is rounding.
        q_rest_bits = tl.log2(tl.where(known_ids < compared, tl.maximum(1.0 - mass, 0.0), 0.0))
        kd, slopes, share_of_rest = compare_with_tail(
            given, compared, by_student, shifts, rest_bits - log_p_sum, q_rest_bits,
            FORM, NVIDIA, BLOCK_K, STUDENT,
        )  # fmt: skip
        kd = tl.where(alive, kd, INF if FORM == KL else 0.0)
        kd = tl.where(taught, kd, 0.0)
        log_sums = rest_bits if FORM == KL else log_p_sum - log_q_sum
    elif FORM == KL:
        log_mass = tl.log(tl.where(mass > 0, mass, 1.0))
        kd = mass * (gap * LN2 / sum_q - tl.log(sum_q) + log_mass + tl.log(sum_p))
        kd = tl.where(gap == INF, INF, kd)
    else:
        kd = LN2 * (gap / sum_p - log_p_sum + log_q_sum)
        slopes = kd / LN2
        # What the teacher bans has a slope of its own, so such a row is read once more.
        if FORM != REVERSE_KL or gap == INF:
            kd, slopes = read_divergence(
                by_student, by_teacher, compared, shifts,
                FORM, NVIDIA, BLOCK_V, VECTOR, STUDENT, TEACHER,
            )  # fmt: skip
        kd = tl.where(alive & taught, kd, 0.0)
    return kd, slopes, share_of_rest, log_sums


@triton.jit
def row_losses(
    label,
    by_student,  # this row's sides, see `scores`
    by_teacher,
    given,  # its list
    listed,  # of it, see `summed_up`
    compared,
    vocabulary,
    shifts,  # m, n, log₂e/τ_s, log₂e/τ_t, log₂ of both sums, β
    sums,  # as `row_sums` has them
    there,
    of_ce,
    best,
    smoothing,
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_RANK: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    FORM: tl.constexpr,
    NVIDIA: tl.constexpr,
    SMOOTH: tl.constexpr,
    LISTS: tl.constexpr,
    EVERY: tl.constexpr,
    TAILED: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_PAD: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr,
    STUDENT: tl.constexpr,  # how scores are read
    TEACHER: tl.constexpr,
):
    """(ce, kd, rank, entropy), what is known of the target, of the slopes, and of the ranked ids.

    Of the target its score, its teacher score and whether it is an id; of the slopes what
    `divergence_of` returns; of the ranked ids what `rank_row` does.
    """
    rest_score, _, known_ids = listed[2:]
    sum_p, sum_q, gap, spread = sums
    alive, taught, _ = there
    ce_m, ce_sum, finite, total = of_ce
    ce = 0.0
    kd = 0.0
    rank = 0.0
    entropy = 0.0
    z_label = -INF
    y_label = rest_score
    is_id = False
    slopes = 0.0
    share_of_rest = 0.0
    log_sums = 0.0
    ranked = (0, 0, 0)  # Triton 3.6 returns no None
    if HAS_CE:
        is_id = (label >= 0) & (label < vocabulary)
        z_label = load_scores(by_student, label, is_id, STUDENT)
        if HAS_KD and EVERY:
            y_label = load_scores(by_teacher, label, is_id & (label < compared), TEACHER)
        ce = cross_entropy(z_label - ce_m, tl.log(ce_sum), finite, total, smoothing, SMOOTH)
    if HAS_KD:
        kd, slopes, share_of_rest, log_sums = divergence_of(
            by_student, by_teacher, given, known_ids, compared, shifts, (sum_p, sum_q, gap),
            there, FORM, NVIDIA, TAILED, BLOCK_V, BLOCK_K, VECTOR, STUDENT, TEACHER,
        )  # fmt: skip
    if HAS_ENTROPY:
        entropy = tl.where(alive, LN2 * (shifts[4] - spread / sum_p), 0.0)
    if HAS_RANK:
        rank, ranked = rank_row(
            best, by_student, by_teacher, given, compared, rest_score, shifts[0], shifts[2], sum_p,
            LISTS, TOP_K, TOP_K_PAD, BLOCK_K, STUDENT, TEACHER,
        )  # fmt: skip
        rank = tl.where(alive & taught, rank, 0.0)
    losses = (ce, kd, rank, entropy)
    return losses, (z_label, y_label, is_id), (slopes, share_of_rest, log_sums), ranked
