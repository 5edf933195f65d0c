"""A teacher known at a few ids of the vocabulary only, such as one cached on disk."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.errors import InputError

RESTS = ("drop", "spread", "renormalize", "tail")


@dataclass(frozen=True, eq=False)
class SparseTeacher:
    """The teacher's distribution q at K ids of each position.

    ids: (..., K) integers, the K most likely ids of a position in any order
    log_probs: (..., K) floating, log q at temperature 1; −inf marks an entry without mass
    rest: what becomes of the mass 1 − Σq that is not listed
        "drop": it is left out, so that kd = Σ_listed q·(log q − log p), with Σq < 1
        "spread": it goes evenly to the V − K ids that are not listed
        "renormalize": the listed mass is scaled to 1
        "tail": it is one more outcome, which the student gives the mass of all ids without an
            entry of mass; the ranking ignores it. Where all ids have one there is no other outcome

    A teacher temperature other than 1 moves the mass among the ids that have any and keeps its
    sum: q_τ ∝ q^(1/τ), Σq_τ = Σq; a tail stays as it is. The ids of one position must differ from
    one another wherever they have mass; this is not checked.

    Raises InputError for an unknown `rest`, for shapes or types that do not fit, and for
    `log_probs` that requires grad (a teacher is a constant).
    """

    ids: Tensor
    log_probs: Tensor
    rest: str = "drop"

    def __post_init__(self) -> None:
        if self.rest not in RESTS:
            known = ", ".join(RESTS)
            raise InputError(f"SparseTeacher: rest must be one of {known}, not {self.rest!r}")
        if self.ids.is_floating_point() or self.ids.is_complex() or self.ids.dtype == torch.bool:
            raise InputError(f"SparseTeacher: ids must be integers, not {self.ids.dtype}")
        if self.ids.dtype not in (torch.int32, torch.int64):  # PyTorch computes little with others
            object.__setattr__(self, "ids", self.ids.long())
        if not self.log_probs.is_floating_point():
            raise InputError(
                f"SparseTeacher: log_probs must be floating, not {self.log_probs.dtype}"
            )
        if self.ids.dim() == 0 or self.ids.shape != self.log_probs.shape:
            raise InputError(
                "SparseTeacher: ids and log_probs must both be (..., K), not "
                f"{tuple(self.ids.shape)} and {tuple(self.log_probs.shape)}"
            )
        if self.ids.shape[-1] == 0:
            raise InputError("SparseTeacher: ids must list at least one id a position")
        if self.log_probs.requires_grad:
            raise InputError("SparseTeacher: log_probs requires grad; a teacher is a constant")
