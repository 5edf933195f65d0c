"""The objective against the methods written out literally, in float64."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fastkd.config.tree import (
    A2D,
    Config,
    CrossEntropy,
    DataConfig,
    HiddenStates,
    ModelConfig,
    TeacherConfig,
    TieKD,
    TrainingConfig,
    WordKD,
)
from fastkd.errors import InputError
from fastkd.methods.objective import Objective
from fastkd.nn.transformer import Transformer
from fastkd.terms.passes import Counts
from tests.methods.batches import PAD, batch_of, cut

pytestmark = pytest.mark.usefixtures("in_float64")
VOCABULARY = 11
STUDENT = ModelConfig(
    encoder_layers=1, decoder_layers=1, width=8, ffn=16, heads=2, dropout=0.0, output_bias=True
)
TEACHER = dataclasses.replace(STUDENT, encoder_layers=2, decoder_layers=3, width=12, heads=3)


def models():
    torch.manual_seed(1)
    return tuple(Transformer(c, VOCABULARY, VOCABULARY, PAD).eval() for c in (STUDENT, TEACHER))


def a_batch(source_lengths=(4, 3), target_lengths=(5, 2)):
    return batch_of(source_lengths, target_lengths, VOCABULARY)


def objective_of(*losses, student=STUDENT, teacher=None):
    data = DataConfig(source="a", target="b", train="t", dev="d", prepared="p")
    config = Config(
        run="r",
        data=data,
        model=student,
        training=TrainingConfig(backend="reference"),
        teacher=TeacherConfig(run="t") if teacher is not None else None,
        losses=losses,
    )
    return Objective(config, PAD, None if teacher is None else (teacher, TEACHER))


def logits_of(model, batch, decoder_input):
    output = model(batch.source, batch.source_lengths, decoder_input, batch.target_lengths)
    return model.logits(output.hidden)


def counts_of(batch):
    lengths = batch.source_lengths, batch.target_lengths
    return Counts(len(batch), *(int(length.sum()) for length in lengths))


def test_cross_entropy_and_word_kd():
    student, teacher = models()
    batch = a_batch()
    losses = CrossEntropy(weight=0.25, label_smoothing=0.1), WordKD(weight=0.75)
    loss, parts = objective_of(*losses, teacher=teacher)(student, batch, counts_of(batch), 1)
    counted = batch.target != PAD
    z, t = (logits_of(model, batch, batch.decoder_input)[counted] for model in (student, teacher))
    ce = F.cross_entropy(z, batch.target[counted], label_smoothing=0.1)
    kd = F.kl_div(z.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(loss, 0.25 * ce + 0.75 * kd)
    torch.testing.assert_close(parts["cross_entropy"], ce.detach())
    torch.testing.assert_close(parts["word_kd"], kd.detach())


def literal_tie_kd(p, q, k):
    """KL + R1 + R2 of one position, in plain loops (TIE-KD, section 4)."""
    top = sorted(range(len(q)), key=lambda v: (-q[v].item(), v))[:k]
    own = sorted(range(len(p)), key=lambda v: (-p[v].item(), v))[:k]
    kl = sum(q[v] * (q[v].log() - p[v].log()) for v in range(len(q)))
    r1 = sum(torch.clamp(p[i] - p[top[0]], min=0) for i in top)
    r2 = sum(torch.clamp(p[j] - p[i], min=0) for i in top for j in own if q[i] > q[j])
    return kl, r1 + r2


def test_iterative_tie_kd():
    student, teacher = models()
    batch = a_batch()
    term = TieKD(weight=1.0, top_k=3, iterations=3, rank_weight=1.0)
    loss, parts = objective_of(term, teacher=teacher)(student, batch, counts_of(batch), 1)

    decoder_input, kls, ranks = batch.decoder_input, [], []
    for _ in range(3):
        z, t = (logits_of(model, batch, decoder_input) for model in (student, teacher))
        for b, length in enumerate(batch.target_lengths):
            for position in range(length):
                p, q = z[b, position].softmax(-1), t[b, position].softmax(-1)
                kl, rank = literal_tie_kd(p, q, k=3)
                kls.append(kl)
                ranks.append(rank)
        predicted = z.argmax(-1)
        decoder_input = torch.cat([batch.decoder_input[:, :1], predicted[:, :-1]], 1)
        decoder_input[batch.target == PAD] = PAD
    positions = 3 * int(batch.target_lengths.sum())
    torch.testing.assert_close(loss, (sum(kls) + sum(ranks)) / positions)
    torch.testing.assert_close(parts["tie_kd"], sum(kls).detach() / positions)
    torch.testing.assert_close(parts["ranking"], sum(ranks).detach() / positions)


def published_alignment(student_maps, teacher_maps, weight):
    """K(S, T) as released: mixed maps, softmax over all cells of a padded map, summed."""
    mixed = torch.einsum("jh,bhqk->bjqk", weight, student_maps).flatten(2)
    return F.kl_div(mixed.log_softmax(-1), teacher_maps.flatten(2).softmax(-1), reduction="sum")


def maps_of(tap, causal):
    """Attention probabilities of a tap, all layers, with zeros at pads as in the release."""
    maps = []
    for query, key in zip(tap.query, tap.key, strict=True):
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        if tap.key_lengths is not None:
            pad = torch.arange(scores.shape[-1]) >= tap.key_lengths[:, None, None, None]
            scores = scores.masked_fill(pad, float("-inf"))
        maps.append(scores.softmax(-1))
    return torch.cat(maps, 1)


def test_published_align_to_distill():
    student, teacher = models()
    batch = a_batch()
    term = A2D(weight=2.0, normalization="map", padding="include", decay=0.9)
    objective = objective_of(CrossEntropy(weight=1e-30), term, teacher=teacher)
    loss, parts = objective(student, batch, counts_of(batch), epoch=3)
    inputs = (batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths)
    ours, theirs = (model(*inputs, taps=True).taps for model in (student, teacher))
    total = 0.0
    for kind, share in {"encoder": 1.0, "decoder": 0.5, "cross": 0.5}.items():
        weight = objective.alignment.align.kinds[kind].weight
        maps = [maps_of(getattr(taps, kind), kind == "decoder") for taps in (ours, theirs)]
        value = published_alignment(*maps, weight) / (len(batch) * maps[1].shape[1])
        torch.testing.assert_close(parts[f"a2d.{kind}"], value.detach())
        total = total + share * value
    torch.testing.assert_close(loss, 2.0 * 0.9**2 * total)


def test_hidden_states():
    student, teacher = models()
    batch = a_batch()
    objective = objective_of(CrossEntropy(weight=1e-30), HiddenStates(), teacher=teacher)
    loss, _ = objective(student, batch, counts_of(batch), 1)
    inputs = (batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths)
    expected = 0.0
    for side, ids in {"encoder": batch.source, "decoder": batch.target}.items():
        ours, theirs = (
            getattr(model(*inputs), "encoder_hidden" if side == "encoder" else "hidden")
            for model in (student, teacher)
        )
        distance = (objective.hidden.maps[side](ours) - theirs).square().mean(-1)
        expected = expected + distance[ids != PAD].mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    "losses",
    [
        (CrossEntropy(),),
        (CrossEntropy(), WordKD()),
        (CrossEntropy(), TieKD()),
        (CrossEntropy(), A2D(normalization="row")),
        (CrossEntropy(), A2D(normalization="map"), WordKD(), HiddenStates()),
        (CrossEntropy(), A2D(normalization="mixture"), TieKD()),
    ],
    ids=lambda losses: "+".join(loss.name for loss in losses),
)
def test_pieces_add_up_to_the_whole(losses):
    """Losses and gradients do not depend on how an update's batch was cut."""
    student, teacher = models()
    whole = a_batch((4, 3, 5), (5, 2, 4))
    objective = objective_of(*losses, teacher=teacher)
    parameters = [*student.parameters(), *objective.parameters()]
    counts = counts_of(whole)
    loss, _ = objective(student, whole, counts, 1)
    expected = torch.autograd.grad(loss, parameters)
    pieces = [cut(whole, [0]), cut(whole, [1, 2])]
    together = sum(objective(student, piece, counts, 1)[0] for piece in pieces)
    torch.testing.assert_close(together, loss)
    for one, other in zip(torch.autograd.grad(together, parameters), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_teacher_gets_no_gradient_and_is_no_part_of_the_objective():
    student, teacher = models()
    batch = a_batch()
    objective = objective_of(CrossEntropy(), TieKD(), A2D(), teacher=teacher)
    objective(student, batch, counts_of(batch), 1)[0].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in objective.parameters()}


def test_zero_weight_needs_no_teacher():
    batch = a_batch()
    objective = objective_of(CrossEntropy(), WordKD(weight=0.0))
    loss, parts = objective(models()[0], batch, counts_of(batch), 1)
    assert list(parts) == ["cross_entropy"] and loss.isfinite()


@pytest.mark.parametrize(
    ("losses", "complaint"),
    [
        ((WordKD(),), "word_kd needs a teacher"),
        ((CrossEntropy(), CrossEntropy()), "listed twice"),
        ((), "at least one"),
    ],
)
def test_objectives_that_cannot_be(losses, complaint):
    with pytest.raises(InputError, match=complaint):
        objective_of(*losses)
