"""TRL's on-policy trainer with fastkd's losses: of what the student has just written."""

import pytest
import torch

import fastkd
from fastkd.losses import A2D, CrossEntropy, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")
pytest.importorskip("trl")
pytest.importorskip("datasets")
gkd = pytest.importorskip("trl.experimental.gkd")

from fastkd.integrations.trl import DistillationGKDTrainer
from tests.integrations.test_trl import SHORT, chats, model, tokenizer


def settings(folder, **changes):
    usual = {"lmbda": 0.0, "beta": 0.5, "learning_rate": 1e-2, "max_new_tokens": 5}
    return gkd.GKDConfig(output_dir=str(folder), **{**SHORT, **usual, **changes})


def peaked(seed):
    made = model(seed)
    for parameter in made.parameters():
        parameter.data.mul_(4)
    return made


def ours(folder, losses=None, **changes):
    return DistillationGKDTrainer(
        model=peaked(0),
        teacher=peaked(1),
        losses=losses,
        args=settings(folder, **changes),
        train_dataset=chats(),
        processing_class=tokenizer(),
    )


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_given_text_trains_as_trl_does(tmp_path, beta):
    mine = ours(tmp_path, beta=beta)
    theirs = gkd.GKDTrainer(
        model=peaked(0),
        teacher_model=peaked(1),
        args=settings(tmp_path, beta=beta),
        train_dataset=chats(),
        processing_class=tokenizer(),
    )
    mine.train()
    theirs.train()
    before = dict(peaked(0).named_parameters())
    found = dict(mine.model.named_parameters())
    for name, parameter in theirs.model.named_parameters():
        torch.testing.assert_close(found[name], parameter, rtol=1e-3, atol=1e-5)
    assert any((found[name] - before[name]).abs().max() > 1e-2 for name in before)


def test_what_the_student_writes_is_what_it_learns_of(tmp_path):
    """Of the first update: its text is the student's, its loss GKD's over both batches."""
    made = ours(tmp_path, lmbda=1.0, beta=0.3, max_steps=1, learning_rate=1e-9)
    batches = []
    counts = made.distillation.counts

    def seen(rows):
        batches.extend(dict(row) for row in rows)
        return counts(rows)

    made.distillation.counts = seen
    made.train()
    given = {tuple(row.tolist()) for row in chats_as_ids(made)}
    student, teacher = made.distillation.student.eval(), made.distillation.teacher
    total = count = 0
    assert len(batches) == 2
    for batch in batches:
        assert batch.keys() == {"input_ids", "attention_mask", "labels"}
        kept = batch["labels"][:, 1:] != -100
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            assert tuple(row[mask.bool()].tolist()) not in given
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            z, w = (m(**inputs).logits[:, :-1] for m in (student, teacher))
        total += gkd.GKDTrainer.generalized_jsd_loss(
            z, w, labels=batch["labels"][:, 1:], beta=0.3, reduction="sum"
        )
        count += int(kept.sum())
    assert 0 < count <= 2 * 2 * 5
    entry = next(entry for entry in made.state.log_history if "word_kd" in entry)
    assert entry["word_kd"] == pytest.approx(float(total / count), rel=1e-4)
    assert entry["loss"] == pytest.approx(entry["word_kd"], rel=1e-3)


def chats_as_ids(made):
    encode = made.processing_class.apply_chat_template
    return [
        torch.tensor(encode(row["messages"], tokenize=True, return_dict=False)) for row in chats()
    ]


def test_the_teacher_writes(tmp_path):
    made = ours(tmp_path, seq_kd=True, max_steps=1)
    written = []
    generate = made.teacher_model.generate
    made.teacher_model.generate = lambda **call: written.append(call) or generate(**call)
    made.train()
    assert len(written) == 2


def test_other_losses(tmp_path):
    losses = [CrossEntropy(weight=0.5), WordKD(weight=0.5, divergence="reverse_kl")]
    made = ours(tmp_path, losses, lmbda=1.0)
    made.train()
    assert {"cross_entropy", "word_kd"} <= made.state.log_history[0].keys()
    with pytest.raises(fastkd.InputError, match=r"beta: expected the default.*not 0\.2"):
        ours(tmp_path, losses, beta=0.2)
    with pytest.raises(fastkd.InputError, match="left padding"):
        ours(tmp_path, [WordKD(), A2D()]).train()
