"""The losses of masked models against their formulas written out literally, in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastkd.config.tree import Length, MaskedCrossEntropy
from fastkd.methods.masking import Masking
from tests.methods.masked_model import (
    ALLOWED,
    EOS,
    MASK,
    SEED,
    UPDATE,
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


def test_counts_are_those_of_the_masks():
    batch = a_batch()
    objective = objective_of(MaskedCrossEntropy())
    counts = counts_of(objective, batch)
    assert counts.masked == int(masks(batch).sum()) and counts.replaced == 0
    assert (counts.sentences, counts.target_tokens, counts.update) == (3, 17, UPDATE)


def test_masked_cross_entropy():
    model, batch = a_model(), a_batch()
    objective = objective_of(MaskedCrossEntropy(weight=2.0, label_smoothing=0.1))
    loss, parts = objective(model, batch, counts_of(objective, batch), 1)
    masked, terms = masks(batch), []
    for b in range(len(batch)):
        target = sentence(batch, b)
        shown = [MASK if masked[b, i] else piece for i, piece in enumerate(target)]
        _, logits = run_one(model, batch, b, shown)
        terms += [smoothed(logits[i], target[i], 0.1) for i in range(len(target)) if masked[b, i]]
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(loss, 2.0 * expected)
    torch.testing.assert_close(parts["masked_cross_entropy"], expected.detach())


def test_self_correction():
    """Replaced pieces are guesses from a fully masked pass; a second pass predicts them back."""
    model, batch = a_model(), a_batch(target_lengths=(16, 4, 13))
    objective = objective_of(MaskedCrossEntropy(label_smoothing=0.0, self_correction=0.6))
    counts = counts_of(objective, batch)
    loss, _ = objective(model, batch, counts, 1)
    masking = Masking("random", SEED, replace=0.6)
    masked = masks(batch)
    pieces = batch.target_lengths - 1
    replaced = masking.replaced(masked, batch.sentence_ids, pieces, UPDATE)
    assert counts.replaced == int(replaced.sum()) == 4
    terms = []
    for b in range(len(batch)):
        target = sentence(batch, b)
        shown = [MASK if masked[b, i] else piece for i, piece in enumerate(target)]
        _, logits = run_one(model, batch, b, shown)
        terms += [smoothed(logits[i], target[i], 0) for i in places(masked[b])]
        _, logits = run_one(model, batch, b, [MASK] * int(pieces[b]) + [EOS])
        for i in places(replaced[b]):
            shown[i] = ALLOWED[int(logits[i].argmax())]
        _, logits = run_one(model, batch, b, shown)
        terms += [smoothed(logits[i], target[i], 0) for i in places(replaced[b])]
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_length_loss():
    model, batch = a_model(), a_batch()
    objective = objective_of(MaskedCrossEntropy(weight=1e-30), Length(weight=0.1))
    loss, parts = objective(model, batch, counts_of(objective, batch), 1)
    terms = []
    for b in range(len(batch)):
        length = batch.source_lengths[b : b + 1]
        states = model.encode(batch.source[b : b + 1, :length], length).hidden[0]
        logits = states.mean(0) @ model.length.weight.mT
        terms.append(F.cross_entropy(logits, batch.target_lengths[b] - 1))
    expected = torch.stack(terms).mean()
    # the predictor works in float32
    torch.testing.assert_close(loss, 0.1 * expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(parts["length"].double(), expected, atol=1e-6, rtol=1e-5)
