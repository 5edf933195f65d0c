"""How often a student's likeliest piece is its teacher's, after the same reference prefix."""

from typing import Literal

import torch
from torch import Tensor

from fastkd.data.batches import Batch, BatchPlan, collate
from fastkd.data.prepare import Prepared
from fastkd.nn.transformer import Transformer
from fastkd.runs.folder import RunFolder

_TOKENS = 4096  # a batch
Start = Literal["bos", "eos", "pad"]


@torch.no_grad()
def agreement(
    student: Transformer, teacher: Transformer, prepared: Prepared, start: Start
) -> float:
    """Percent of dev's target positions, ends of sentence included.

    start: `model.decoder_start` of the student, which both are given
    """
    corpus, same, of = prepared.dev, 0, 0
    longest = int(max(corpus.source_lengths.max(), corpus.target_lengths.max())) + 1
    budget = max(_TOKENS, longest)
    plan = BatchPlan(corpus.source_lengths, corpus.target_lengths, budget, seed=0)
    for ids in plan.epoch(0):
        batch = collate(corpus, ids, prepared.tokenizers, start)
        ours, theirs = (_likeliest(model, batch) for model in (student.eval(), teacher.eval()))
        same += int((ours == theirs).sum())
        of += len(ours)
    return 100 * same / of


def of_run(run: RunFolder, checkpoint: str, prepared: Prepared) -> float | None:
    """That of a run's student; None where it has no teacher that is a model of its kind."""
    config = run.config
    if config.model.kind != "transformer" or config.teacher is None or config.teacher.run is None:
        return None
    teacher = RunFolder.open(config.teacher.run).load_model(config.teacher.checkpoint)
    return agreement(run.load_model(checkpoint), teacher, prepared, config.model.decoder_start)


def _likeliest(model: Transformer, batch: Batch) -> Tensor:
    """(N,) ids, one a target position."""
    inputs = (batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths)
    output = model(*inputs)
    # With rows of padding, as some devices have them, only those of real pieces count.
    real = output.layout.rows(batch.target) != model.pad_id
    return model.logits(output.rows[real]).argmax(-1)
