"""Students and teachers whose layers are compiled, or whose forward Liger has replaced."""

import shutil

import pytest
import torch
import torch._dynamo.utils

from fastkd.losses import A2D, CrossEntropy, TieKD, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")
pytest.importorskip("accelerate")

from fastkd.integrations.distillation import Distillation
from fastkd.integrations.trainer import DistillationSeq2SeqTrainer, DistillationTrainer
from tests.integrations.families import (
    VOCABULARY,
    build,
    labelled,
    teacher_and_student,
    without_dropout,
)

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)


def rows(family, count):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.arange(count) % 3 + 5 if family == "llama" else torch.full((count,), 6)
    made = []
    for length in lengths.tolist():
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
        made.append({"input_ids": ids, "labels": ids})
    return made


def losses_of(family, losses, folder, **settings):
    torch._dynamo.reset()
    teacher, student = teacher_and_student(family)
    seq2seq = family != "llama"
    kind = DistillationSeq2SeqTrainer if seq2seq else DistillationTrainer
    of = transformers.Seq2SeqTrainingArguments if seq2seq else transformers.TrainingArguments
    trainer = kind(
        model=without_dropout(student),
        teacher=teacher,
        losses=losses,
        args=of(
            output_dir=str(folder),
            max_steps=6,
            per_device_train_batch_size=1,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            learning_rate=1e-3,
            **settings,
        ),
        train_dataset=rows(family, 6),
    )
    trainer.train()
    layers = [m for m in trainer.model.modules() if m._compiled_call_impl is not None]
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], layers


@pytest.mark.parametrize(
    ("family", "losses"),
    [
        ("llama", [PLAIN, WordKD()]),
        pytest.param("llama", [PLAIN, A2D()], marks=pytest.mark.slow),
        pytest.param("marian", [PLAIN, TieKD(iterations=2), A2D()], marks=pytest.mark.slow),
    ],
)
def test_compiled_layers_change_no_loss(tmp_path, family, losses):
    """Over lengths that change; the tap of A2D stands between compiled parts."""
    expected, none = losses_of(family, losses, tmp_path)
    torch._dynamo.utils.counters.clear()
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    found, layers = losses_of(family, losses, tmp_path, **compiled)
    assert found == pytest.approx(expected, rel=1e-5)
    assert not none and len(layers) == (2 if family == "llama" else 4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.slow  # a C++ compiler at work
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize(
    ("family", "losses"),
    [("llama", [PLAIN, WordKD(), A2D()]), ("marian", [PLAIN, TieKD(iterations=2)])],
)
def test_layers_that_inductor_compiles(tmp_path, family, losses):
    """As `torch_compile=True` asks for them: the same losses, by code that it wrote."""
    expected, _ = losses_of(family, losses, tmp_path)
    torch._dynamo.utils.counters.clear()
    found, layers = losses_of(family, losses, tmp_path, torch_compile=True)
    assert found == pytest.approx(expected, rel=1e-4)
    assert layers and torch._dynamo.utils.counters["inductor"]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_forward_that_liger_replaced(family):
    """In training it makes no logits for labels; the losses withhold them."""
    liger = pytest.importorskip("liger_kernel.transformers")
    teacher, student = teacher_and_student(family)
    inputs, losses = labelled(family), [PLAIN, WordKD(), A2D()]
    own = student(**inputs).loss
    torch.manual_seed(0)  # of the weights between maps
    expected = Distillation(student, losses, teacher)(student, inputs)
    patch = getattr(liger, f"apply_liger_kernel_to_{family}")
    # The other kernels of Liger run on a GPU alone.
    patch(rope=False, rms_norm=False, swiglu=False, cross_entropy=False, model=student)
    assert "liger" in student.forward.__func__.__module__
    student.train()
    torch.manual_seed(0)
    found = Distillation(student, losses, teacher)(student, inputs)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.components["cross_entropy"], own.detach())


def test_a_student_without_layers_is_not_compiled():
    from fastkd.integrations.compiled import compile_layers

    assert compile_layers(torch.nn.Linear(2, 2)) == 0
    assert compile_layers(build("marian")) == 4
