"""The ranking term of one row from its two id lists, and the derivative by each probability."""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.listed import scores_at
from fastkd_kernels.tokens.row.numbers import INF
from fastkd_kernels.tokens.row.scores import load_scores
from fastkd_kernels.tokens.row.topk import ids_of, scores_of, strongest_of


@triton.jit
def ranking(
    p_teacher_ids,  # (K,) p(t_i), 0 past top_k
    p_student_ids,  # (K,) p(s_j)
    y_teacher_ids,  # (K,) teacher scores of t_i
    y_student_ids,  # (K,) teacher scores of s_j
    first,  # (K,) bool: which t_i is t_1
    used,  # (K,) bool: lanes below top_k
):
    """R1 + R2 and its derivative by p(t_i) and by p(s_j), each list for itself."""
    p_first = tl.sum(tl.where(first, p_teacher_ids, 0.0), 0)
    lead = tl.where(used, tl.maximum(p_teacher_ids - p_first, 0.0), 0.0)
    above = (lead > 0).to(tl.float32)
    pairs = p_student_ids[None, :] - p_teacher_ids[:, None]  # (i, j)
    active = (y_teacher_ids[:, None] > y_student_ids[None, :]) & (pairs > 0)
    active = active & used[:, None] & used[None, :]
    counts = active.to(tl.float32)
    rank = tl.sum(lead, 0) + tl.sum(tl.sum(tl.where(active, pairs, 0.0), 1), 0)
    by_teacher_ids = above - tl.where(first, tl.sum(above, 0), 0.0) - tl.sum(counts, 1)
    return rank, by_teacher_ids, tl.sum(counts, 0)


@triton.jit
def derivative_at(ids, teacher_ids, by_teacher_ids, student_ids, by_student_ids, used):
    """u at each of `ids` (N,): what either list holds for that id, added up."""
    in_teacher = (ids[:, None] == teacher_ids[None, :]) & used[None, :]  # (N, K)
    in_student = (ids[:, None] == student_ids[None, :]) & used[None, :]
    by_id = tl.where(in_teacher, by_teacher_ids[None, :], 0.0)
    by_id += tl.where(in_student, by_student_ids[None, :], 0.0)
    return tl.sum(by_id, 1)


@triton.jit
def rank_row(
    best,  # keys of the k largest of both sides
    by_student,  # this row's sides, see `scores`
    by_teacher,
    given,  # its list
    compared,
    rest_score,
    m,
    student_bits,  # log₂e/τ_s
    sum_p,  # Σ exp((z − m)/τ_s)
    LISTS: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_PAD: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STUDENT: tl.constexpr,  # how scores are read
    TEACHER: tl.constexpr,
):
    """The ranking term; of t and of s ids, scores, teacher scores, derivatives; lanes in use."""
    student_best, teacher_best = best
    used = tl.arange(0, TOP_K_PAD) < TOP_K
    teacher_ids = ids_of(teacher_best)
    student_ids = ids_of(student_best)
    z_teacher_ids = load_scores(by_student, teacher_ids, used, STUDENT)
    z_student_ids = tl.where(used, scores_of(student_best), -INF)
    y_teacher_ids = tl.where(used, scores_of(teacher_best), -INF)
    if LISTS:
        y_student_ids = scores_at(student_ids, given, compared, rest_score, TOP_K_PAD, BLOCK_K)
    else:
        y_student_ids = load_scores(by_teacher, student_ids, used, TEACHER)
    rank, by_teacher_ids, by_student_ids = ranking(
        tl.exp2((z_teacher_ids - m) * student_bits) / sum_p,
        tl.exp2((z_student_ids - m) * student_bits) / sum_p,
        y_teacher_ids,
        y_student_ids,
        teacher_best == strongest_of(teacher_best, TOP_K, TOP_K_PAD),
        used,
    )
    of_teacher = (teacher_ids, z_teacher_ids, y_teacher_ids, by_teacher_ids)
    of_student = (student_ids, z_student_ids, y_student_ids, by_student_ids)
    return rank, (of_teacher, of_student, used)
