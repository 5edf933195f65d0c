"""One Transformers model on one batch: its last states and taps, in place of logits."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.modeling_outputs import BaseModelOutput

from fastkd.integrations.heads import Head
from fastkd.integrations.transformers import ModelTaps, attention_taps

IGNORED = -100
TEACHER_IDS, TEACHER_LOG_PROBS = "teacher_ids", "teacher_log_probs"
COLUMNS = (TEACHER_IDS, TEACHER_LOG_PROBS)

Inputs = Mapping[str, Any]
States = tuple[Tensor, Tensor, Tensor | None]  # hidden (B, T, D), weight (V, D), bias (V,)


class ModelPass:
    """`head.model` on `inputs`, what it is called with and `labels`, while `stack` is open.

    taps: whether queries and keys of its attention layers are wanted
    """

    def __init__(self, head: Head, inputs: Inputs, stack: contextlib.ExitStack, taps: bool) -> None:
        self.head, self.model = head, head.model
        self.labels: Tensor = inputs["labels"]
        self.encoded: Tensor | None = None  # last encoder states
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

    def _without_labels(self, model: nn.Module, arguments: tuple, keywords: dict) -> tuple:
        # With labels the model would compute a loss of its own, of the logits that it lacks.
        return (), self.inputs

    def states(self, output: Any = None) -> States:
        """What gives the logits for the predicted labels, after a pass with this output."""
        if output is not None:
            self.encoded = getattr(output, "encoder_last_hidden_state", None)
        assert self.head.hidden is not None
        hidden = self.head.hidden
        return self.head.projected(hidden[:, :-1] if shifts_labels(self.model) else hidden)

    def again(self, prediction: Tensor) -> States:
        """The states where the decoder reads `prediction` (B, T) in place of the labels.

        The encoder is not rerun, and the taps stay those of the first pass.
        """
        config: Any = self.model.config
        start = self.inputs["decoder_input_ids"][:, :1]
        shifted = torch.cat([start, prediction[:, :-1]], dim=1)
        inputs = {
            **self.inputs,
            "decoder_input_ids": shifted.masked_fill(self.labels == IGNORED, config.pad_token_id),
            "encoder_outputs": BaseModelOutput(last_hidden_state=self.encoded),
        }
        # Hooks, which this goes past, are for the first pass.
        self.model.forward(**inputs)
        return self.states()


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
