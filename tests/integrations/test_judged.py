"""The model's own loss as the judge: equal to it, or refused in one line."""

import copy

import pytest
import torch

import fastkd
from fastkd.losses import A2D, TieKD, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")

from fastkd.integrations.distillation import Distillation
from fastkd.integrations.teacher_columns import TeacherCollator, teacher_columns
from tests.integrations.families import (
    ONE_STACK,
    PLAIN,
    SEQ2SEQ,
    VOCABULARY,
    build,
    causal,
    labelled,
    of,
    own_and_ours,
)

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
        "fsdp2_unread": "input_ids: expected in every batch of Doubled, not only labels",
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
    assert told == [
        f"labels: expected in every batch, not only {found}"
        for found in ("input_ids", "input_ids", "nothing")
    ]


def test_a_batch_without_labels_leaves_its_kind_to_be_judged():
    model = of(Smoothed, TINY)
    distillation = Distillation(model, [PLAIN])
    inputs = causal()
    none = {**inputs, "labels": torch.full_like(inputs["labels"], -100)}
    assert distillation(model, none).loss == 0
    with pytest.raises(fastkd.InputError, match="its own loss"):
        distillation.counts([none, inputs, none])
    model = of(Unshifted, TINY)
    distillation = Distillation(model, [PLAIN], verify=False)
    distillation(model, none)
    torch.testing.assert_close(distillation(model, inputs).loss, model(**inputs).loss)


def test_a_teacher_is_asked_again_after_a_batch_without_labels():
    """Of these no guess is right: neither class tells Transformers that its labels stand still."""

    class Other(Unshifted):
        pass

    student, teacher, inputs = of(Unshifted, TINY), of(Other, TINY), causal()
    distillation = Distillation(student, [PLAIN, WordKD()], teacher)
    distillation(student, {**inputs, "labels": torch.full_like(inputs["labels"], -100)})
    torch.testing.assert_close(
        distillation(student, inputs).components["word_kd"], torch.tensor(0.0)
    )
