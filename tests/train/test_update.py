"""One update, against the same in plain PyTorch; and who makes it."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastkd.bench.training import SCALES, configure, update_of
from fastkd.config.tree import OptimizerConfig
from fastkd.memory.step.training_step import TrainingStep
from fastkd.memory.step.workload import Vocabulary
from fastkd.train.ranks import Ranks
from fastkd.train.update import Piece, Updater

CPU = torch.device("cpu")
SIZE = 40


def make(method="alone", **training):
    """An update's maker for a small model without dropout, its counts and its batches."""
    scale = dataclasses.replace(SCALES["smoke"], vocabulary=SIZE, batch_tokens=48)
    config, teacher = configure(scale, method, "reference")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dropout=0.0),
        training=dataclasses.replace(config.training, **training),
    )
    vocabulary = Vocabulary.of_sizes(SIZE, SIZE)
    step = TrainingStep(config, vocabulary, teacher, CPU)
    update = update_of(scale)
    counts = step.objective.counts(update.corpus, np.arange(update.sentences), update=1)
    return step.updater, counts, update.pieces(2, vocabulary)


def numbered(batches):
    return [Piece.of(number, batch) for number, batch in enumerate(batches)]


def test_as_in_plain_pytorch():
    # A large eps keeps Adam from blowing up the rounding of tiny gradients.
    config = OptimizerConfig(clip=0.05, eps=1e-3)
    updater, counts, batches = make(ema=0.5, optimizer=config)
    model = copy.deepcopy(updater.model)
    begin = [p.detach().clone() for p in model.parameters()]
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) == decays], "weight_decay": decay}
        for decays, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=config.betas, eps=config.eps)
    total = torch.zeros(())
    for batch in batches:
        output = model(
            batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths
        )
        logits = F.linear(output.rows, model.output_weight, model.output_bias)
        target = output.layout.rows(batch.target)
        loss = F.cross_entropy(logits, target, ignore_index=0, label_smoothing=0.1, reduction="sum")
        total = total + loss / counts.target_tokens
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()

    made = updater(1, numbered(batches), counts, epoch=1, rate=0.01)

    assert made.taken and updater.rate == 0.01
    torch.testing.assert_close(made.components["loss"], total.detach())
    torch.testing.assert_close(made.components["grad_norm"], norm)
    averages = updater.average.tensors().values()
    for ours, theirs, first, average in zip(
        updater.model.parameters(), model.parameters(), begin, averages, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(average, (ours.detach() + first) / 2)


def test_a_gradient_that_is_not_finite_changes_nothing():
    updater, counts, batches = make(ema=0.5)
    updater(1, numbered(batches), counts, epoch=1, rate=0.01)
    with torch.no_grad():
        held = next(updater.model.parameters())
        held.view(-1)[0] = float("nan")
    before = {name: t.clone() for name, t in updater.model.state_dict().items()}
    average = {name: t.clone() for name, t in updater.average.tensors().items()}
    made = updater(2, numbered(batches), counts, epoch=1, rate=0.5)
    assert not made.taken and updater.rate == 0.01
    assert not torch.isfinite(made.components["grad_norm"])
    for name, tensor in updater.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], equal_nan=True, rtol=0, atol=0)
    assert all(t.equal(average[name]) for name, t in updater.average.tensors().items())


def test_a_piece_that_stands_in_adds_nothing():
    one, counts, batches = make("A2D")
    two, _, _ = make("A2D")
    alone = one(1, numbered(batches), counts, epoch=1, rate=0.01)
    absent = Piece(2, lambda: batches[0], counts=False)
    beside = two(1, [*numbered(batches), absent], counts, epoch=1, rate=0.01)
    for name, value in alone.components.items():
        assert value.equal(beside.components[name]), name
    for ours, theirs in zip(one.parameters, two.parameters, strict=True):
        assert ours.equal(theirs)


def test_random_choices_follow_from_the_place_alone():
    updater, counts, batches = make()
    for module in updater.model.modules():
        if hasattr(module, "p"):
            module.p = 0.1
    losses = []
    for disturbance in range(2):
        torch.manual_seed(disturbance)
        made = updater(7, numbered(batches), counts, epoch=1, rate=0.0)
        losses.append(made.components["loss"])
    assert losses[0].equal(losses[1])


@pytest.mark.parametrize("method", ["word KD", "DiMS"])
def test_a_profiled_step_is_the_trainers_update(method):
    updater, _, _ = make(method)
    assert type(updater) is Updater and updater.ranks == Ranks()
    assert set(updater.modules()) == {"model", "objective", "teacher"}
