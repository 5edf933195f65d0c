"""The judge in the types that models are trained in: as strict as their rounding allows."""

from dataclasses import replace

import pytest
import torch

import fastkd
from fastkd.losses import CrossEntropy

transformers = pytest.importorskip("transformers", minversion="5.1")

from fastkd.integrations import judge as judging
from fastkd.integrations.distillation import Distillation
from fastkd.integrations.heads import Head
from fastkd.integrations.models import LanguageModel
from tests.integrations.families import ONE_STACK, SEQ2SEQ, causal, labelled, of

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)
ONE = {**ONE_STACK, "num_key_value_heads": 2}
MODELS = {
    "llama": ("LlamaForCausalLM", ONE),
    "gemma2": ("Gemma2ForCausalLM", {**ONE, "head_dim": 4, "final_logit_softcapping": 0.3}),
    "cohere": ("CohereForCausalLM", {**ONE, "logit_scale": 0.3}),
    "bert": ("BertForMaskedLM", ONE_STACK),
    "marian": ("MarianMTModel", SEQ2SEQ),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 19, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        | {"decoder_start_token_id": 0},
    ),
    "mixtral": (
        "MixtralForCausalLM",
        {**ONE, "num_hidden_layers": 1, "num_local_experts": 4, "output_router_logits": True}
        | {"router_aux_loss_coef": 0.5},
    ),
}
NARROW = [torch.bfloat16, torch.float16]


def model_and_inputs(name, dtype):
    model = of(*MODELS[name]).to(dtype)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    return model, labelled("marian") if model.config.is_encoder_decoder else causal(time=12)


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_models_are_taken_as_they_are(name, dtype):
    model, inputs = model_and_inputs(name, dtype)
    loss, _ = Distillation(model, [PLAIN])(model, inputs)
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(loss.float(), model(**inputs).loss.float(), **close)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert"])
def test_under_autocast(name):
    """Logits of bfloat16 products, whatever type they are handed on in."""
    model, inputs = model_and_inputs(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        Distillation(model, [PLAIN])(model, inputs)

    class Widened(type(model)):
        def forward(self, **inputs):
            with torch.autocast("cpu", torch.bfloat16):
                output = super().forward(**inputs)  # as Accelerate wraps it
            output.logits = output.logits.float()
            return output

    model.__class__ = Widened
    Distillation(model, [PLAIN]).counts([inputs])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", MODELS)
def test_logits_that_are_cast_after_the_model(name, dtype):
    """As FSDP2 does where its policy has an `output_dtype`, which Accelerate's always has.

    Such models were refused, their logits as no scale of their output projection.
    """
    model, inputs = model_and_inputs(name, dtype)
    expected = Distillation(model, [PLAIN])(model, inputs).loss

    def cast(module, arguments, output):
        if isinstance(getattr(output, "logits", None), torch.Tensor):
            output.logits = output.logits.to(dtype).float()
        return output

    model.register_forward_hook(cast)
    loss, _ = Distillation(model, [PLAIN])(model, inputs)
    torch.testing.assert_close(loss, expected, rtol=torch.finfo(dtype).eps, atol=0)


def without(field):
    """A head that learns nothing of one thing."""
    fitted = Head._fitted
    default = {"cap": None, "scale": 1.0, "offset": None}[field]
    return lambda self, *given: replace(fitted(self, *given), **{field: default})


def one_label_early(model, labels):
    return torch.cat([labels[:, 1:], labels[:, :1]], 1).clamp(min=0)


def shift_told_wrong(model, *given):
    shifted, *rest = nearest(model, *given)
    return not shifted, *rest


nearest = judging._nearest
MUTATIONS = {
    "no soft cap": ("gemma2", Head, "_fitted", without("cap")),
    "no scale": ("cohere", Head, "_fitted", without("scale")),
    "no offset": ("marian", Head, "_fitted", without("offset")),
    "another decoder input": ("marian", LanguageModel, "decoder_input", one_label_early),
    "another shift": ("llama", judging, "_nearest", shift_told_wrong),
    "no router losses": ("mixtral", judging, "router_losses", lambda *given: []),
}


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32])
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_is_computed_differently_is_found(monkeypatch, mutation, dtype):
    name, place, what, instead = MUTATIONS[mutation]
    model, inputs = model_and_inputs(name, dtype)
    monkeypatch.setattr(place, what, instead)
    with pytest.raises(fastkd.InputError, match="its own loss of a batch of"):
        Distillation(model, [PLAIN])(model, inputs)
