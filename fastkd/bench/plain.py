"""The losses as a user of PyTorch writes them, of whole maps and whole logits.

Without a thought for logits of −inf, masks, ties and short sentences: what the reference backend,
which defines the losses with care, is no stand-in for.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.bench.operation import Inputs


def alignment(inputs: Inputs, normalization: str) -> Tensor:
    """inputs: queries and keys, (B, N, T, D), and a weight (Nt, Ns) or none."""
    student, teacher = (_maps(inputs, model) for model in ("student", "teacher"))
    weight: Tensor | None = inputs.get("weight")
    if normalization == "mixture":
        mixed = student
        if weight is not None:
            mixed = torch.einsum("jh,bhqk->bjqk", weight.softmax(1), student)
        loss: Tensor = torch.xlogy(teacher, teacher) - teacher * mixed.clamp(min=1e-30).log()
        return loss.sum()
    mixed = student if weight is None else torch.einsum("jh,bhqk->bjqk", weight, student)
    if normalization == "map":
        teacher, mixed = teacher.flatten(2), mixed.flatten(2)
    log_q, log_p = teacher.log_softmax(-1), mixed.log_softmax(-1)
    return F.kl_div(log_p, log_q, reduction="sum", log_target=True)


def _maps(inputs: Inputs, model: str) -> Tensor:
    query, key = inputs[f"{model}_query"], inputs[f"{model}_key"]
    scores: Tensor = query @ key.mT * query.shape[-1] ** -0.5
    return scores.float().softmax(-1)


def token_losses(inputs: Inputs, options: dict[str, Any]) -> Tensor:
    """inputs: hidden states and weights, or logits; options: weights of the losses, `top_k`."""
    log_p = _logits(inputs, "student").float().log_softmax(-1)  # (N, V)
    total: Tensor = options["ce_weight"] * F.nll_loss(log_p, inputs["target"])
    if options["kd_weight"]:
        with torch.no_grad():
            logits = _logits(inputs, "teacher").float()
            log_q = logits.log_softmax(-1)
        divergence = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        total = total + options["kd_weight"] * divergence
    if options.get("rank_weight"):
        total = total + options["rank_weight"] * _ranking(log_p, logits, options["top_k"])
    return total


def _logits(inputs: Inputs, model: str) -> Tensor:
    logits = inputs.get(f"{model}_logits")
    if logits is None:
        logits = F.linear(inputs[f"{model}_hidden"], inputs[f"{model}_weight"])
    return logits


def _ranking(log_p: Tensor, teacher_logits: Tensor, top_k: int) -> Tensor:
    """R1 + R2: the student's order among the teacher's words, and of its own words with those."""
    theirs, ours = (scores.topk(top_k).indices for scores in (teacher_logits, log_p))
    p_theirs, p_ours = log_p.gather(1, theirs).exp(), log_p.gather(1, ours).exp()
    first = F.relu(p_theirs - p_theirs[:, :1]).sum(-1)
    preferred = (
        teacher_logits.gather(1, theirs)[:, :, None] > teacher_logits.gather(1, ours)[:, None]
    )
    pairs = F.relu(p_ours[:, None] - p_theirs[:, :, None]) * preferred  # (N, top_k, top_k)
    return (first + pairs.sum((-2, -1))).mean()
