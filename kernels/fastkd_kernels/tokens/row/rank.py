"""The ranking term of one row from its two id lists, and the derivative by each probability."""

import triton
import triton.language as tl


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
