"""Distillation in TRL's `SFTTrainer`: chat templates, completion-only losses, packing.

trainer = DistillationSFTTrainer(
    model=student, teacher=teacher, losses=[CrossEntropy(weight=0.5), WordKD()], args=config, ...
)
"""

from typing import TYPE_CHECKING

from fastkd.errors import InputError
from fastkd.integrations.trainer import DistillationMixin

SUPPORTED = "1.0 to 1.x"

try:
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as error:
    raise ImportError(
        f"fastkd.integrations.trl needs TRL {SUPPORTED}: pip install 'fastkd[trl]'"
    ) from error

if TYPE_CHECKING:
    _Trainer = object
else:
    _Trainer = SFTTrainer


class DistillationSFTTrainer(DistillationMixin, _Trainer):
    """`SFTTrainer` with fastkd's losses; arguments as those of `DistillationMixin`.

    Which labels count is what SFTTrainer's collator says: the completion's or the assistant's, and
    in packed rows none across their borders. A2D has no maps of packed rows and refuses them.
    Evaluation is SFTTrainer's own.
    """

    def _refuse_what_would_be_ignored(self) -> None:
        super()._refuse_what_would_be_ignored()
        if (kind := getattr(self.args, "loss_type", "nll")) != "nll":
            raise InputError(f"loss_type: expected nll with fastkd's losses, not {kind!r}")
