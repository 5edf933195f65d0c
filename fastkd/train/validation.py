"""Loss and BLEU on the development set."""

import dataclasses
from collections.abc import Callable

import torch

from fastkd.config.tree import Config
from fastkd.data.batches import BatchPlan, collate
from fastkd.data.prepare import Prepared
from fastkd.decode.score import score
from fastkd.decode.translate import translate
from fastkd.functional import linear_token_distillation_loss
from fastkd.nn.transformer import Transformer


@torch.no_grad()
def validation_loss(
    model: Transformer, prepared: Prepared, config: Config, device: torch.device
) -> float:
    """Cross-entropy in nats per target token, end-of-sentence included, on all of dev."""
    corpus, pad_id = prepared.dev, prepared.tokenizers.target.pad_id
    budget = max(config.training.batch_tokens, _longest(corpus) + 1)
    plan = BatchPlan(corpus.source_lengths, corpus.target_lengths, budget, seed=0)
    total, tokens = 0.0, 0
    for ids in plan.epoch(0):
        batch = collate(corpus, ids, prepared.tokenizers, config.model.decoder_start).to(device)
        output = model(
            batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths
        )
        losses = linear_token_distillation_loss(
            output.rows,
            model.output_weight,
            target=output.layout.rows(batch.target),
            student_bias=model.output_bias,
            ce_weight=1.0,
            kd_weight=0.0,
            ignore_index=pad_id,
            backend=config.training.backend,
        )
        total += losses.ce.item()
        tokens += batch.target_tokens
    return total / tokens


def validation_bleu(
    model: Transformer,
    prepared: Prepared,
    config: Config,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> float:
    """BLEU of greedy translations of dev's first `training.bleu_sentences` sentences."""
    count = config.training.bleu_sentences
    sources, references = prepared.dev_lines(count)
    greedy = dataclasses.replace(config.decoding, beam=1)
    hypotheses = translate(model, prepared.tokenizers, sources, greedy, device, progress)
    return score(hypotheses, references).bleu


def _longest(corpus) -> int:
    return int(max(corpus.source_lengths.max(), corpus.target_lengths.max()))
