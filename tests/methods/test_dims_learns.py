"""What DiMS is for, on a language where it shows within seconds.

Each source word has two translations, and a sentence uses the first of all its words or the second
of all: a model that fills in all places at once mixes them unless it has learned to choose.
"""

import copy

import numpy as np
import pytest
import torch

from fastkd.config.tree import (
    CMLMConfig,
    Config,
    DataConfig,
    DiMS,
    Length,
    MaskedCrossEntropy,
    ModelConfig,
    TeacherConfig,
    TrainingConfig,
)
from fastkd.data.batches import Batch
from fastkd.decode.mask_predict import mask_predict
from fastkd.methods.objective import Objective
from fastkd.nn.cmlm import CMLM

PAD, BOS, EOS, MASK, FIRST = 0, 2, 3, 4, 5
WORDS = 6
MODEL = ModelConfig(
    kind="cmlm",
    encoder_layers=1,
    decoder_layers=2,
    width=32,
    ffn=64,
    heads=4,
    dropout=0.0,
    cmlm=CMLMConfig(length_classes=16),
)


def pairs(count, generator):
    words = torch.randint(WORDS, (count, 6), generator=generator) + FIRST
    lengths = torch.randint(3, 6, (count, 1), generator=generator)
    choice = torch.randint(1, 3, (count, 1), generator=generator)
    places = torch.arange(6)

    def ended(rows):
        return torch.where(places < lengths, rows, torch.where(places == lengths, EOS, PAD))

    return ended(words), ended(words + WORDS * choice), lengths.squeeze(1) + 1


class Lengths:
    """As much of a corpus as the counts of an update need."""

    def __init__(self, lengths):
        self.source_lengths = self.target_lengths = (lengths - 1).numpy().astype(np.int32)


def train(student, losses, updates, rate, teacher=None):
    config = Config(
        run="r",
        data=DataConfig(source="a", target="b", train="t", dev="d", prepared="p"),
        model=MODEL,
        training=TrainingConfig(),
        teacher=TeacherConfig(run="t") if teacher is not None else None,
        losses=losses,
    )
    objective = Objective(config, PAD, None if teacher is None else (teacher, MODEL))
    objective.begin(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(updates)
    ids = torch.arange(48)
    for update in range(1, updates + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, update / 50) * (1 - 0.9 * update / updates)
        source, target, lengths = pairs(48, generator)
        batch = Batch(source, lengths, target, target, lengths, ids)
        objective.before_update(student)
        student.train()
        counts = objective.counts(Lengths(lengths), ids.numpy(), update)
        optimizer.zero_grad()
        objective(student, batch, counts, 1)[0].backward()
        optimizer.step()


def consistent(model, passes):
    """Share of sentences whose translation is one of the two right ones."""
    source, _, lengths = pairs(200, torch.Generator().manual_seed(0))
    limits = torch.full_like(lengths, 8)
    found = mask_predict(model.eval(), source, lengths, passes=passes, max_lengths=limits).tokens
    right = 0
    for row, words, length in zip(found, source.tolist(), lengths.tolist(), strict=True):
        right += row in [[w + WORDS * choice for w in words[: length - 1]] for choice in (1, 2)]
    return right / len(found)


def a_model():
    return CMLM(MODEL, 23, 23, pad_id=PAD, bos_id=BOS, eos_id=EOS, mask_id=MASK)


@pytest.mark.slow
def test_one_pass_of_the_student_does_what_many_of_its_teacher_do():
    torch.manual_seed(0)
    teacher = a_model()
    train(teacher, (MaskedCrossEntropy(label_smoothing=0.0), Length()), 500, 5e-3)
    student = a_model()
    train(student, (DiMS(ema=0.98), Length()), 150, 2e-3, copy.deepcopy(teacher))
    one, many = consistent(teacher, 1), consistent(teacher, 8)
    after = consistent(student, 1)
    assert one < 0.6 and many > 0.9
    assert after > 0.9
