"""What the losses of one batch share where the target is partly masked."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.methods.passes import Passes
from fastkd.nn.layout import Layout


@dataclass(frozen=True, eq=False)
class MaskedPasses(Passes):
    """Both models on one partly masked target; the teacher's is its last step.

    masked: (B, Tt) bool, where the student saw a mask; on the CPU, as `update`'s choices are
    shown: (B, Tt) ids, the student's decoder input
    rows: which rows of the decoder's states lie at masks, (M,), sentence by sentence
    taught_states: the teacher's states there, (M, width), each from the step that predicted it last
    """

    masked: Tensor
    shown: Tensor
    rows: Tensor
    update: int
    taught_states: Tensor | None = None

    @property
    def masked_states(self) -> Tensor:
        """The student's last states at the masks, (M, width)."""
        return self.student.output.rows.index_select(0, self.rows)

    @property
    def masked_target(self) -> Tensor:
        """The pieces behind the masks, (M,)."""
        return self.target.index_select(0, self.rows)


def rows_where(layout: Layout, mask: Tensor) -> Tensor:
    """Which rows of `layout` are the tokens where `mask` (B, T) bool, on the CPU, is true."""
    if layout.packed:
        mask = mask[torch.arange(layout.time) < layout.lengths[:, None]]
    return mask.flatten().nonzero().squeeze(1).to(layout.device, non_blocking=True)
