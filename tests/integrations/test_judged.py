"""The model's own loss as the judge: equal to it, or refused in one line."""

import copy

import pytest
import torch

import fastkd
from fastkd.losses import A2D, CrossEntropy, TieKD, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")

from fastkd.integrations.distillation import Distillation  # noqa: E402
from fastkd.integrations.teacher_columns import TeacherCollator, teacher_columns  # noqa: E402
from tests.integrations.families import (  # noqa: E402
    ONE_STACK,
    SEQ2SEQ,
    VOCABULARY,
    build,
    causal,
    labelled,
    of,
    teacher_and_student,
)

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
TINY = {**ONE_STACK, "num_hidden_layers": 1, "num_key_value_heads": 2}


class TinyStudent(transformers.LlamaForCausalLM):
    """A user's own class, whose name tells Transformers no loss type."""


class Unshifted(transformers.LlamaForCausalLM):
    """Labels that stand where they are predicted."""

    def forward(self, labels=None, **inputs):
        output = super().forward(**inputs)
        if labels is not None:
            output.loss = torch.nn.functional.cross_entropy(output.logits.mT, labels)
        return output


class Smoothed(transformers.LlamaForCausalLM):
    """A loss that is no cross-entropy of the labels."""

    def forward(self, labels=None, **inputs):
        output = super().forward(**inputs)
        if labels is not None:
            output.loss = torch.nn.functional.cross_entropy(
                output.logits[:, :-1].mT, labels[:, 1:], label_smoothing=0.3
            )
        return output


def own_and_ours(model, inputs):
    loss, components = Distillation(model, [PLAIN])(model, inputs)
    return model(**inputs).loss, loss, components


SHIFTED = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "subclass": (TinyStudent, TINY),
    "opt": (
        "OPTForCausalLM",
        {**ONE_STACK, "ffn_dim": 16, "word_embed_proj_dim": 16, "dropout": 0.0},
    ),
    "gpt neo": (
        "GPTNeoForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
        | {"attention_types": [[["global"], 1]], "max_position_embeddings": 32},
    ),
    "bert decoder": ("BertLMHeadModel", {**ONE_STACK, "is_decoder": True}),
    "unshifted": (Unshifted, TINY),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_labels_are_shifted_as_the_model_does(name):
    model = of(*SHIFTED[name])
    expected, loss, _ = own_and_ours(model, causal())
    torch.testing.assert_close(loss, expected)
    elsewhere = {**causal(), "labels": causal()["labels"].clone()}
    elsewhere["labels"][:, :3] = -100  # a masked prompt
    torch.testing.assert_close(*own_and_ours(model, elsewhere)[:2])


@pytest.mark.parametrize("name", ["gpt2", "subclass"])
def test_columns_are_of_the_labels_that_are_predicted(name):
    teacher, student = of(*SHIFTED[name]), of(*SHIFTED[name])
    torch.nn.init.normal_(teacher.get_input_embeddings().weight)
    inputs, losses = causal(), [PLAIN, WordKD()]
    expected, _ = Distillation(student, losses, teacher)(student, inputs)
    columns = teacher_columns(teacher, inputs, top_k=VOCABULARY)
    features = [{k: v[row] for k, v in {**inputs, **columns}.items()} for row in range(3)]

    def collate(rows):
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    batch = TeacherCollator(collate, shifted=True)(features)
    torch.testing.assert_close(Distillation(student, losses)(student, batch)[0], expected)


def test_a_student_learns_what_it_is_trained_for():
    """Text in which each id follows from the one before it, so that copying does not help."""
    model = of("GPT2LMHeadModel", GPT2).train()
    distillation = Distillation(model, [PLAIN])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    start = torch.arange(8)[:, None] * 2
    ids = (start + torch.arange(12)) % VOCABULARY
    own = []
    for _ in range(60):
        loss, _ = distillation(model, {"input_ids": ids, "labels": ids})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        own.append(model.eval()(input_ids=ids, labels=ids).loss.item())
        model.train()
    assert own[-1] < 0.3 * own[0]
    torch.testing.assert_close(loss.item(), own[-2], rtol=0.3, atol=0.1)


MBART = {**SEQ2SEQ, "forced_eos_token_id": None}


def with_language_codes():
    inputs = labelled("marian")
    labels = inputs["labels"]
    ends = (labels != -100).sum(1) - 1
    labels[torch.arange(3), ends] = torch.tensor([17, 18, 17])
    return inputs


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("MBartForConditionalGeneration", MBART),
        ("PLBartForConditionalGeneration", MBART),
        ("BlenderbotForConditionalGeneration", SEQ2SEQ),
        ("PegasusForConditionalGeneration", SEQ2SEQ),
        (
            "T5ForConditionalGeneration",
            {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1}
            | {"num_heads": 2, "decoder_start_token_id": 0},
        ),
    ],
)
def test_the_decoder_reads_what_its_model_makes_of_the_labels(name, settings):
    model = of(name, settings)
    torch.testing.assert_close(*own_and_ours(model, with_language_codes())[:2])


def test_predictions_follow_the_models_own_start():
    """mBART's decoder starts with the language code, at the end of the labels."""
    student, teacher = of("MBartForConditionalGeneration", MBART), build("bart")
    inputs = with_language_codes()
    labels, read = inputs["labels"], []
    for model in (student, teacher):
        model.get_decoder().embed_tokens.register_forward_hook(
            lambda module, arguments, output: read.append(arguments[0].clone())
        )
    distillation = Distillation(student, [TieKD(iterations=2)], teacher)
    distillation(student, inputs)
    read.clear()
    distillation(student, inputs)
    codes = labels.gather(1, (labels != -100).sum(1, keepdim=True) - 1)
    starts = [ids[:, :1] for ids in read if ids.shape == labels.shape]
    assert len(starts) == 4  # the teacher's, the student's, and both again
    for index, start in enumerate(starts):
        of_teacher = index in (0, 2)
        assert torch.equal(start, torch.full_like(start, 2) if of_teacher else codes)


def test_the_teacher_reads_its_own_start_where_a_collator_made_the_inputs():
    student = build("marian", decoder_start_token_id=0)
    teacher = build("marian", decoder_start_token_id=2)
    inputs = labelled("marian")
    expected, _ = Distillation(student, [WordKD()], teacher)(student, inputs)
    collated = {
        **inputs,
        "decoder_input_ids": student.prepare_decoder_input_ids_from_labels(inputs["labels"])
        if hasattr(student, "prepare_decoder_input_ids_from_labels")
        else torch.cat([torch.zeros(3, 1).long(), inputs["labels"][:, :-1]], 1).clamp(min=0),
    }
    loss, _ = Distillation(student, [WordKD()], teacher)(student, collated)
    torch.testing.assert_close(loss, expected)


def test_decoder_inputs_that_no_labels_make_are_read_by_both():
    teacher, student = teacher_and_student("marian")
    inputs = labelled("marian")
    inputs["decoder_input_ids"] = torch.randint(3, VOCABULARY, inputs["labels"].shape)
    _, components = Distillation(student, [WordKD()], teacher)(student, inputs)
    given = {k: v for k, v in inputs.items() if k != "labels"}
    p, q = (model(**given).logits.log_softmax(-1) for model in (student, teacher))
    counted = inputs["labels"] != -100
    expected = (q.exp() * (q - p)).sum(-1)[counted].mean()
    torch.testing.assert_close(components["word_kd"], expected.detach())


HOOKS = {
    "scales": lambda head: head.register_forward_hook(
        lambda module, arguments, output: 0.5 * output
    ),
    "before it": lambda head: head.register_forward_pre_hook(lambda module, given: (2 * given[0],)),
    "bans": lambda head: head.register_forward_hook(
        lambda module, arguments, output: output.index_fill(-1, torch.tensor([1, 2]), -1e4)
    ),
    "weight norm": lambda head: torch.nn.utils.parametrizations.weight_norm(head),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("late", [False, True])
def test_what_users_do_to_the_head(hook, late):
    model = of(TinyStudent, TINY)
    distillation = Distillation(model, [PLAIN])
    if late:
        distillation(model, causal())
    HOOKS[hook](model.lm_head)
    if not late:
        distillation = Distillation(model, [PLAIN])
    if hook == "bans":
        with pytest.raises(fastkd.InputError, match="no scale, offset or soft cap"):
            distillation(model, causal())
        return
    torch.testing.assert_close(distillation(model, causal())[0], model(**causal()).loss)


def test_embeddings_resized_after_construction():
    model = build("llama")
    distillation = Distillation(model, [PLAIN])
    distillation(model, causal())
    model.resize_token_embeddings(VOCABULARY + 8)
    torch.testing.assert_close(distillation(model, causal())[0], model(**causal()).loss)


def test_another_loss_is_refused_with_both_numbers():
    model = of(Smoothed, TINY)
    own = model(**causal()).loss.item()
    with pytest.raises(fastkd.InputError, match=rf"own loss .* is {own:.4g}.*verify=False"):
        Distillation(model, [PLAIN])(model, causal())
    Distillation(model, [PLAIN], verify=False)(model, causal())


def test_each_new_kind_of_batch_is_judged():
    model = of(TinyStudent, TINY)
    distillation = Distillation(model, [PLAIN])
    passes = []
    model.lm_head.register_forward_hook(lambda *call: passes.append(model.training))
    distillation(model, causal())
    first = len(passes)
    passes.clear()
    distillation(model, causal(rows=2, time=5))
    assert len(passes) == 1 < first
    passes.clear()
    distillation(model, {**causal(), "attention_mask": torch.ones(3, 7).long()})
    assert len(passes) > 1


def test_judging_leaves_no_trace():
    model = of("GPT2LMHeadModel", GPT2).train()  # its dropout draws
    model.transformer.h[0].eval()
    model.register_buffer("seen", torch.zeros(()))
    model.register_forward_pre_hook(lambda module, given: module.seen.add_(1) and None)
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    distillation = Distillation(model, [PLAIN])
    distillation.counts([causal()])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.seen == 0
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_teacher_that_shares_what_is_trained_is_refused():
    teacher, student = build("llama"), build("llama")
    teacher.model.embed_tokens = student.model.embed_tokens
    with pytest.raises(fastkd.InputError, match=r"shares model\.embed_tokens\.weight"):
        Distillation(student, [WordKD()], teacher)
    with pytest.raises(fastkd.InputError, match="expected a copy"):
        Distillation(student, [WordKD()], student)
    assert all(parameter.requires_grad for parameter in student.parameters())
    student.model.embed_tokens.requires_grad_(False)
    Distillation(student, [WordKD()], teacher)
    Distillation(student, [WordKD()], copy.deepcopy(student))


def test_batches_whose_tensors_are_no_rows():
    """Images, packed lengths and scalars beside the ids: nothing is cut to a first row."""

    class Sighted(transformers.LlamaForCausalLM):
        def forward(self, pixel_values=None, image_sizes=None, scale=None, **inputs):
            assert pixel_values.shape == (5, 2) and image_sizes.shape == (4,)
            assert scale.dim() == 0
            return super().forward(**inputs)

    model = of(Sighted, TINY)
    inputs = {
        **causal(),
        "pixel_values": torch.ones(5, 2),
        "image_sizes": torch.tensor([0, 1, 3, 5]),
        "scale": torch.tensor(2.0),
    }
    torch.testing.assert_close(*own_and_ours(model, inputs)[:2])


def test_embedded_inputs():
    model = build("llama")
    inputs = causal()
    embedded = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    torch.testing.assert_close(*own_and_ours(model, {**inputs, "inputs_embeds": embedded})[:2])


def test_speech():
    settings = {
        **{k: v for k, v in SEQ2SEQ.items() if k != "max_position_embeddings"},
        "num_mel_bins": 4,
        "max_source_positions": 8,
        "max_target_positions": 16,
        "decoder_start_token_id": 2,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
    model = of("WhisperForConditionalGeneration", settings)
    inputs = {"input_features": torch.randn(3, 4, 16), "labels": labelled("marian")["labels"]}
    torch.testing.assert_close(*own_and_ours(model, inputs)[:2])
    teacher = copy.deepcopy(model)
    Distillation(model, [PLAIN, TieKD(iterations=2)], teacher)(model, inputs)[0].backward()


def test_a_teacher_that_predicts_other_labels_is_refused():
    student = build("llama")
    teacher = of(Unshifted, TINY)
    with pytest.raises(fastkd.InputError, match="predicts the labels that the student does"):
        Distillation(student, [WordKD(), A2D()], teacher)(student, causal())


def test_what_one_process_refuses_ends_all(tmp_path):
    """A bare loop, FSDP2 and Transformers' Trainer, of two processes: one line, and none waits."""
    pytest.importorskip("accelerate")
    from tests.together import together

    together(2, "tests.integrations.refused", str(tmp_path), timeout=300)
    own = "its own loss of a batch of input_ids, labels, attention_mask"
    expected = {
        **dict.fromkeys(("bare", "fsdp2", "fsdp2_teacher", "transformers"), own),
        **dict.fromkeys(("fsdp2_labels", "fsdp2_later"), "labels: expected in every batch"),
        "fsdp2_none": "batches: none in process 1",
        "fsdp2_start": "Startless: does not tell its decoder's input",
    }
    for way, line in expected.items():
        lines = [(tmp_path / f"{way}.{rank}").read_text() for rank in range(2)]
        assert line in lines[0], way
        assert lines[0] == lines[1], way


def test_counts_lie_where_labels_do(monkeypatch):
    """So that processes can sum them over NCCL, whatever they counted."""
    from fastkd.integrations import distillation as module
    from fastkd.integrations.heads import Head

    told, meta = [], torch.device("meta")
    monkeypatch.setattr(module, "several_processes", lambda: True)
    monkeypatch.setattr(module, "tell", told.append)
    monkeypatch.setattr(Head, "device", meta)
    distillation = Distillation(build("llama"), [PLAIN])
    assert distillation.counts([]).device == meta
    unlabelled = {"input_ids": causal()["input_ids"]}
    assert distillation.counts([unlabelled]).device == torch.device("cpu")
    assert distillation.counts([{"input_ids": unlabelled["input_ids"].to(meta)}]).device == meta
    assert distillation.counts([{}]).device == meta
    assert told == ["labels: expected in every batch"] * 3


@pytest.mark.parametrize("adapted", [False, True])
def test_a_decoder_of_any_model_masks_what_it_reads(adapted):
    """EncoderDecoderModel gives its decoder a mask beside the labels' input."""
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**ONE_STACK), transformers.BertConfig(**ONE_STACK)
    )
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    student, teacher = (transformers.EncoderDecoderModel(config).eval() for _ in "st")
    for parameter in (*student.parameters(), *teacher.parameters()):
        parameter.data.mul_(3)
    if adapted:
        peft = pytest.importorskip("peft")
        lora = {"r": 2, "target_modules": ["query"], "init_lora_weights": False}
        student = peft.get_peft_model(
            student, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **lora)
        ).eval()
    inputs = labelled("marian")
    inputs["labels"] = inputs["labels"].masked_fill(inputs["labels"] == 5, 0)  # a label that is pad
    for more in ({}, {"decoder_attention_mask": torch.ones(3, 5).long()}):
        torch.testing.assert_close(*own_and_ours(student, {**inputs, **more})[:2])
    _, components = Distillation(student, [WordKD()], teacher)(student, inputs)
    p, q = (model(**inputs).logits.log_softmax(-1) for model in (student, teacher))
    expected = (q.exp() * (q - p)).sum(-1)[inputs["labels"] != -100].mean()
    torch.testing.assert_close(components["word_kd"], expected.detach())


@pytest.mark.parametrize("start", [{}, {"decoder_start_token_id": None}])
def test_why_a_model_does_not_tell_its_decoders_input_is_told(start):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = of("T5ForConditionalGeneration", {"vocab_size": VOCABULARY, **sizes, **start})
    own = r"its decoder's input \(.*decoder_start_token_id.*[^.]\); expected decoder_input_ids"
    with pytest.raises(fastkd.InputError, match=own):
        Distillation(model, [PLAIN], verify=False)(model, labelled("marian"))


def test_what_an_encoder_decoder_reads_otherwise_is_refused_with_what_to_pass():
    class Otherwise(transformers.MarianMTModel):
        def forward(self, labels=None, decoder_input_ids=None, **inputs):
            if decoder_input_ids is None:
                decoder_input_ids = labels.roll(1, 1).clamp(min=0)
            return super().forward(labels=labels, decoder_input_ids=decoder_input_ids, **inputs)

    model, inputs = of(Otherwise, SEQ2SEQ), labelled("marian")
    with pytest.raises(fastkd.InputError, match="or decoder_input_ids and decoder_attention_mask"):
        Distillation(model, [PLAIN])(model, inputs)
    inputs["decoder_input_ids"] = inputs["labels"].roll(1, 1).clamp(min=0)
    torch.testing.assert_close(*own_and_ours(model, inputs)[:2])
