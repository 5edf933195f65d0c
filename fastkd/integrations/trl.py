"""Distillation in TRL's trainers: chat templates, completion-only losses, packing, on-policy text.

trainer = DistillationSFTTrainer(
    model=student, teacher=teacher, losses=[CrossEntropy(weight=0.5), WordKD()], args=config, ...
)
trainer = DistillationGKDTrainer(model=student, teacher=teacher, args=gkd_config, ...)
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from fastkd.errors import InputError
from fastkd.integrations.trainer import DistillationMixin
from fastkd.losses import WordKD

SUPPORTED = "1.0 to 1.x"

try:
    from trl.experimental.gkd import GKDConfig, GKDTrainer
    from trl.models.utils import unwrap_model_for_generation
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as error:
    raise ImportError(
        f"fastkd.integrations.trl needs TRL {SUPPORTED}: pip install 'fastkd[trl]'"
    ) from error

if TYPE_CHECKING:
    from transformers import Trainer as _GKDTrainer

    _Trainer = object
else:
    _Trainer, _GKDTrainer = SFTTrainer, GKDTrainer


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


class _WrittenBeforehand(_GKDTrainer):
    """GKDTrainer that has the text of an update written before its labels are counted."""

    lmbda: float
    seq_kd: bool
    teacher_model: Any
    generation_config: Any
    generation_kwargs: dict[str, Any]
    generate_on_policy_outputs: Any

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> tuple[list[Any], Any]:
        batches, items = super().get_batch_samples(*arguments, **keywords)
        return [self._written(batch) for batch in batches], items

    def _written(self, batch: dict[str, Any]) -> dict[str, Any]:
        """By the student with probability `lmbda`; else by the teacher, with `seq_kd`; or as is."""
        names = ("input_ids", "attention_mask", "labels")
        settings: dict[str, Any] = {"generation_kwargs": self.generation_kwargs}
        if random.random() <= self.lmbda:
            writer = self.model_wrapped
            settings["gradient_checkpointing_kwargs"] = self.args.gradient_checkpointing_kwargs
        elif self.seq_kd:
            writer = self.teacher_model
        else:
            return {name: batch[name] for name in names}
        with unwrap_model_for_generation(writer, self.accelerator, **settings) as model:
            texts = self.generate_on_policy_outputs(model, batch, self.generation_config)
        return dict(zip(names, texts, strict=True))

    def training_step(self, *arguments: Any, **keywords: Any) -> Any:
        # GKDTrainer's own would write a second time.
        step: Any = SFTTrainer.training_step
        return step(self, *arguments, **keywords)


class DistillationGKDTrainer(DistillationMixin, _WrittenBeforehand):
    """TRL's on-policy `GKDTrainer` with fastkd's losses, whose logits are never held.

    teacher: takes the place of `teacher_model`
    losses: None for GKD's own, the generalized Jensen-Shannon divergence of `args.beta`. All are
        of what the student has written, where it writes; the labels of the whole update divide
    args: a `GKDConfig`, of which `lmbda`, `temperature`, `max_new_tokens` and `seq_kd` say who
        writes, and how

    The remaining arguments are those of `GKDTrainer` and `DistillationMixin`. Evaluation is
    GKDTrainer's own.

    Source: Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024, algorithm 1.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        teacher: nn.Module,
        args: GKDConfig,
        losses: Sequence[Any] | None = None,
        **keywords: Any,
    ) -> None:
        if losses is None:
            losses = [_divergence(args.beta)]
        elif args.beta != GKDConfig.beta:
            raise InputError(f"beta: expected the default where losses are given, not {args.beta}")
        keywords |= {"teacher": teacher, "teacher_model": teacher}
        super().__init__(model, losses=losses, args=args, **keywords)


def _divergence(beta: float) -> WordKD:
    """KL(q ‖ p) where beta is 0, KL(p ‖ q) where it is 1."""
    if beta in (0, 1):
        return WordKD(weight=1.0, divergence="reverse_kl" if beta else "kl")
    return WordKD(weight=1.0, divergence="jsd", beta=beta)
