"""A small GPT-2 on real text, the pages of this project: it learns what it is told it learns."""

from pathlib import Path

import pytest
import torch

from fastkd.losses import CrossEntropy, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")
pytest.importorskip("accelerate")

from fastkd.integrations.trainer import DistillationTrainer

ROOT, BLOCK = Path(__file__).parents[2], 64


def blocks():
    """Bytes of the documentation in rows, those that are trained on and every tenth."""
    pages = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    text = b"\n".join(page.read_bytes() for page in pages)
    ids = torch.tensor(list(text[: len(text) // BLOCK * BLOCK])).unflatten(0, (-1, BLOCK))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    held = rows[::10]
    return [row for number, row in enumerate(rows) if number % 10], held[:32]


def gpt2(layers, width):
    torch.manual_seed(layers)
    config = transformers.GPT2Config(
        vocab_size=256, n_positions=BLOCK, n_embd=width, n_layer=layers, n_head=2
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0  # as in evaluation
    return transformers.GPT2LMHeadModel(config)


def trained(folder, model, losses, teacher=None):
    rows, held = blocks()
    trainer = DistillationTrainer(
        model=model,
        teacher=teacher,
        losses=losses,
        train_dataset=rows,
        eval_dataset=held,
        args=transformers.TrainingArguments(
            str(folder),
            max_steps=60,
            per_device_train_batch_size=8,
            learning_rate=5e-3,
            logging_steps=15,
            eval_strategy="steps",
            eval_steps=15,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        ),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    log = trainer.state.log_history
    told = [entry["cross_entropy"] for entry in log if "cross_entropy" in entry]
    own = [entry["eval_loss"] for entry in log if "eval_loss" in entry][-len(told) :]
    return before, own, told


@pytest.mark.slow
def test_the_models_own_loss_falls_as_the_logged_one_does(tmp_path):
    """Logged is the mean of 15 updates, evaluated what the last of them leaves behind."""
    teacher, plain = gpt2(2, 48), CrossEntropy(weight=1.0, label_smoothing=0.0)
    student = [CrossEntropy(weight=0.5, label_smoothing=0.0), WordKD(weight=0.5)]
    runs = {
        "teacher": trained(tmp_path / "teacher", teacher, [plain]),
        "student": trained(tmp_path / "student", gpt2(1, 32), student, teacher),
    }
    for before, own, told in runs.values():
        assert 5 < before < 6  # nats a byte: uniform is 5.55
        assert own == sorted(own, reverse=True)
        assert own[-1] < before - 1.5 and told[-1] < told[0] - 0.3
        # A mean of the updates between two evaluations, but for other text.
        for earlier, logged, later in zip([before, *own], told, own, strict=False):
            assert later - 0.2 < logged < earlier + 0.2
