"""The weighted list of losses against the models' own losses and whole logits."""

import pytest
import torch

import fastkd

transformers = pytest.importorskip("transformers", minversion="5.1")

from fastkd.integrations.distillation import Distillation
from fastkd.integrations.models import LanguageModel
from fastkd.integrations.teacher_columns import TeacherCollator, teacher_columns
from fastkd.integrations.transformers import attention_taps
from fastkd.losses import A2D, CrossEntropy, HiddenStates, TieKD, WordKD
from tests.integrations.families import (
    FAMILIES,
    ONE_STACK,
    SEQ2SEQ,
    VOCABULARY,
    build,
    causal,
    labelled,
    teacher_and_student,
    without_dropout,
)

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)
SHIFTED = ("llama", "qwen2")


def rows_of(family, tensor, labels):
    """The rows (N, *) that predict a label, and the labels (N,)."""
    if family in SHIFTED:
        tensor, labels = tensor[:, :-1], labels[:, 1:]
    return tensor[labels != -100], labels[labels != -100]


@pytest.mark.parametrize("family", FAMILIES)
def test_cross_entropy_is_the_models_own(family):
    model, inputs = build(family), labelled(family)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    loss, components = Distillation(model, [PLAIN])(model, inputs)
    expected = model(**inputs).loss
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(components["cross_entropy"], expected.detach())


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_logits_and_taps(family):
    teacher, student = teacher_and_student(family)
    inputs = labelled(family)
    a2d = A2D(weight=3.0, decay=0.5, normalization="row")
    losses = [
        CrossEntropy(weight=0.5),
        TieKD(weight=0.7, iterations=1, top_k=3, rank_weight=1.0),
        a2d,
    ]
    distillation = Distillation(student, losses, teacher)
    total, components = distillation(student, inputs, epoch=2)

    with attention_taps(student) as ours, attention_taps(teacher) as theirs:
        logits = student(**inputs).logits
        with torch.no_grad():
            wanted = teacher(**inputs).logits
        taps = ours.taps, theirs.taps
    rows, target = rows_of(family, logits, inputs["labels"])
    expected = fastkd.token_distillation_loss(
        rows,
        rows_of(family, wanted, inputs["labels"])[0],
        target,
        ce_weight=0.5,
        kd_weight=0.7,
        rank_weight=0.7,
        top_k=3,
        label_smoothing=0.1,
        reduction="mean",
        backend="reference",
    )
    loss = expected.loss
    torch.testing.assert_close(components["cross_entropy"], expected.ce)
    torch.testing.assert_close(components["tie_kd"], expected.kd)
    torch.testing.assert_close(components["ranking"], expected.rank)
    for kind, alignment in distillation.alignment.kinds.items():
        tap = getattr(taps[1], kind)
        term = alignment(getattr(taps[0], kind), tap) / (int(tap.query_lengths.sum()) * tap.maps)
        torch.testing.assert_close(components[f"a2d.{kind}"], term.detach())
        loss = loss + 3.0 * 0.5 * (1.0 if kind == "encoder" else 0.5) * term
    torch.testing.assert_close(total, loss)


def test_iterations_read_the_students_own_predictions():
    teacher, student = teacher_and_student("marian")
    inputs = labelled("marian")
    counted = inputs["labels"] != -100
    _, components = Distillation(student, [PLAIN, TieKD(iterations=3)], teacher)(student, inputs)
    start = torch.full((3, 1), SEQ2SEQ["decoder_start_token_id"])
    read = torch.cat([start, inputs["labels"][:, :-1]], 1).masked_fill(~counted, 0)
    read[:, 1:] = inputs["labels"][:, :-1].clamp(min=0)
    values = []
    for _ in range(3):
        given = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        logits, wanted = (m(**given, decoder_input_ids=read).logits for m in (student, teacher))
        p, q = logits.log_softmax(-1), wanted.log_softmax(-1)
        values.append(((q.exp() * (q - p)).sum(-1) * counted).sum() / counted.sum())
        read = torch.cat([start, logits.argmax(-1)[:, :-1]], 1).masked_fill(~counted, 0)
    assert values[0] != values[1]
    torch.testing.assert_close(components["tie_kd"], torch.stack(values).mean().detach())


def one_stack(name, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**ONE_STACK, **changes})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize(
    ("name", "changes"), [("Cohere", {"logit_scale": 0.3}), ("Granite", {"logits_scaling": 6.0})]
)
def test_scaled_heads(name, changes):
    model, inputs = one_stack(name, num_key_value_heads=2, **changes), labelled("llama")
    loss, _ = Distillation(model, [PLAIN])(model, inputs)
    torch.testing.assert_close(loss, model(**inputs).loss)


def test_scaled_hidden_states_of_t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    config.decoder_start_token_id = 0
    model = transformers.T5ForConditionalGeneration(config).eval()
    inputs = labelled("marian")
    loss, _ = Distillation(model, [PLAIN])(model, inputs)
    torch.testing.assert_close(loss, model(**inputs).loss)


@pytest.mark.parametrize("cap", [0.7, 30.0])
def test_soft_capped_heads(cap):
    student, teacher = (
        one_stack("Gemma2", num_key_value_heads=2, head_dim=4, final_logit_softcapping=c)
        for c in (cap, 2 * cap)
    )
    for parameter in (*student.parameters(), *teacher.parameters()):
        parameter.data.mul_(4)
    inputs = labelled("llama")
    loss, components = Distillation(student, [PLAIN, WordKD(weight=1.0)], teacher)(student, inputs)
    own = student(**inputs)
    torch.testing.assert_close(components["cross_entropy"], own.loss.detach())
    with torch.no_grad():
        wanted = teacher(**inputs).logits
    rows, target = rows_of("llama", own.logits, inputs["labels"])
    expected = fastkd.token_distillation_loss(
        rows,
        rows_of("llama", wanted, inputs["labels"])[0],
        target,
        ce_weight=1.0,
        kd_weight=1.0,
        reduction="mean",
        backend="reference",
    )
    torch.testing.assert_close(loss, expected.loss)


def test_other_bends_are_refused():
    model = build("llama")
    model.lm_head.register_forward_hook(lambda module, given, output: output.atan())
    with pytest.raises(fastkd.InputError, match=r"soft cap of its output.*token_distillation"):
        Distillation(model, [PLAIN])(model, labelled("llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_never_built(family):
    teacher, student = teacher_and_student(family)
    distillation = Distillation(student, [PLAIN, WordKD()], teacher)
    seen = []
    for model in (student, teacher):
        model.get_output_embeddings().register_forward_hook(
            lambda module, arguments, output: seen.append(output.numel())
        )
    distillation(student, labelled(family))  # judged
    seen.clear()
    distillation(student, labelled(family))[0].backward()
    assert seen == [0, 0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalization", ["map", "row", "mixture"])
def test_pieces_of_an_update_sum_to_it(family, normalization):
    teacher, student = teacher_and_student(family)
    losses = [PLAIN, WordKD(), A2D(normalization=normalization)]
    distillation = Distillation(student, losses, teacher)
    whole = distillation(student, labelled(family))
    pieces = [labelled(family, rows) for rows in (slice(0, 1), slice(1, 3))]
    counts = distillation.counts(pieces)
    parts = [distillation(student, piece, counts) for piece in pieces]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss)
    for name, value in whole.components.items():
        torch.testing.assert_close(sum(part.components[name] for part in parts), value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_steps_lower_every_loss(family):
    teacher, student = teacher_and_student(family)
    inputs = labelled(family)
    # What the teacher says, so that the losses do not pull in different directions.
    iterations = 2 if "d_model" in FAMILIES[family][2] else 1
    losses = [WordKD(weight=1.0), TieKD(iterations=iterations), A2D(weight=4.0)]
    distillation = Distillation(student, losses, teacher, backend="reference")
    optimizer = torch.optim.Adam([*student.parameters(), *distillation.parameters()], lr=1e-2)
    history = []
    for _ in range(12):
        loss, components = distillation(student, inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(components)
    for name, first in history[0].items():
        assert history[-1][name] < 0.9 * first, name


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_nothing(family):
    gradients = []
    for checkpointing in (False, True):
        teacher, student = teacher_and_student(family)
        without_dropout(student).train()
        if checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})
        distillation = Distillation(student, [PLAIN, WordKD(), A2D()], teacher)
        for alignment in distillation.alignment.kinds.values():
            torch.nn.init.eye_(alignment.weight)
        distillation(student, labelled(family))[0].backward()
        gradients.append([p.grad for p in student.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def collate(features):
    keys = features[0].keys()
    return {
        key: torch.stack([torch.as_tensor(feature[key]) for feature in features]) for key in keys
    }


@pytest.mark.parametrize("family", ["marian", "bert", "llama"])
def test_columns_stand_for_the_teacher(family):
    teacher, student = teacher_and_student(family)
    inputs = labelled(family)
    losses = [PLAIN, TieKD(iterations=1, top_k=3, teacher_temperature=0.7)]
    expected, _ = Distillation(student, losses, teacher)(student, inputs)
    columns = teacher_columns(teacher, inputs, top_k=VOCABULARY)
    features = [
        {key: value[row] for key, value in {**inputs, **columns}.items()} for row in range(3)
    ]
    batch = TeacherCollator(collate, shifted=family in SHIFTED)(features)
    loss, _ = Distillation(student, losses)(student, batch)
    torch.testing.assert_close(loss, expected)
    features[0]["labels"] = features[0]["labels"].masked_fill(
        torch.arange(len(features[0]["labels"])) == 1, -100
    )
    with pytest.raises(fastkd.InputError, match="made from the same labels"):
        TeacherCollator(collate, shifted=family in SHIFTED)(features)


FORMS = ("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd")


def listed_batch(family, teacher, top_k):
    """A batch with the teacher's columns, as a trainer of a mapped data set has it."""
    inputs = labelled(family)
    columns = teacher_columns(teacher, inputs, top_k=top_k)
    rows = range(len(inputs["labels"]))
    features = [{k: value[row] for k, value in {**inputs, **columns}.items()} for row in rows]
    return TeacherCollator(collate, shifted=family in SHIFTED)(features)


@pytest.mark.parametrize("family", ["marian", "bert", "llama"])
@pytest.mark.parametrize("form", FORMS)
def test_columns_read_with_a_tail(family, form):
    """Of every id they are the teacher; of few, one outcome more, by logits beside it."""
    teacher, student = teacher_and_student(family)
    inputs, loss = labelled(family), WordKD(divergence=form, student_temperature=1.5)
    live = Distillation(student, [loss], teacher)(student, inputs)[0]
    listed = Distillation(student, [loss], rest="tail")
    whole = listed(student, listed_batch(family, teacher, VOCABULARY))[0]
    torch.testing.assert_close(whole, live, rtol=1e-4, atol=1e-6)

    few, components = listed(student, listed_batch(family, teacher, 3))
    ours, theirs = (model(**inputs).logits for model in (student, teacher))
    p = rows_of(family, ours, inputs["labels"])[0].div(1.5).softmax(-1).double()
    q = rows_of(family, theirs, inputs["labels"])[0].softmax(-1).double()
    ids = q.topk(3).indices
    joined = [
        torch.cat([each.gather(1, ids), 1 - each.gather(1, ids).sum(1, keepdim=True)], 1)
        for each in (p, q)
    ]
    expected = fastkd.token_distillation_loss(
        joined[0].log(), joined[1].log(), ce_weight=0.0, kd_weight=1.0, divergence=form,
        reduction="mean", backend="reference",
    ).loss  # fmt: skip
    torch.testing.assert_close(components["word_kd"].double(), expected, rtol=1e-4, atol=1e-6)
    assert 0 < few < whole
    learned = [p for p in student.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(few, learned, allow_unused=True)
    assert all(g.isfinite().all() for g in gradients if g is not None)


def test_columns_that_cannot_serve_a_divergence_are_refused_before_training():
    with pytest.raises(fastkd.InputError, match="reverse_kl needs rest: spread or tail, not renor"):
        Distillation(build("llama"), [WordKD(divergence="reverse_kl")])


def test_losses_as_mappings():
    student = build("bert")
    losses = [{"name": "cross_entropy", "label_smoothing": 0.0}]
    loss, _ = Distillation(student, losses)(student, labelled("bert"))
    torch.testing.assert_close(loss, Distillation(student, [PLAIN])(student, labelled("bert"))[0])


@pytest.mark.parametrize(
    ("losses", "complaint"),
    [
        ([A2D()], "at least one of cross_entropy"),
        ([PLAIN, A2D()], "a2d needs a teacher"),
        ([PLAIN, PLAIN], "listed twice"),
        ([{"name": "cross_entropy", "label_smothing": 0.1}], "label_smothing"),
        ([{"name": "dims"}], "dims is no loss of Transformers models; expected cross_entropy"),
        (["word_kd"], "losses.0: 'word_kd' is no loss"),
        ([HiddenStates()], "at least one of cross_entropy"),
        ([PLAIN, HiddenStates()], "hidden needs a teacher"),
        ([TieKD(iterations=2)], "iterations: expected 1"),
    ],
)
def test_losses_that_do_not_fit_are_refused(losses, complaint):
    with pytest.raises(fastkd.InputError, match=complaint):
        Distillation(build("llama"), losses)


def test_batches_that_lack_something_are_refused():
    student = build("llama")
    inputs = labelled("llama")
    with pytest.raises(fastkd.InputError, match="teacher_ids: expected in every batch"):
        Distillation(student, [WordKD()])(student, inputs)
    unread = {"labels": inputs["labels"], "attention_mask": inputs["attention_mask"]}
    line = "input_ids: expected in every batch of LlamaForCausalLM, not only labels, attention_mask"
    with pytest.raises(fastkd.InputError, match=line):
        Distillation(student, [PLAIN])(student, unread)
    del inputs["labels"]
    with pytest.raises(fastkd.InputError, match="labels: expected in every batch, not only input"):
        Distillation(student, [PLAIN])(student, inputs)


def test_a_student_that_does_not_train_is_refused():
    """As two models that are to teach each other would be."""
    first, second = teacher_and_student("llama")
    Distillation(first, [WordKD()], second)
    distillation, inputs = Distillation(second, [WordKD()], first), labelled("llama")
    second.train()
    with pytest.raises(fastkd.InputError, match="student: none of its parameters requires grad"):
        distillation(second, inputs)
    with torch.no_grad():
        assert distillation(second, inputs).loss > 0
    second.eval()
    assert distillation(second, inputs).loss > 0


def test_a_kind_of_batch_is_read_once(monkeypatch):
    student, read = build("llama"), []
    distillation = Distillation(student, [PLAIN], verify=False)
    inputs = causal()
    longer = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
    reading = LanguageModel.read
    monkeypatch.setattr(
        LanguageModel, "read", lambda model, batch: read.append(batch) or reading(model, batch)
    )
    for _ in range(3):
        for batch in (inputs, longer):
            distillation.counts([batch])
    assert sum(batch is longer for batch in read) == 1


def test_models_of_other_shapes_are_refused():
    with pytest.raises(fastkd.InputError, match="encoder-decoder exactly where"):
        Distillation(build("llama"), [WordKD()], build("marian"))
    headless = transformers.AutoModel.from_config(build("llama").config)
    with pytest.raises(fastkd.InputError, match="output embeddings"):
        Distillation(headless, [PLAIN])
