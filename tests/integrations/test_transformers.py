"""Taps of Hugging Face models against the maps that the models themselves give."""

import importlib.util
import re

import pytest
import torch

import fastkd

transformers = pytest.importorskip("transformers", minversion="5.1")

from fastkd.integrations.transformers import attention_taps
from tests.integrations.families import (
    FAMILIES,
    ONE_STACK,
    TS,
    VOCABULARY,
    B,
    build,
    inputs_of,
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


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bert"])
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


@pytest.mark.slow
@pytest.mark.parametrize("family", ["marian", "llama"])
@pytest.mark.parametrize("compiled_before", [False, True])
def test_compiled_models_train_the_same(family, compiled_before):
    teacher, inputs = build(family), inputs_of(family)
    found = []
    for compiling in (False, True):
        torch._dynamo.reset()
        student = build(family)
        torch.manual_seed(5)
        for parameter in student.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        if compiling:
            student.compile(backend="aot_eager")
        if compiled_before:
            student(**inputs)
        with attention_taps(student) as ours, attention_taps(teacher) as theirs:
            student(**inputs)
            with torch.no_grad():
                teacher(**inputs)
            torch.manual_seed(6)
            align = fastkd.AlignToDistill.from_taps(ours, theirs, normalization="row")
            loss = align(ours, theirs).loss
            loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in student.named_parameters()}))
    (loss, gradients), (compiled_loss, compiled_gradients) = found
    torch.testing.assert_close(compiled_loss, loss)
    assert any(gradient is not None for gradient in gradients.values())
    for name, gradient in gradients.items():
        other = compiled_gradients[name]  # zeros where there is none
        if gradient is None:
            assert other is None or not other.any()
        else:
            torch.testing.assert_close(other, gradient, msg=name)


def random_model(name, head="ForCausalLM", **changes):
    settings = {**ONE_STACK, "num_key_value_heads": 2, "head_dim": 4, **changes}
    torch.manual_seed(0)
    return getattr(transformers, name + head)(getattr(transformers, f"{name}Config")(**settings))


def assert_refused(model, inputs, what, kind="decoder"):
    with attention_taps(model.eval()) as taps:
        model(**inputs)
        with pytest.raises(fastkd.InputError, match=f"{what}.*alignment_loss_from_maps"):
            getattr(taps, kind)


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("qwen2", "attention_mask", "decoder"),
        ("bert", "attention_mask", "encoder"),
        ("marian", "attention_mask", "encoder"),
        ("bart", "attention_mask", "cross"),
        ("m2m100", "decoder_attention_mask", "decoder"),
    ],
)
def test_left_padding_is_refused(family, name, kind):
    inputs = inputs_of(family)
    inputs[name] = inputs[name].flip(1)
    assert_refused(build(family), inputs, f"{name}: cannot serve left padding", kind)


def test_packed_sequences_are_refused():
    model, positions = build("qwen2"), torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    ids = inputs_of("qwen2")["input_ids"]
    inputs = {"input_ids": ids, "position_ids": positions.expand(B, -1)}
    assert_refused(model, inputs, "packed sequences")
    inputs = {"input_ids": ids[:1], "cu_seq_lens_q": torch.tensor([0, 3, 7])}
    assert_refused(model, inputs, "packed sequences")
    blocks = (positions.cumsum(1) >= 3) == (positions.cumsum(1) >= 3).mT
    inputs = {"input_ids": ids, "attention_mask": (blocks.tril())[None, None].expand(B, 1, -1, -1)}
    assert_refused(model, inputs, "attention_mask: expected")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_sliding_windows_are_refused_where_they_cut(implementation):
    window = {"use_sliding_window": True, "max_window_layers": 0}
    model = build("qwen2", implementation, **window, sliding_window=3)
    assert_refused(model, inputs_of("qwen2"), "a sliding window")
    model = build("qwen2", implementation, **window, sliding_window=TS)
    with attention_taps(model) as taps:
        model(**inputs_of("qwen2"))
        assert len(taps.decoder.query) == 2


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (lambda: random_model("Gemma2", layer_types=["full_attention"] * 2), "a soft cap"),
        (lambda: random_model("GptOss", layer_types=["full_attention"] * 2), "attention sinks"),
        # The window is in the mask alone.
        (lambda: random_model("Phimoe", sliding_window=3), "an attention mask beyond"),
        (lambda: random_model("Bloom"), "no attention layers of a known form"),  # alibi
    ],
)
def test_what_queries_and_keys_do_not_determine_is_refused(model, what):
    if what.startswith("no attention"):
        with pytest.raises(fastkd.InputError, match=f"{what}.*alignment_loss_from_maps"):
            attention_taps(model()).__enter__()
    else:
        assert_refused(model(), inputs_of("llama"), what)


def test_layers_of_different_scales_are_refused():
    model = random_model("Llama")
    model.model.layers[1].self_attn.scaling = 0.3
    assert_refused(model, inputs_of("llama"), "layers that differ in scale")


def test_shared_layers_are_refused():
    model = random_model("Albert", "ForMaskedLM", embedding_size=16)
    assert_refused(model, inputs_of("bert"), "a layer that attends twice", "encoder")


def test_layers_past_the_interface_are_refused():
    settings = {**FAMILIES["bart"][2], "attn_implementation": "eager"}
    model = transformers.MvpForConditionalGeneration(transformers.MvpConfig(**settings))
    assert_refused(model, inputs_of("bart"), "AttentionInterface", "cross")


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_position_biases_are_refused(kind):
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    model = transformers.T5ForConditionalGeneration(config)
    assert_refused(model, inputs_of("marian"), "a position bias", kind)


def test_taps_before_any_pass_are_refused():
    complaint = pytest.raises(fastkd.InputError, match="no forward pass")
    with attention_taps(build("qwen2")) as taps, complaint:
        _ = taps.decoder


def test_labels_tell_the_target_lengths():
    model, inputs = build("marian"), inputs_of("marian")
    del inputs["decoder_attention_mask"], inputs["decoder_input_ids"]
    labels = torch.tensor([[5, 6, 7, 1], [5, 1, -100, -100], [1, -100, -100, -100]])
    with attention_taps(model) as taps:
        model(**inputs, labels=labels)
        assert taps.cross.query_lengths.tolist() == [4, 2, 1]
        assert taps.cross.key_lengths.tolist() == [7, 4, 6]


@pytest.mark.parametrize("version", ["4.57.1", "5.0.0", "6.0.0"])
def test_other_versions_are_refused_at_import(monkeypatch, version):
    name = "fastkd.integrations.transformers"
    imported = importlib.import_module("transformers")  # the one that an import finds now
    monkeypatch.setattr(imported, "__version__", version)
    specification = importlib.util.find_spec(name)
    complaint = re.escape(f"needs Transformers 5.1 to 5.x, not {version}")
    with pytest.raises(ImportError, match=complaint):
        specification.loader.exec_module(importlib.util.module_from_spec(specification))
