"""Transformers models as the losses see them: last states and taps, in place of logits."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.integrations.models import IGNORED, Inputs, LanguageModel
from fastkd.integrations.transformers import ModelTaps, attention_taps
from fastkd.terms.passes import Projection


class Call:
    """`model` called with `inputs`, of which `labels` are withheld, while `stack` is open.

    taps: whether queries and keys of its attention layers are wanted
    """

    def __init__(
        self, model: LanguageModel, inputs: Inputs, stack: contextlib.ExitStack, taps: bool
    ) -> None:
        self.model = model
        self.labels: Tensor = inputs["labels"]
        self.inputs = model.read(inputs)
        model.head.learn(self.inputs)
        self.encoder_output: Any = None
        if model.is_encoder_decoder:
            encoder: Any = model.model.get_encoder()  # type: ignore[operator]
            stack.callback(encoder.register_forward_hook(self._encoded).remove)
        stack.enter_context(model.reading(self.inputs))
        self.taps: ModelTaps | None = None
        if taps:
            # Its hook before the one that withholds the labels, which it reads.
            self.taps = stack.enter_context(attention_taps(model.model))  # type: ignore[arg-type]
        stack.enter_context(model.head.taking())

    def _encoded(self, encoder: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self.encoder_output = output

    def passed(self, output: Any, within: bool = False) -> "ModelPass":
        """What the call came to, whose output this is.

        within: whether the model's own forward goes on, so that its modules need no gathering
        """
        if self.taps is not None:
            self.taps.keep()
        encoded = getattr(output, "encoder_last_hidden_state", None)
        return ModelPass(self, self._hidden(), encoded, within)

    def _hidden(self) -> Tensor:
        hidden = self.model.hidden_of(self.labels)
        self.model.head.hold()
        return hidden


@dataclass(frozen=True, eq=False)
class ModelPass:
    """One model on one decoder input; a `fastkd.terms.passes.Pass`, one state a predicted label.

    hidden: (B, T, width), what entered the head
    encoded: (B, Ts, width), last states of the encoder, where there is one
    within: whether it is within the model's own forward
    """

    call: Call
    hidden: Tensor
    encoded: Tensor | None
    within: bool

    @property
    def states(self) -> Tensor:
        model = self.call.model
        return model.head.scaled(model.predicting(self.hidden))

    @property
    def projection(self) -> Projection:
        return self.call.model.head.projection

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
        call, model = self.call, self.call.model
        start = call.inputs["decoder_input_ids"][:, :1]
        shifted = torch.cat([start, prediction[:, :-1]], dim=1)
        inputs = {
            **call.inputs,
            "decoder_input_ids": shifted.masked_fill(call.labels == IGNORED, model.pad_id),
            # Of the model's own class, which may hold more than states.
            "encoder_outputs": call.encoder_output,
        }
        # Within the first pass its hooks have done their work; of FSDP2's a second turn would end
        # what they began. After it they gather the model anew.
        (model.model.forward if self.within else model.model)(**inputs)
        return ModelPass(call, call._hidden(), self.encoded, self.within)
