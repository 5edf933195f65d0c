"""Every loss in the lean trainer and in the integrations: the same on the same weights."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.1")

from fastkd.config.schedule import RepeatsSchedule, Schedule
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
from fastkd.export.layout import to_transformers
from fastkd.export.transformers import model_config
from fastkd.integrations.distillation import Distillation
from fastkd.methods.objective import Objective
from fastkd.methods.passes import Counts
from fastkd.nn.transformer import Transformer
from tests.methods.batches import BOS, EOS, PAD, batch_of

V = 23
STUDENT = ModelConfig(
    encoder_layers=1,
    decoder_layers=1,
    width=16,
    ffn=32,
    heads=2,
    dropout=0.0,
    norm="post",
    output_bias=True,
    decoder_start="bos",
    max_positions=32,
)
TEACHER = replace(STUDENT, encoder_layers=2, decoder_layers=2, heads=4, width=24)
LOSSES = {
    "cross_entropy": [CrossEntropy(weight=0.5)],
    "no smoothing": [CrossEntropy(label_smoothing=0.0)],
    "word_kd": [WordKD(student_temperature=2.0)],
    "word_kd with cross_entropy": [CrossEntropy(weight=0.5), WordKD()],
    "word_kd by jsd": [
        CrossEntropy(weight=0.5),
        WordKD(divergence="jsd", beta=0.3, student_temperature=2.0, t_squared=True),
    ],
    "word_kd by reverse_kl": [WordKD(divergence="reverse_kl")],
    "tie_kd, one pass": [CrossEntropy(weight=0.5), TieKD(iterations=1, rank_weight=1.0, top_k=3)],
    "tie_kd, three passes": [CrossEntropy(weight=0.5), TieKD(teacher_temperature=0.5)],
    "tie_kd without ranking": [TieKD(rank_weight=0.0, iterations=2)],
    "two distillation losses": [TieKD(iterations=3), CrossEntropy(weight=0.5), WordKD(weight=0.3)],
    "a2d by map": [CrossEntropy(), A2D(normalization="map")],
    "a2d by row": [CrossEntropy(), A2D(normalization="row", temperature=0.7)],
    "a2d by mixture": [CrossEntropy(), A2D(normalization="mixture", cross=0.0)],
    "a2d, padding included": [CrossEntropy(), A2D(normalization="map", padding="include")],
    "hidden": [CrossEntropy(), HiddenStates(weight=2.0)],
    "hidden, encoder only": [WordKD(), HiddenStates(decoder=False)],
    "hidden beside a2d": [TieKD(), A2D(), HiddenStates(encoder=False)],
    "from the second update, or epoch": [
        WordKD(weight=Schedule(value=1.0, begin=1, by="epoch")),
        TieKD(
            rank_weight=Schedule(value=1.0, begin=1), iterations=RepeatsSchedule(value=2, begin=1)
        ),
        A2D(weight=Schedule(value=4.0, ramp=2)),
    ],
    "a2d, its own weight": [WordKD(), A2D(weight=3.0, encoder=0.0, decay=0.5)],
}


def both(config, seed):
    """One model of ours and one of Transformers with the same weights."""
    torch.manual_seed(seed)
    ours = Transformer(config, V, V, PAD).eval()
    torch.nn.init.normal_(ours.output_bias)
    for parameter in ours.parameters():
        parameter.data.mul_(2)  # sharper than at the start
    side = SimpleNamespace(size=V, pad_id=PAD, bos_id=BOS, eos_id=EOS, mask_id=4)
    settings = model_config(config, SimpleNamespace(source=side, target=side))
    settings = {
        key: value
        for key, value in settings.items()
        if key not in ("model_type", "architectures", "dtype")
    }
    theirs = transformers.MarianMTModel(transformers.MarianConfig(**settings)).eval()
    weights = {name: p.detach().clone() for name, p in ours.named_parameters()}
    report = theirs.load_state_dict(to_transformers(config, weights), strict=False)
    assert not report.unexpected_keys
    theirs.tie_weights()
    return ours, theirs


@pytest.fixture(scope="module")
def models():
    return both(STUDENT, seed=1), both(TEACHER, seed=2)


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_one_composition(models, name, epoch):
    (student, their_student), (teacher, their_teacher) = models
    # What a pad query is differs between the models, and counts where padding is included.
    lengths = ([6, 6, 6], [5, 5, 5]) if "included" in name else ([6, 4, 5], [7, 3, 5])
    batch = batch_of(*lengths, V)
    inputs = {
        "input_ids": batch.source,
        "attention_mask": (batch.source != PAD).long(),
        "labels": batch.target.masked_fill(batch.target == PAD, -100),
    }
    objective = Objective(
        Config(
            run="run",
            data=DataConfig(source="a", target="b", train="t", dev="d", prepared="p"),
            model=STUDENT,
            training=TrainingConfig(backend="torch"),
            teacher=TeacherConfig(run="teacher"),
            losses=tuple(LOSSES[name]),
        ),
        PAD,
        (teacher, TEACHER),
    )
    distillation = Distillation(their_student, LOSSES[name], their_teacher, backend="torch")
    if objective.alignment is not None:
        distillation.alignment.load_state_dict(objective.alignment.align.state_dict())
    if objective.hidden is not None:
        distillation.hidden.load_state_dict(objective.hidden.state_dict())
    counts = Counts(
        len(batch.source),
        int(batch.source_lengths.sum()),
        int(batch.target_lengths.sum()),
        update=epoch,
    )

    loss, components = objective(student, batch, counts, epoch)
    their_loss, their_components = distillation(their_student, inputs, epoch=epoch, update=epoch)
    torch.testing.assert_close(loss, their_loss, rtol=2e-5, atol=1e-6)
    assert components.keys() == their_components.keys()
    for component, value in components.items():
        assert value > 0
        torch.testing.assert_close(value, their_components[component], rtol=2e-5, atol=1e-6)

    gradients = []
    for model, total in ((student, loss), (their_student, their_loss)):
        model.zero_grad()
        total.backward()
        embedding = model.get_parameter(
            "source_embedding.weight" if model is student else "model.shared.weight"
        )
        gradients.append(embedding.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_a_schedule_by_update_needs_to_know_it(models):
    (_, student), (_, teacher) = models
    losses = [CrossEntropy(), WordKD(weight=Schedule(value=1.0, begin=1))]
    distillation = Distillation(student, losses, teacher)
    labels = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(InputError, match=r"update: expected, as word_kd\.weight changes with it"):
        distillation(student, {"input_ids": labels, "labels": labels})
