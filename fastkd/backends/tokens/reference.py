"""The token losses on whole logits in plain autograd PyTorch: the definition."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.backends.tokens.divergences import divergence, entropy
from fastkd.functional.calls import Projected, TokenCall, TokenLosses, TokenOptions
from fastkd.functional.divided import whole
from fastkd.functional.sparse import SparseTeacher

BANNED = -math.inf


def unavailable(call: TokenCall[Tensor] | TokenCall[Projected]) -> None:
    """Serves every call."""


def linear_losses(call: TokenCall[Projected]) -> TokenLosses:
    student, counted, teacher = call.student, call.counted, call.teacher
    logits = F.linear(_only(counted, student.hidden), whole(student.weight), student.bias)
    if isinstance(teacher, Projected):
        hidden, weight, bias = teacher
        given = _only(counted, hidden)
        dense = F.linear(given, whole(weight), bias) if call.options.teaches else None
        return dense_losses(TokenCall(logits, dense, call.target, counted, call.options))
    return dense_losses(TokenCall(logits, teacher, call.target, counted, call.options))


def dense_losses(call: TokenCall[Tensor]) -> TokenLosses:
    student_logits, teacher, target = call.student, call.teacher, call.target
    counted, options = call.counted, call.options
    inside = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
    given = _only(counted, student_logits.to(inside))
    given = _scores(given, options.student_logit_scale, options.student_soft_cap)
    logits, banned, dead = _allowed(given)
    log_p = F.log_softmax(logits, -1)
    ce = kd = rank = spread = torch.zeros_like(given.detach()[..., 0])
    if options.ce_weight and target is not None:
        ids = _only(counted, target).long()
        ce = _cross_entropy(log_p, banned, ids, options.label_smoothing)
        ce = torch.where(dead & (options.label_smoothing < 1), math.inf, ce)
    if options.vocabulary is not None:
        logits, _, dead = _allowed(given[..., : options.vocabulary])
    if options.student_temperature != 1 or options.vocabulary is not None:
        log_p = F.log_softmax(logits / options.student_temperature, -1)
    if options.entropy_weight:
        spread = torch.where(dead, 0, entropy(log_p).value)
    if options.teaches and teacher is not None:
        scores, log_q = _teacher(teacher, counted, logits, options)
        has_mass = log_q.amax(-1) > BANNED
        if options.kd_weight:
            outcomes = log_q, log_p
            if isinstance(teacher, SparseTeacher) and teacher.rest == "tail":
                outcomes = _with_tail(log_q, log_p)
            kd = divergence(*outcomes, options.form, options.skew).value
            kd = torch.where(dead, torch.where(has_mass & (options.form == "kl"), math.inf, 0), kd)
            kd = torch.where(has_mass, kd, 0)
        if options.rank_weight:
            teacher_ids = _teacher_ids(teacher, scores, counted, options.top_k)
            student_ids = stable_topk(logits.detach(), options.top_k)
            rank = _ranking(log_p, scores, teacher_ids, student_ids)
            rank = torch.where(has_mass, rank, 0)
    ce, kd, rank, spread = (
        _reduce(part, counted, options.reduction) for part in (ce, kd, rank, spread)
    )
    loss = _reduce(given[..., :0].sum(-1), counted, options.reduction)  # 0 with a gradient of 0
    loss = loss + options.ce_weight * ce if options.ce_weight else loss
    loss = loss + options.kd_weight * kd if options.kd_weight else loss
    loss = loss + options.rank_weight * rank if options.rank_weight else loss
    loss = loss + options.entropy_weight * spread if options.entropy_weight else loss
    prediction = _allowed(given)[0].detach().argmax(-1) if options.return_prediction else None
    ce, kd, rank, spread = ce.detach(), kd.detach(), rank.detach(), spread.detach()
    return TokenLosses(loss, ce, kd, rank, prediction, spread)


def _allowed(given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (..., V) for softmaxes, which of them are −inf, and rows (...) where all are."""
    banned = given.detach() == BANNED
    dead = given.detach().amax(-1) == BANNED
    # A constant at the banned ids: no gradient. A softmax needs one finite logit in a row.
    return torch.where(banned, torch.where(dead, 0.0, BANNED).unsqueeze(-1), given), banned, dead


def _only(counted: Tensor | None, value: Tensor) -> Tensor:
    """`value` (...) or (..., size) with zeros, and no gradient, where nothing counts."""
    if counted is None:
        return value
    rows = counted if value.dim() == counted.dim() else counted.unsqueeze(-1)
    return value.masked_fill(~rows, 0)


def _scores(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    """c·tanh(scale·z/c); −inf stays −inf."""
    scores = logits if scale == 1 else logits * scale
    if cap is None:
        return scores
    banned = logits.detach() == BANNED
    return torch.where(banned, BANNED, cap * torch.tanh(scores / cap))


def _cross_entropy(log_p: Tensor, banned: Tensor, target: Tensor, smoothing: float) -> Tensor:
    ce = torch.zeros_like(log_p[..., 0])
    if smoothing < 1:
        ce = ce - (1 - smoothing) * log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if smoothing > 0:
        allowed = (~banned).sum(-1).clamp(min=1)
        ce = ce - smoothing * log_p.masked_fill(banned, 0).sum(-1) / allowed
    return ce


def _with_tail(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Both (..., V + 1): the ids that have teacher mass, and all others as one outcome."""
    listed = log_q > BANNED
    missing = 1 - log_q.exp().sum(-1, keepdim=True)
    # Where every id is listed there is no other outcome, and what misses is rounding.
    missing = missing.where(~listed.all(-1, keepdim=True), 0)
    others = torch.where(listed, BANNED, log_p)
    some = others.detach().amax(-1, keepdim=True) > BANNED  # a gradient of logsumexp needs one
    # Without any it is −inf with the gradient of one of them, which goes through the softmax.
    none = others.gather(-1, (~listed).int().argmax(-1, keepdim=True))
    rest = torch.where(some, others.where(some, 0).logsumexp(-1, keepdim=True), none)
    return (
        torch.cat([log_q, missing.clamp(min=0).log()], -1),
        torch.cat([torch.where(listed, log_p, BANNED), rest], -1),
    )


def _ranking(log_p: Tensor, scores: Tensor, teacher_ids: Tensor, student_ids: Tensor) -> Tensor:
    p_t = log_p.gather(-1, teacher_ids).exp()  # (..., k)
    p_s = log_p.gather(-1, student_ids).exp()
    preferred = scores.gather(-1, teacher_ids).unsqueeze(-1) > scores.gather(
        -1, student_ids
    ).unsqueeze(-2)  # (..., i, j)
    first = F.relu(p_t - p_t[..., :1]).sum(-1)
    pairs = F.relu(p_s.unsqueeze(-2) - p_t.unsqueeze(-1))  # (..., i, j)
    return first + torch.where(preferred, pairs, 0).sum((-2, -1))


def stable_topk(scores: Tensor, k: int) -> Tensor:
    """Ids (..., k) of the k largest scores (..., V) in falling order, ties by rising id."""
    # torch.topk breaks ties arbitrarily, argmax takes the first.
    left = scores.clamp(min=torch.finfo(scores.dtype).min)
    ids = []
    for _ in range(k):
        ids.append(left.argmax(-1, keepdim=True))
        left.scatter_(-1, ids[-1], BANNED)
    return torch.cat(ids, -1)


@torch.no_grad()
def _teacher(
    teacher: Tensor | SparseTeacher,
    counted: Tensor | None,
    student: Tensor,
    options: TokenOptions,
) -> tuple[Tensor, Tensor]:
    """What orders the ids, and log q, both (..., V); −inf where there is no mass."""
    temperature = options.teacher_temperature
    if not isinstance(teacher, SparseTeacher):
        scores = _only(counted, teacher[..., : student.shape[-1]].to(student.dtype))
        scores = _scores(scores, options.teacher_logit_scale, options.teacher_soft_cap)
        return scores, _log_softmax(scores, temperature)
    listed = _only(counted, teacher.log_probs.to(student.dtype))
    ids = _only(counted, teacher.ids.long())
    rest = torch.full_like(student[..., :1], BANNED)
    if teacher.rest == "spread":
        unlisted = max(student.shape[-1] - ids.shape[-1], 1)
        missing = 1 - listed.exp().sum(-1, keepdim=True)
        rest = (missing.clamp(min=0) / unlisted).log()
    known = torch.zeros_like(student, dtype=torch.bool).scatter(-1, ids, True)
    # Padding may repeat an id that has mass.
    scores = torch.full_like(student, BANNED).scatter_reduce(-1, ids, listed, "amax")
    scores = scores.where(known, rest)
    log_q = _log_softmax(scores, temperature)
    if teacher.rest != "renormalize":
        log_q = log_q + scores.logsumexp(-1, keepdim=True)
    return scores, log_q


def _log_softmax(scores: Tensor, temperature: float) -> Tensor:
    """log_softmax, and −inf throughout a row of −inf."""
    log_q = F.log_softmax(scores if temperature == 1 else scores / temperature, -1)
    return log_q.masked_fill_(scores.amax(-1, keepdim=True) == BANNED, BANNED)


def _teacher_ids(
    teacher: Tensor | SparseTeacher, scores: Tensor, counted: Tensor | None, k: int
) -> Tensor:
    if not isinstance(teacher, SparseTeacher):
        return stable_topk(scores, k)
    ids, order = _only(counted, teacher.ids.long()).sort(-1)  # equal scores by rising id
    # Not `scores` of the ids: padding that repeats an id would be ranked as the id is.
    listed = _only(counted, teacher.log_probs.to(scores.dtype)).gather(-1, order)
    return ids.gather(-1, stable_topk(listed, k))


def _reduce(rows: Tensor, counted: Tensor | None, reduction: str) -> Tensor:
    """Positions (...) that count, reduced; the others are 0."""
    if counted is not None:
        rows = torch.where(counted, rows, 0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if counted is None:
        return rows.sum() / max(rows.numel(), 1)
    return rows.sum() / counted.sum().clamp(min=1)
