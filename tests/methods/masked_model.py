"""A small masked model, a batch, and what formulas written out literally need of them."""

import dataclasses

import torch

from fastkd.config.tree import (
    CMLMConfig,
    Config,
    DataConfig,
    ModelConfig,
    TeacherConfig,
    TrainingConfig,
)
from fastkd.methods.masking import Masking
from fastkd.methods.objective import Objective
from fastkd.nn.cmlm import CMLM
from tests.methods.batches import BOS, EOS, PAD, batch_of

VOCABULARY, MASK = 13, 4
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


def a_model(seed=1, config=CONFIG):
    torch.manual_seed(seed)
    model = CMLM(config, VOCABULARY, VOCABULARY, pad_id=PAD, bos_id=BOS, eos_id=EOS, mask_id=MASK)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def a_batch(source_lengths=(4, 3, 5), target_lengths=(6, 3, 8)):
    batch = batch_of(source_lengths, target_lengths, VOCABULARY)
    ids = batch.sentence_ids + 40
    return dataclasses.replace(batch, decoder_input=batch.target, sentence_ids=ids)


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
