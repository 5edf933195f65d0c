"""Transformers models as the losses see them: last states and taps, in place of logits."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.modeling_outputs import BaseModelOutput

from fastkd.integrations.heads import Head
from fastkd.integrations.transformers import ModelTaps, attention_taps
from fastkd.terms.passes import Projection

IGNORED = -100
TEACHER_IDS, TEACHER_LOG_PROBS = "teacher_ids", "teacher_log_probs"
COLUMNS = (TEACHER_IDS, TEACHER_LOG_PROBS)

Inputs = Mapping[str, Any]


class Call:
    """`head.model` called with `inputs`, of which `labels` are withheld, while `stack` is open.

    taps: whether queries and keys of its attention layers are wanted
    """

    def __init__(self, head: Head, inputs: Inputs, stack: contextlib.ExitStack, taps: bool) -> None:
        self.head, self.model = head, head.model
        self.labels: Tensor = inputs["labels"]
        self.inputs = {k: v for k, v in inputs.items() if k not in ("labels", *COLUMNS)}
        if is_encoder_decoder(self.model):
            self.inputs.setdefault("decoder_input_ids", shifted_right(self.labels, self.model))
        if is_encoder_decoder(self.model) or shifts_labels(self.model):
            self.inputs["use_cache"] = False
        head.learn(self.inputs)
        self.taps: ModelTaps | None = None
        if taps:
            self.taps = stack.enter_context(attention_taps(self.model))  # type: ignore[arg-type]
        stack.enter_context(head.taking())
        # After the hook of the taps, which reads the labels.
        hook = self.model.register_forward_pre_hook(self._without_labels, with_kwargs=True)
        stack.callback(hook.remove)

    def _without_labels(
        self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # With labels the model would compute a loss of its own, of the logits that it lacks.
        return (), self.inputs

    def passed(self, output: Any) -> "ModelPass":
        """What the call came to, whose output this is."""
        return ModelPass(self, self.head.taken, getattr(output, "encoder_last_hidden_state", None))


@dataclass(frozen=True, eq=False)
class ModelPass:
    """One model on one decoder input; a `fastkd.terms.passes.Pass`, one state a predicted label.

    hidden: (B, T, width), what entered the head
    encoded: (B, Ts, width), last states of the encoder, where there is one
    """

    call: Call
    hidden: Tensor
    encoded: Tensor | None

    @property
    def states(self) -> Tensor:
        hidden = self.hidden[:, :-1] if shifts_labels(self.call.model) else self.hidden
        return self.call.head.scaled(hidden)

    @property
    def projection(self) -> Projection:
        return self.call.head.projection

    @property
    def encoder_states(self) -> Tensor:
        assert self.encoded is not None
        return self.encoded

    @property
    def encoder_mask(self) -> Tensor:
        mask: Tensor | None = self.call.inputs.get("attention_mask")
        if mask is None:
            assert self.encoded is not None
            return torch.ones(self.encoded.shape[:2], dtype=torch.bool, device=self.encoded.device)
        return mask != 0

    @property
    def taps(self) -> ModelTaps:
        assert self.call.taps is not None
        return self.call.taps

    def again(self, prediction: Tensor) -> "ModelPass":
        """The decoder on `prediction` (B, T) in place of the labels.

        The encoder is not rerun, and the taps stay those of the first pass.
        """
        call = self.call
        config: Any = call.model.config
        start = call.inputs["decoder_input_ids"][:, :1]
        shifted = torch.cat([start, prediction[:, :-1]], dim=1)
        inputs = {
            **call.inputs,
            "decoder_input_ids": shifted.masked_fill(call.labels == IGNORED, config.pad_token_id),
            "encoder_outputs": BaseModelOutput(last_hidden_state=self.encoded),
        }
        # Hooks, which this goes past, are for the first pass.
        call.model.forward(**inputs)
        return ModelPass(call, call.head.taken, self.encoded)


def is_encoder_decoder(model: nn.Module) -> bool:
    return bool(model.config.is_encoder_decoder)  # type: ignore[union-attr]


def shifts_labels(model: nn.Module) -> bool:
    """Whether label i + 1 is what state i predicts, as in decoder-only models."""
    loss = LOSS_MAPPING.get(getattr(model, "loss_type", ""))
    return loss is ForCausalLMLoss and not is_encoder_decoder(model)


def predicted(model: nn.Module, labels: Tensor) -> Tensor:
    """The labels, or what lies beside them (B, T, *), at the positions that `model` predicts."""
    return labels[:, 1:] if shifts_labels(model) else labels


def shifted_right(labels: Tensor, model: nn.Module) -> Tensor:
    """The decoder's start, then the labels but the last; padding for −100."""
    config: Any = model.config
    start = labels.new_full((len(labels), 1), config.decoder_start_token_id)
    read = torch.cat([start, labels[:, :-1]], dim=1)
    return read.masked_fill(read == IGNORED, config.pad_token_id)
