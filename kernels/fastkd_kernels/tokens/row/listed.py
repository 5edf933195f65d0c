"""A teacher known at a few ids: its distribution, its divergence and its scores at given ids."""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.divergence import KL, from_sums, share_at, terms
from fastkd_kernels.tokens.row.numbers import INF, LOG2E
from fastkd_kernels.tokens.row.read import decay, finite_or_zero, log_ratio_terms
from fastkd_kernels.tokens.row.scores import load_scores
from fastkd_kernels.tokens.row.topk import NO_KEY, empty_list, keys_of, merge

DROP = tl.constexpr(0)
SPREAD = tl.constexpr(1)
RENORMALIZE = tl.constexpr(2)
TAIL = tl.constexpr(3)


@triton.jit
def listed_block(given, start, vocabulary, BLOCK_K: tl.constexpr):
    """A block of one row's (id, log-probability) pairs; −inf past the list and the vocabulary."""
    ids, log_probs, listed = given
    lane = start + tl.arange(0, BLOCK_K)
    inside = lane < listed
    token = tl.load(ids + lane, mask=inside, other=0).to(tl.int32)
    inside &= (token >= 0) & (token < vocabulary)
    score = tl.load(log_probs + lane, mask=inside, other=-INF).to(tl.float32)
    return lane, inside, token, score


@triton.jit
def summed_up(
    given,  # this row's list: K ids, their log-probabilities, K
    vocabulary,
    REST: tl.constexpr,
    HAS_RANK: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_PAD: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(largest score, Σq, score of an unlisted id, top-k keys, ids with mass, where TAIL counts).

    A tail is not part of Σq.
    """
    listed = given[2]
    peak = -INF
    mass = 0.0
    with_mass = 0
    best = empty_list(TOP_K, TOP_K_PAD)
    for start in range(0, listed, BLOCK_K):
        _, inside, token, score = listed_block(given, start, vocabulary, BLOCK_K)
        peak = tl.maximum(peak, tl.max(score, 0))
        mass += tl.sum(tl.exp2(score * LOG2E), 0)
        if REST == TAIL:
            with_mass += tl.sum((score > -INF).to(tl.int32), 0)
        if HAS_RANK:
            best = merge(best, tl.where(inside, keys_of(score, token), NO_KEY))
    rest_score = -INF
    if REST == SPREAD:
        if listed < vocabulary:
            unlisted = (vocabulary - listed).to(tl.float32)
            rest_score = tl.log(tl.maximum(1.0 - mass, 0.0) / unlisted)
            mass += tl.maximum(1.0 - mass, 0.0)
        peak = tl.maximum(peak, rest_score)
    if REST == RENORMALIZE:
        mass = 1.0
    return peak, tl.where(peak == -INF, 0.0, mass), rest_score, best, with_mass


@triton.jit
def compare_listed(
    given,  # this row's list
    kept,  # this row's K student scores, written, or None
    student,  # this row's side, see `scores`
    vocabulary,
    student_peak,
    teacher_peak,
    student_scale,  # 1/τ_s
    teacher_scale,  # 1/τ_t
    rest_score,
    finite,  # student scores above −inf, where spread
    total,  # Σ (z − m) over them, where spread
    REST: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STUDENT: tl.constexpr,  # how its scores are read
):
    """(Σ_v w_v, Σ_v w_v·d_v), as `read_row` has them.

    w = exp((y − n)/τ_t) and d = ((y − n)/τ_t − (z − m)/τ_s)·log₂e with y the listed
    log-probability, or that of an unlisted id.
    """
    listed = given[2]
    m = finite_or_zero(student_peak)
    n = finite_or_zero(teacher_peak)
    student_bits = student_scale * LOG2E
    teacher_bits = teacher_scale * LOG2E
    weights = 0.0
    gap = 0.0
    for start in range(0, listed, BLOCK_K):
        lane, inside, token, score = listed_block(given, start, vocabulary, BLOCK_K)
        z = load_scores(student, token, inside, STUDENT)
        if kept is not None:
            tl.store(kept + lane, z, mask=inside)
        bits = (score - n) * teacher_bits
        weight = tl.exp2(bits)
        weights += tl.sum(weight, 0)
        gap += tl.sum(log_ratio_terms(weight, score, z, bits, (z - m) * student_bits), 0)
        if REST == SPREAD:
            finite -= tl.sum(tl.where(z == -INF, 0.0, 1.0), 0)
            total -= tl.sum(tl.where(z == -INF, 0.0, z - m), 0)
    if REST == SPREAD:
        if rest_score > -INF:
            unlisted = (vocabulary - listed).to(tl.float32)
            rest_bits = (rest_score - n) * teacher_bits
            rest_weight = tl.exp2(rest_bits)
            weights += rest_weight * unlisted
            rest_gap = rest_weight * (unlisted * rest_bits - total * student_bits)
            gap += tl.where(finite < unlisted, INF, rest_gap)
    return weights, gap


@triton.jit
def compare_with_tail(
    given,  # this row's list
    vocabulary,
    student,  # this row's side, see `scores`
    shifts,  # m, n, log₂e/τ_s, log₂e/τ_t, log₂ of both sums, β
    p_rest_bits,  # log₂ of both sides' mass at all ids that are not listed
    q_rest_bits,
    FORM: tl.constexpr,
    NVIDIA: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STUDENT: tl.constexpr,  # how its scores are read
):
    """The divergence over the listed ids with mass and one more outcome, S, and its share.

    Of KL the outcome's q in place of its share q/p.
    """
    listed = given[2]
    m, n, student_bits, teacher_bits, log_p_sum, log_q_sum, beta = shifts
    sum_a, sum_b = terms(p_rest_bits, q_rest_bits, beta, FORM, NVIDIA)
    for start in range(0, listed, BLOCK_K):
        _, _, token, score = listed_block(given, start, vocabulary, BLOCK_K)
        z = load_scores(student, token, score > -INF, STUDENT)
        a, b = terms(
            (z - m) * student_bits - log_p_sum,
            (score - n) * teacher_bits - log_q_sum,
            beta,
            FORM,
            NVIDIA,
        )
        sum_a += tl.sum(a, 0)
        sum_b += tl.sum(b, 0)
    value, slopes = from_sums(sum_a, sum_b, beta, FORM)
    if FORM == KL:
        share = tl.exp2(q_rest_bits)
    else:
        share = share_at(q_rest_bits, p_rest_bits - q_rest_bits, beta, FORM, NVIDIA)
        share = tl.where(p_rest_bits > -INF, share, 0.0)
    return value, slopes, share


@triton.jit
def read_rest(
    student,  # this row's side, see `scores`
    scores,  # the list as logits of every id
    vocabulary,
    m,
    student_bits,  # log₂e/τ_s
    BLOCK_V: tl.constexpr,
    VECTOR: tl.constexpr,
    STUDENT: tl.constexpr,  # how its scores are read
):
    """log₂ Σ exp((z − m)/τ_s) over the ids without mass: a difference of sums would lose digits."""
    LANES: tl.constexpr = BLOCK_V // VECTOR
    peak = -INF
    rest = tl.zeros([LANES], tl.float32)
    for start in range(0, vocabulary, BLOCK_V):
        token = start + tl.arange(0, BLOCK_V)
        inside = token < vocabulary
        score = tl.load(scores + token, mask=inside, other=0.0)
        z = load_scores(student, token, inside & (score == -INF), STUDENT)
        old = finite_or_zero(peak)
        peak = tl.maximum(peak, tl.max(z, 0))
        new = finite_or_zero(peak)
        grown = tl.exp2((z - new) * student_bits)
        rest = rest * decay(old, new, student_bits)
        rest += tl.sum(tl.reshape(grown, [LANES, VECTOR]), 1)
    return tl.where(
        peak == -INF, -INF, tl.log2(tl.maximum(tl.sum(rest, 0), 1.0)) + (peak - m) * student_bits
    )


@triton.jit
def fill_scores(
    scores,  # (V,) float32, written: the list as logits of every id
    given,  # this row's list
    vocabulary,
    rest_score,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    listed = given[2]
    for start in range(0, vocabulary, BLOCK_V):
        token = start + tl.arange(0, BLOCK_V)
        tl.store(scores + token, rest_score, mask=token < vocabulary)
    # Padding may repeat an id that has mass: what has none is written first.
    for mass in tl.static_range(2):
        tl.debug_barrier()
        for start in range(0, listed, BLOCK_K):
            _, inside, token, score = listed_block(given, start, vocabulary, BLOCK_K)
            chosen = inside & ((score > -INF) == (mass == 1))
            tl.store(scores + token, score, mask=chosen)
    tl.debug_barrier()


@triton.jit
def read_list(
    scores,  # (V,) float32, written where WRITTEN
    given,  # this row's list
    vocabulary,
    REST: tl.constexpr,
    WRITTEN: tl.constexpr,
    HAS_RANK: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_PAD: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """What `summed_up` returns, once the list is written out, where it has to be."""
    summed = summed_up(given, vocabulary, REST, HAS_RANK, TOP_K, TOP_K_PAD, BLOCK_K)
    if WRITTEN:
        fill_scores(scores, given, vocabulary, summed[2], BLOCK_V, BLOCK_K)
    return summed


@triton.jit
def scores_at(
    wanted,  # (TOP_K_PAD,) ids
    given,  # this row's list
    vocabulary,
    rest_score,
    TOP_K_PAD: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Log-probability of each wanted id, `rest_score` where it is not listed."""
    listed = given[2]
    score = tl.full([TOP_K_PAD], -INF, tl.float32)
    found = tl.full([TOP_K_PAD], 0, tl.int32)
    for start in range(0, listed, BLOCK_K):
        _, inside, token, listed_score = listed_block(given, start, vocabulary, BLOCK_K)
        same = (token[None, :] == wanted[:, None]) & inside[None, :]  # (TOP_K_PAD, BLOCK_K)
        score = tl.maximum(score, tl.max(tl.where(same, listed_score[None, :], -INF), 1))
        found = tl.maximum(found, tl.max(same.to(tl.int32), 1))
    return tl.where(found > 0, score, rest_score)
