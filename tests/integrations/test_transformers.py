"""Taps of Hugging Face models against the maps that the models themselves give."""

import importlib.util

import pytest
import torch

import fastkd

transformers = pytest.importorskip("transformers", minversion="5.0")

from fastkd.integrations.transformers import attention_taps  # noqa: E402
from tests.integrations.families import (  # noqa: E402
    FAMILIES,
    ONE_STACK,
    TS,
    VOCABULARY,
    B,
    build,
    inputs_of,
    padded,
)

MAPS = {
    "encoder": "encoder_attentions",
    "decoder": "decoder_attentions",
    "cross": "cross_attentions",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_outputs_do_not_change_by_a_bit(family, implementation):
    model, inputs = build(family, implementation), inputs_of(family)
    before = model(**inputs).logits
    with attention_taps(model):
        within = model(**inputs).logits
    assert torch.equal(within, before)
    assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalization", ["map", "row", "mixture"])
def test_loss_from_taps_equals_loss_from_maps(family, normalization):
    """The SDPA model's taps against the eager model's own attention maps."""
    inputs = inputs_of(family)
    teacher, student = build(family), build(family)
    torch.manual_seed(5)
    for parameter in student.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    eager = []
    for model in (student, teacher):
        twin = build(family, "eager")
        twin.load_state_dict(model.state_dict())
        eager.append(twin(**inputs, output_attentions=True))
    with torch.no_grad(), attention_taps(student) as ours, attention_taps(teacher) as theirs:
        student(**inputs)
        teacher(**inputs)
        taps = ours.taps, theirs.taps
    kinds = [kind for kind in MAPS if getattr(taps[0], kind) is not None]
    assert kinds == (list(MAPS) if "decoder_input_ids" in inputs else kinds[:1])
    for kind in kinds:
        student_tap, teacher_tap = getattr(taps[0], kind), getattr(taps[1], kind)
        align = fastkd.AttentionAlignment(
            student_tap.maps, teacher_tap.maps, normalization=normalization, backend="reference"
        )
        name = MAPS[kind] if "decoder_input_ids" in inputs else "attentions"
        maps = [torch.cat(list(getattr(output, name)), 1).detach() for output in eager]
        lengths = {
            "query_lengths": student_tap.query_lengths,
            "key_lengths": student_tap.key_lengths,
            "causal": student_tap.causal,
        }
        expected = align.from_maps(*maps, **lengths)
        loss = align(student_tap, teacher_tap)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
        assert loss > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_steps_lower_the_alignment(family):
    inputs = inputs_of(family)
    teacher, student = build(family), build(family)
    torch.manual_seed(6)
    for parameter in student.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    losses = []
    with attention_taps(student) as ours, attention_taps(teacher) as theirs:
        with torch.no_grad():
            teacher(**inputs)
        student(**inputs)
        align = fastkd.AlignToDistill.from_taps(ours, theirs, normalization="mixture")
        optimizer = torch.optim.Adam([*student.parameters(), *align.parameters()], lr=3e-3)
        for _ in range(8):
            student(**inputs)
            loss = align(ours, theirs).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("family", ["marian", "llama"])
def test_gradient_checkpointing_changes_nothing(family):
    inputs = inputs_of(family)
    gradients = []
    for checkpointing in (False, True):
        model = build(family).train()
        model.config.dropout = 0.0
        for module in model.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with attention_taps(model) as taps:
            model(**inputs)
            tap = taps.decoder
            fastkd.attention_alignment_loss(
                tap.query,
                tap.key,
                [q.detach().flip(1) for q in tap.query],
                [k.detach() for k in tap.key],
                query_lengths=tap.query_lengths,
                key_lengths=tap.key_lengths,
                causal=True,
                normalization="mixture",
            ).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_reentrant_checkpointing_is_refused():
    model = build("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with attention_taps(model) as taps:
        model(**inputs_of("llama"))
        with pytest.raises(fastkd.InputError, match="use_reentrant"):
            _ = taps.decoder


def test_everything_is_restored():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = dict(ALL_ATTENTION_FUNCTIONS._global_mapping)
    model = build("bart")
    with pytest.raises(RuntimeError, match="inside"), attention_taps(model):
        with pytest.raises(fastkd.InputError, match="tapped already"), attention_taps(model):
            pass
        raise RuntimeError("inside")
    assert dict(ALL_ATTENTION_FUNCTIONS._global_mapping) == before
    assert not model._forward_pre_hooks
    assert not any(hasattr(module, "_fastkd_tap") for module in model.modules())


def test_other_models_are_left_alone():
    tapped, other = build("llama"), build("llama", num_hidden_layers=1)
    with attention_taps(tapped) as taps:
        tapped(**inputs_of("llama"))
        other(**inputs_of("llama"))
        assert len(taps.decoder.query) == 2


def test_compiled_model():
    model, inputs = build("llama"), inputs_of("llama")
    with attention_taps(model) as taps, torch.no_grad():
        expected = model(**inputs).logits
        plain = taps.decoder
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(**inputs).logits, expected)
        for one, other in zip(taps.decoder.query, plain.query, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("what", ["left padding", "packed sequences", "a sliding window"])
def test_what_queries_and_keys_do_not_determine_is_refused(what):
    inputs = inputs_of("qwen2")
    window = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}
    model = build("qwen2", **(window if what == "a sliding window" else {}))
    if what == "left padding":
        inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    if what == "packed sequences":
        inputs = {"input_ids": inputs["input_ids"]}
        inputs["position_ids"] = torch.tensor([[0, 1, 2, 0, 1, 2, 3]]).expand(B, -1)
    _assert_refused(model, inputs, what)


def test_soft_caps_are_refused():
    config = transformers.Gemma2Config(
        **{**ONE_STACK, "num_key_value_heads": 2, "head_dim": 4},
        layer_types=["full_attention"] * 2,
        attn_logit_softcapping=30.0,
    )
    model = transformers.Gemma2ForCausalLM(config).eval()
    _assert_refused(model, inputs_of("llama"), "a soft cap")


def _assert_refused(model, inputs, what):
    with attention_taps(model) as taps:
        model(**inputs)
        with pytest.raises(fastkd.InputError, match=f"{what}.*alignment_loss_from_maps"):
            _ = taps.decoder


def test_taps_before_any_pass_are_refused():
    complaint = pytest.raises(fastkd.InputError, match="no forward pass")
    with attention_taps(build("qwen2")) as taps, complaint:
        _ = taps.decoder


def test_position_bias_is_refused():
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    ids, mask = padded((7, 4, 6), TS, 1)
    with attention_taps(model) as taps:
        model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids)
        with pytest.raises(fastkd.InputError, match=r"position bias.*alignment_loss_from_maps"):
            _ = taps.encoder


def test_labels_tell_the_target_lengths():
    model, inputs = build("marian"), inputs_of("marian")
    del inputs["decoder_attention_mask"], inputs["decoder_input_ids"]
    labels = torch.tensor([[5, 6, 7, 1], [5, 1, -100, -100], [1, -100, -100, -100]])
    with attention_taps(model) as taps:
        model(**inputs, labels=labels)
        assert taps.cross.query_lengths.tolist() == [4, 2, 1]
        assert taps.cross.key_lengths.tolist() == [7, 4, 6]


def test_other_versions_are_refused_at_import(monkeypatch):
    name = "fastkd.integrations.transformers"
    imported = importlib.import_module("transformers")  # the one that an import finds now
    monkeypatch.setattr(imported, "__version__", "4.57.1")
    specification = importlib.util.find_spec(name)
    with pytest.raises(ImportError, match=r"needs Transformers 5\.0 to 5\.x, not 4\.57\.1"):
        specification.loader.exec_module(importlib.util.module_from_spec(specification))
