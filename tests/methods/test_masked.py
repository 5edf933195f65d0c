"""Masked training against its formulas written out literally, in float64."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fastkd.config.tree import (
    A2D,
    CMLMConfig,
    Config,
    CrossEntropy,
    DataConfig,
    DiMS,
    HiddenStates,
    Length,
    MaskedCrossEntropy,
    ModelConfig,
    TeacherConfig,
    TrainingConfig,
    WordKD,
)
from fastkd.data.batches import Batch
from fastkd.errors import InputError
from fastkd.methods.dims import teacher_steps
from fastkd.methods.masking import Masking
from fastkd.methods.objective import Objective
from fastkd.methods.passes import Counts
from fastkd.nn.cmlm import CMLM

VOCABULARY, PAD, BOS, EOS, MASK = 13, 0, 2, 3, 4
ALLOWED = [1, *range(5, VOCABULARY)]  # ids that may be predicted
CONFIG = ModelConfig(
    kind="cmlm",
    encoder_layers=1,
    decoder_layers=2,
    width=8,
    ffn=16,
    heads=2,
    dropout=0.0,
    cmlm=CMLMConfig(length_classes=12),
)
UPDATE, SEED = 5, 1


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def a_model(seed=1, config=CONFIG):
    torch.manual_seed(seed)
    model = CMLM(config, VOCABULARY, VOCABULARY, pad_id=PAD, bos_id=BOS, eos_id=EOS, mask_id=MASK)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def a_batch(source_lengths=(4, 3, 5), target_lengths=(6, 3, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)

    def padded(lengths):
        rows = torch.full((len(lengths), max(lengths)), PAD)
        for row, length in zip(rows, lengths, strict=True):
            row[: length - 1] = torch.randint(5, VOCABULARY, (length - 1,), generator=generator)
            row[length - 1] = EOS
        return rows, torch.tensor(lengths)

    source, source_lengths = padded(source_lengths)
    target, target_lengths = padded(target_lengths)
    ids = torch.arange(len(target)) + 40
    return Batch(source, source_lengths, target, target, target_lengths, ids)


def objective_of(*losses, teacher=None, model=CONFIG, teacher_config=None):
    data = DataConfig(source="a", target="b", train="t", dev="d", prepared="p")
    config = Config(
        run="r",
        data=data,
        model=model,
        training=TrainingConfig(seed=SEED, backend="reference"),
        teacher=TeacherConfig(run="t") if teacher is not None else None,
        losses=losses,
    )
    taught = None if teacher is None else (teacher, teacher_config or CONFIG)
    return Objective(config, PAD, taught)


class Lengths:
    """As much of a corpus as the counts of an update need."""

    def __init__(self, batch):
        self.source_lengths = torch.zeros(100, dtype=torch.int32).numpy()
        self.target_lengths = self.source_lengths.copy()
        self.source_lengths[batch.sentence_ids] = batch.source_lengths - 1
        self.target_lengths[batch.sentence_ids] = batch.target_lengths - 1


def counts_of(objective, batch):
    return objective.counts(Lengths(batch), batch.sentence_ids.numpy(), UPDATE)


def masks(batch, kind="random"):
    pieces = batch.target_lengths - 1
    width = batch.target.shape[1]
    return Masking(kind, SEED).masked(batch.sentence_ids, pieces, width, UPDATE)


def run_one(model, batch, b, tokens):
    """Last states and logits over the allowed ids of sentence b, on decoder input `tokens`."""
    source = batch.source[b : b + 1, : batch.source_lengths[b]]
    target = torch.tensor([tokens])
    output = model(source, batch.source_lengths[b : b + 1], target, torch.tensor([len(tokens)]))
    hidden = output.hidden[0]
    return hidden, (hidden @ model.output_weight.mT)[:, ALLOWED]


def sentence(batch, b):
    return batch.target[b, : batch.target_lengths[b]].tolist()


def places(mask):
    return mask.nonzero().flatten().tolist()


def smoothed(logits, target, smoothing):
    log_p = logits.log_softmax(-1)
    return -(1 - smoothing) * log_p[ALLOWED.index(target)] - smoothing * log_p.mean()


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


def literal_teacher(model, batch, b, masked, steps, reconsider=True):
    """States and logits after n steps, at the masked places, in plain lists."""
    target = sentence(batch, b)
    hidden_places = places(masked[b])
    u = len(hidden_places)
    shown = [MASK if i in hidden_places else piece for i, piece in enumerate(target)]
    for j in range(1, steps + 1):
        new_hidden, new_logits = run_one(model, batch, b, shown)
        if j == 1:
            hidden, logits = new_hidden.clone(), new_logits.clone()
        for i in hidden_places:
            if reconsider or shown[i] == MASK:
                hidden[i], logits[i] = new_hidden[i], new_logits[i]
        log_p = logits.log_softmax(-1)
        for i in hidden_places:
            shown[i] = ALLOWED[int(log_p[i].argmax())]
        count = -(-(steps - j) * u // steps)  # ceil((n − j) · u / n)
        for i in sorted(hidden_places, key=lambda i: (float(log_p[i].max()), i))[:count]:
            shown[i] = MASK
    return hidden[hidden_places], logits[hidden_places], hidden_places


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize(("steps", "mask"), [(1, "random"), (2, "random"), (3, "full")])
@pytest.mark.parametrize("reconsider", [True, False])
def test_dims(steps, mask, labels, reconsider):
    student, teacher = a_model(1), a_model(2)
    batch = a_batch()
    config = DiMS(
        reconsider=reconsider,
        weight=3.0,
        steps=steps,
        mask=mask,
        labels=labels,
        student_temperature=1.5,
        hidden_weight=0.4,
    )
    objective = objective_of(config, teacher=teacher)
    loss, parts = objective(student, batch, counts_of(objective, batch), 1)
    masked = masks(batch, mask)
    divergences, distances = [], []
    with torch.no_grad():
        for b in range(len(batch)):
            hidden, logits, hidden_places = literal_teacher(
                teacher, batch, b, masked, steps, reconsider
            )
            target = sentence(batch, b)
            shown = [MASK if i in hidden_places else piece for i, piece in enumerate(target)]
            own_hidden, own_logits = run_one(student, batch, b, shown)
            for row, place in enumerate(hidden_places):
                z_t, z_s = logits[row], own_logits[place]
                log_q, log_p = (z_t / 0.5).log_softmax(-1), (z_s / 1.5).log_softmax(-1)
                if labels == "soft":
                    divergences.append((log_q.exp() * (log_q - log_p)).sum())
                else:
                    divergences.append(-z_s.log_softmax(-1)[z_t.argmax()])
                distances.append((hidden[row] - own_hidden[place]).square().sum().sqrt())
    divergence, distance = torch.stack(divergences).mean(), torch.stack(distances).mean()
    torch.testing.assert_close(parts["dims"], divergence)
    # distances are taken in float32
    torch.testing.assert_close(parts["dims.hidden"].double(), distance, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        loss.detach(), 3.0 * (divergence + 0.4 * distance), rtol=1e-6, atol=1e-6
    )


def test_equal_states_have_a_finite_gradient():
    """At the start student and teacher are equal, and the norm's gradient is 0/0."""
    student = a_model(1)
    batch = a_batch()
    objective = objective_of(DiMS(steps=1, ema=0.0), teacher=a_model(1))
    loss, parts = objective(student, batch, counts_of(objective, batch), 1)
    loss.backward()
    assert parts["dims.hidden"] == 0
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("dropout", [False, True])
def test_dims_student_has_dropout_only_where_asked_for(dropout):
    config = dataclasses.replace(CONFIG, dropout=0.5)
    student = a_model(1, config).train()
    batch = a_batch()
    objective = objective_of(
        DiMS(dropout=dropout), teacher=a_model(2, config), model=config, teacher_config=config
    )
    counts = counts_of(objective, batch)
    first, second = (objective(student, batch, counts, 1)[0] for _ in range(2))
    assert (first != second) == dropout
    assert not objective.teacher.training


def test_a_new_student_is_the_teacher():
    student, teacher = a_model(1), a_model(2)
    objective_of(DiMS(), teacher=teacher).begin(student)
    theirs = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, theirs[name])
    assert {"length.weight", "source_embedding.weight"} <= theirs.keys()


def test_other_students_keep_their_weights():
    student, same = a_model(1), a_model(1)
    objective_of(MaskedCrossEntropy(), A2D(), teacher=a_model(2)).begin(student)
    for one, other in zip(student.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)


def test_teacher_follows_the_student_in_float32():
    student, teacher = a_model(1), a_model(2).float()
    before = [p.detach().clone() for p in teacher.parameters()]
    objective = objective_of(DiMS(ema=0.75), teacher=teacher)
    for _ in range(3):
        objective.before_update(student)
    for average, start, own in zip(teacher.parameters(), before, student.parameters(), strict=True):
        expected = 0.75**3 * start.double() + (1 - 0.75**3) * own.detach()
        assert average.dtype == torch.float32
        # three roundings of values below 4
        torch.testing.assert_close(average.double(), expected, atol=3 * 2.4e-7, rtol=0)


def test_only_a_teacher_that_moves_is_state():
    teacher = a_model(2)
    names = {f"teacher.{name}" for name, _ in teacher.named_parameters()}
    assert objective_of(DiMS(), teacher=teacher).moving_tensors().keys() == names
    assert objective_of(DiMS(ema=0.0), teacher=teacher).moving_tensors() == {}
    assert objective_of(MaskedCrossEntropy()).moving_tensors() == {}
    before = [p.clone() for p in teacher.parameters()]
    objective_of(DiMS(ema=0.0), teacher=teacher).before_update(a_model(1))
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


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


def cut(batch, rows):
    fields = {f.name: getattr(batch, f.name)[rows] for f in dataclasses.fields(batch)}
    source, target = (int(fields[f"{side}_lengths"].max()) for side in ("source", "target"))
    fields["source"] = fields["source"][:, :source]
    for name in ("decoder_input", "target"):
        fields[name] = fields[name][:, :target]
    return Batch(**fields)


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
