"""Hierarchical ranking R1 + R2 on the ids that were chosen."""

from typing import NamedTuple

from torch import Tensor


class Ranking(NamedTuple):
    """R1 + R2 = ⟨u, p⟩, where u, nonzero at the chosen ids only, counts the active pairs."""

    loss: Tensor  # (R, 1)
    teacher_pull: Tensor  # (R, k), u ∘ p at the teacher's ids
    student_pull: Tensor  # (R, k), at the student's ids


def ranking(teacher_p: Tensor, student_p: Tensor, preferred: Tensor) -> Ranking:
    """From p at the teacher's and the student's ids (R, k), and 1[q(t_i) > q(s_j)] (R, i, j)."""
    ahead = teacher_p > teacher_p[:, :1]  # (R, k): ahead of the teacher's first
    wrong = preferred & (student_p.unsqueeze(-2) > teacher_p.unsqueeze(-1))  # (R, i, j)
    dtype = teacher_p.dtype
    teacher_u = ahead.to(dtype) - wrong.sum(-1)
    teacher_u[:, 0] -= ahead.sum(-1)
    teacher_pull = teacher_u * teacher_p
    student_pull = wrong.sum(-2) * student_p
    # Each hinge is a difference of two of these terms; adding them by pairs avoids cancellation.
    first = (teacher_p - teacher_p[:, :1]).clamp(min=0).sum(-1, keepdim=True)
    pairs = (student_p.unsqueeze(-2) - teacher_p.unsqueeze(-1)).where(wrong, 0)
    return Ranking(first + pairs.sum((-2, -1)).unsqueeze(-1), teacher_pull, student_pull)
