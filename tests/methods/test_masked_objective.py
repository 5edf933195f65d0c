"""What a masked objective is made of, and which cannot be."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fastkd.config.tree import (
    A2D,
    CrossEntropy,
    DiMS,
    HiddenStates,
    Length,
    MaskedCrossEntropy,
    WordKD,
)
from fastkd.errors import InputError
from fastkd.methods.masking import Masking
from fastkd.methods.teacher_steps import teacher_steps
from fastkd.terms.passes import Counts
from tests.methods.batches import cut
from tests.methods.masked_model import (
    CONFIG,
    MASK,
    a_batch,
    a_model,
    counts_of,
    masks,
    objective_of,
    places,
    run_one,
    sentence,
    smoothed,
)

pytestmark = pytest.mark.usefixtures("in_float64")


LOSSES = [
    (MaskedCrossEntropy(), Length()),
    (MaskedCrossEntropy(self_correction=0.4),),
    (DiMS(), Length()),
    (DiMS(mask="full", steps=4, labels="hard"), MaskedCrossEntropy()),
    (DiMS(), A2D(normalization="row")),
    (MaskedCrossEntropy(), A2D(normalization="map"), HiddenStates()),
    (DiMS(), A2D(normalization="mixture"), Length(), MaskedCrossEntropy(self_correction=0.3)),
]


@pytest.mark.parametrize(
    "losses", LOSSES, ids=lambda losses: "+".join(loss.name for loss in losses)
)
def test_pieces_add_up_to_the_whole(losses):
    """Losses and gradients do not depend on how an update's batch was cut."""
    student, teacher = a_model(1), a_model(2)
    whole = a_batch()
    objective = objective_of(*losses, teacher=teacher)
    parameters = [*student.parameters(), *objective.parameters()]
    counts = counts_of(objective, whole)

    def gradients(loss):
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    loss, parts = objective(student, whole, counts, 1)
    expected = gradients(loss)
    pieces = [cut(whole, [0]), cut(whole, [1, 2])]
    results = [objective(student, piece, counts, 1) for piece in pieces]
    together = sum(result[0] for result in results)
    # the length predictor and the distance of states work in float32
    close = {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(together, loss, **close)
    for name, value in parts.items():
        torch.testing.assert_close(sum(result[1][name] for result in results), value, **close)
    used = 0
    for one, other in zip(gradients(together), expected, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, **close)
            used += 1
    assert used > len(parameters) / 2
    assert all(p.grad is None for p in teacher.parameters())


def test_alignment_composes_with_dims_and_is_not_causal():
    """The student's maps on its masked input against the maps of the teacher's last step."""
    student, teacher = a_model(1), a_model(2)
    batch = a_batch((4,), (7,))
    term = A2D(weight=1.0, normalization="mixture", encoder=0.0, cross=0.0, decoder=1.0)
    objective = objective_of(DiMS(steps=2), term, teacher=teacher)
    _, parts = objective(student, batch, counts_of(objective, batch), 1)
    masked = masks(batch)
    shown = batch.target.masked_fill(masked, MASK)
    lengths = batch.source_lengths, batch.target_lengths
    ours = student(batch.source, lengths[0], shown, lengths[1], taps=True).taps.decoder
    encoded = teacher.encode(batch.source, lengths[0], taps=True)
    theirs = teacher_steps(
        teacher, encoded, batch.target, lengths[1], masked, 2, taps=True
    ).output.taps.decoder

    def maps(tap):
        return torch.cat(
            [
                (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
                for q, k in zip(tap.query, tap.key, strict=True)
            ],
            1,
        )[0]

    mixing = objective.alignment.align.kinds["decoder"].weight.softmax(-1)
    mixed = torch.einsum("jh,hqk->jqk", mixing, maps(ours))
    expected = F.kl_div(mixed.log(), maps(theirs), reduction="sum") / (7 * 4)
    torch.testing.assert_close(parts["a2d.decoder"], expected.detach())


def test_validation_masks_are_always_the_same():
    model, batch = a_model(), a_batch()
    first = objective_of(MaskedCrossEntropy()).validation_loss(model, batch)
    second = objective_of(DiMS(), teacher=a_model(2)).validation_loss(model, batch)
    assert first[0] == second[0] and first[1] == second[1] > 3
    masked = Masking("random", 0).masked(
        batch.sentence_ids, batch.target_lengths - 1, batch.target.shape[1], 0
    )
    total = 0.0
    for b in range(len(batch)):
        target = sentence(batch, b)
        shown = [MASK if masked[b, i] else piece for i, piece in enumerate(target)]
        _, logits = run_one(model, batch, b, shown)
        total += sum(smoothed(logits[i], target[i], 0) for i in places(masked[b]))
    torch.testing.assert_close(first[0], total.detach())


@pytest.mark.parametrize(
    ("losses", "complaint"),
    [
        ((DiMS(),), "dims needs a teacher"),
        ((CrossEntropy(),), r"losses\.0: cross_entropy is no loss of model\.kind cmlm"),
        ((MaskedCrossEntropy(), WordKD()), r"losses\.1: word_kd"),
        ((Length(),), "at least one of masked_cross_entropy, dims"),
        ((DiMS(), DiMS()), "listed twice"),
    ],
)
def test_objectives_that_cannot_be(losses, complaint):
    with pytest.raises(InputError, match=complaint):
        objective_of(*losses)


def test_teachers_that_cannot_be():
    with pytest.raises(InputError, match=r"model\.width: expected 8 as the teacher"):
        objective_of(DiMS(), teacher=a_model(), model=dataclasses.replace(CONFIG, width=16))
    causal = dataclasses.replace(CONFIG, kind="transformer")
    with pytest.raises(InputError, match="expected a model of kind cmlm"):
        objective_of(MaskedCrossEntropy(), A2D(), teacher=a_model(), teacher_config=causal)
    narrow = dataclasses.replace(CONFIG, dropout=0.3)
    assert objective_of(DiMS(), teacher=a_model(), model=narrow).teacher is not None


def test_plain_counts_are_enough_for_a_step_without_a_corpus():
    batch = a_batch()
    loss, _ = objective_of(MaskedCrossEntropy())(a_model(), batch, Counts(3, 12, 17), 1)
    assert loss.isfinite()
