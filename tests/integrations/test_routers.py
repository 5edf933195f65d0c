"""The losses of a mixture of experts' routers, which the model adds to its own."""

import pytest
import torch

import fastkd
from fastkd.losses import CrossEntropy, TieKD

transformers = pytest.importorskip("transformers", minversion="5.1")

from fastkd.integrations.distillation import Distillation
from tests.integrations.families import (
    ONE_STACK,
    SEQ2SEQ,
    VOCABULARY,
    causal,
    labelled,
    of,
)

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)
EXPERTS = {
    **ONE_STACK,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "num_attention_heads": 2,
    "num_local_experts": 4,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.5,
}


def test_router_losses_are_kept():
    model = of("MixtralForCausalLM", EXPERTS)
    inputs = causal()
    loss, components = Distillation(model, [PLAIN])(model, inputs)
    expected = model(**inputs).loss
    torch.testing.assert_close(loss, expected)
    assert components["router"] > 0
    loss.backward()
    assert model.model.layers[0].mlp.gate.weight.grad.abs().max() > 0


def test_router_losses_are_means_over_an_updates_batches():
    model = of("MixtralForCausalLM", EXPERTS)
    distillation = Distillation(model, [PLAIN])
    pieces = [causal(seed=1), causal(rows=2, time=5, seed=2)]
    counts = distillation.counts(pieces)
    found = sum(distillation(model, piece, counts).components["router"] for piece in pieces)
    with torch.no_grad():
        expected = sum(model(**piece).aux_loss for piece in pieces) / 2
    torch.testing.assert_close(found, expected)


def test_router_losses_that_the_model_leaves_out_stay_out():
    model = of("MixtralForCausalLM", {**EXPERTS, "output_router_logits": False})
    inputs = causal()
    loss, components = Distillation(model, [PLAIN])(model, inputs)
    expected = model(**inputs).loss
    torch.testing.assert_close(loss, expected)
    assert "router" not in components


def test_passes_of_predictions_with_routers():
    settings = {
        **SEQ2SEQ,
        "num_experts": 4,
        "expert_capacity": 64,
        "encoder_sparse_step": 1,
        "decoder_sparse_step": 1,
    }
    models = [of("NllbMoeForConditionalGeneration", settings) for _ in range(2)]
    inputs = labelled("marian")
    distillation = Distillation(models[0], [PLAIN, TieKD(iterations=2)], models[1], verify=False)
    distillation(models[0], inputs)[0].backward()


SWITCH = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 2,
    "num_sparse_encoder_layers": 1,
    "num_decoder_layers": 2,
    "num_sparse_decoder_layers": 1,
    "num_heads": 2,
    "num_experts": 4,
    "expert_capacity": 64,
    "decoder_start_token_id": 0,
    "router_z_loss_coef": 0.3,
    "router_aux_loss_coef": 0.7,
    "dropout_rate": 0.0,
    "router_jitter_noise": 0.0,
}


@pytest.mark.parametrize("sparse_decoder", [1, 0])
def test_router_losses_of_two_coefficients(sparse_decoder):
    """Switch adds a balancing loss and one of the router's normaliser, of either stack."""
    settings = {**SWITCH, "num_sparse_decoder_layers": sparse_decoder}
    model = of("SwitchTransformersForConditionalGeneration", settings).double()
    if not sparse_decoder:
        model.decoder.config.decoder_sparse_step = 1  # what its own loss takes for none
    inputs = {**labelled("marian"), "output_router_logits": True}
    loss, components = Distillation(model, [PLAIN], backend="reference")(model, inputs)
    own = model(**inputs)
    torch.testing.assert_close(loss, own.loss)
    parts = {
        "router": own.encoder_aux_loss + own.decoder_aux_loss,
        "router_z": own.encoder_z_loss + own.decoder_z_loss,
    }
    for name, value in parts.items():
        torch.testing.assert_close(components[name], value.detach())
    ours = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(own.loss, list(model.parameters()), allow_unused=True)
    for found, expected in zip(ours, theirs, strict=True):
        if expected is None:
            assert found is None or not found.any()
        else:
            torch.testing.assert_close(found, expected)


def test_router_losses_that_are_told_only_with_labels_are_refused():
    settings = {
        **SEQ2SEQ,
        "num_experts": 4,
        "expert_capacity": 64,
        "router_aux_loss_coef": 0.7,
        "encoder_sparse_step": 1,
        "decoder_sparse_step": 1,
    }
    model = of("NllbMoeForConditionalGeneration", settings)
    inputs = {**labelled("marian"), "output_router_logits": True}
    inputs["decoder_attention_mask"] = (inputs["labels"] != -100).long()
    with pytest.raises(fastkd.InputError, match="its own loss of a batch"):
        Distillation(model, [PLAIN])(model, inputs)
