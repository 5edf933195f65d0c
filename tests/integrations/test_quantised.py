"""Students and teachers whose layers bitsandbytes has quantised, on a CPU as on a GPU."""

import pytest
import torch

import fastkd
from fastkd.losses import A2D, CrossEntropy, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")
peft = pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from fastkd.integrations.distillation import Distillation
from fastkd.integrations.trainer import DistillationTrainer

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)
BITS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
LAYERS = {"nf4": "Linear4bit", "fp4": "Linear4bit", "int8": "Linear8bitLt"}


def plain():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def quantised(folder, bits, dtype=torch.float32, **more):
    plain().save_pretrained(folder)
    config = transformers.BitsAndBytesConfig(**BITS[bits], **more)
    loaded = transformers.LlamaForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map="cpu", dtype=dtype
    )
    assert type(loaded.model.layers[0].self_attn.q_proj).__name__ == LAYERS[bits]
    return loaded


def qlora(folder, bits, targets=("q_proj", "v_proj")):
    student = peft.prepare_model_for_kbit_training(
        quantised(folder, bits), gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    adapters = peft.LoraConfig(r=4, target_modules=list(targets), task_type="CAUSAL_LM")
    student = peft.get_peft_model(student, adapters)
    torch.manual_seed(1)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:  # zeros at first, which would hide the adapters
            parameter.data.normal_(std=0.1)
    return student


def gradients(student, loss):
    student.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def batch(rows=2):
    ids = torch.randint(1, 96, (rows, 12), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "labels": ids.clone()}


@pytest.mark.parametrize("bits", BITS)
def test_a_qlora_student(tmp_path, bits):
    student, teacher = qlora(tmp_path, bits).train(), plain()
    before = gradients(student, student(**batch(), use_cache=False).loss)
    losses = Distillation(student, [PLAIN])(student, batch())
    torch.testing.assert_close(gradients(student, losses.loss), before)  # the judge left no trace
    found = Distillation(student, [PLAIN, WordKD(), A2D()], teacher)(student, batch())
    output = student(**batch(), use_cache=False)
    torch.testing.assert_close(found.components["cross_entropy"], output.loss.detach())
    p, q = (
        logits[:, :-1].log_softmax(-1)
        for logits in (output.logits, teacher(**batch()).logits.detach())
    )
    expected = (q.exp() * (q - p)).sum(-1).mean()
    torch.testing.assert_close(found.components["word_kd"], expected.detach())
    moved = gradients(student, found.loss)
    assert len(moved) == 4 and all("lora" in name for name in moved)
    assert all(gradient.any() for gradient in moved.values())


def test_a_qlora_student_with_an_adapted_head(tmp_path):
    student, teacher = qlora(tmp_path, "nf4", ("q_proj", "lm_head")), plain()
    found = Distillation(student, [PLAIN, WordKD()], teacher)(student, batch())
    own = student(**batch(), use_cache=False).loss
    torch.testing.assert_close(found.components["cross_entropy"], own.detach())


def test_training_moves_the_adapters_alone(tmp_path):
    student, teacher = qlora(tmp_path / "base", "nf4"), plain()
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    rows = [{name: value[0] for name, value in batch(1).items()}] * 8
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        losses=[CrossEntropy(weight=0.5), WordKD(weight=0.5), A2D()],
        train_dataset=rows,
        args=transformers.TrainingArguments(
            str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, report_to="none",
            use_cpu=True, disable_tqdm=True, save_steps=2, gradient_checkpointing=True,
        ),
    )  # fmt: skip
    trainer.train()
    moved = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all("lora" in name for name in moved)
    saved = tmp_path / "out" / "checkpoint-2"
    assert (saved / "adapter_model.safetensors").is_file()


def distance(student, teacher):
    """KL(q ‖ p) of whole logits, and what bfloat16 of the teacher's may move it by."""
    p, z = (model(**batch()).logits[:, :-1].float() for model in (student, teacher))
    q = z.log_softmax(-1)
    moved = 4 * torch.finfo(torch.bfloat16).eps * z.abs().amax(-1).mean()
    return (q.exp() * (q - p.log_softmax(-1))).sum(-1).mean().detach(), float(moved)


@pytest.mark.parametrize("bits", BITS)
def test_a_quantised_teacher(tmp_path, bits):
    teacher, student = quantised(tmp_path, bits), plain()
    for parameter in student.parameters():
        parameter.data.mul_(1.5)
    found = Distillation(student, [WordKD(weight=1.0)], teacher)(student, batch())
    torch.testing.assert_close(found.loss.detach(), distance(student, teacher)[0])


@pytest.mark.parametrize("bits", ["nf4", "fp4"])
def test_a_teacher_whose_head_is_quantised(tmp_path, bits):
    """In bfloat16, to which some kernels on a CPU round what enters them."""
    teacher = quantised(tmp_path, bits, torch.bfloat16, llm_int8_skip_modules=[])
    assert type(teacher.lm_head).__name__ == LAYERS[bits]
    student = plain()
    for parameter in (*student.parameters(), teacher.model.norm.weight):
        parameter.data.mul_(3)
    found = Distillation(student, [WordKD(weight=1.0)], teacher)(student, batch())
    expected, moved = distance(student, teacher)
    assert expected > 4 * moved
    torch.testing.assert_close(found.loss.detach(), expected, rtol=0, atol=moved)


def test_a_quantised_head_that_would_have_to_train_is_refused(tmp_path):
    student = quantised(tmp_path, "nf4", llm_int8_skip_modules=[])
    with pytest.raises(fastkd.InputError, match=r"nn\.Linear.*not bitsandbytes"):
        Distillation(student, [PLAIN])
