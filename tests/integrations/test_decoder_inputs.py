"""What a model's decoder reads: what the model itself makes of the labels, or a refusal."""

import pytest
import torch

import fastkd
from fastkd.losses import TieKD, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")

from fastkd.integrations.distillation import Distillation
from tests.integrations.families import (
    ONE_STACK,
    PLAIN,
    SEQ2SEQ,
    VOCABULARY,
    build,
    labelled,
    of,
    own_and_ours,
    teacher_and_student,
)

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
