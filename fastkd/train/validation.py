"""Loss and BLEU on the development set."""

import dataclasses

import torch

from fastkd.config.tree import Config
from fastkd.data.batches import BatchPlan, collate
from fastkd.data.prepare import Prepared
from fastkd.decode.score import score
from fastkd.decode.translate import translate
from fastkd.methods.objective import Objective
from fastkd.nn.transformer import Transformer
from fastkd.train.ranks import Ranks


def validation_loss(
    objective: Objective,
    model: Transformer,
    prepared: Prepared,
    config: Config,
    device: torch.device,
    ranks: Ranks,
) -> float:
    """Cross-entropy in nats per predicted piece, on all of dev.

    Of an autoregressive model that is every target token, end-of-sentence included; of a masked
    one, the pieces behind masks that are the same each time.
    """
    corpus = prepared.dev
    budget = max(config.training.batch_tokens, _longest(corpus) + 1)
    plan = BatchPlan(corpus.source_lengths, corpus.target_lengths, budget, seed=0)
    sums = {
        name: torch.zeros((), dtype=torch.float64, device=device) for name in ("loss", "pieces")
    }
    for ids in ranks.share(plan.epoch(0)):
        batch = collate(corpus, ids, prepared.tokenizers, config.model.decoder_start).to(device)
        loss, pieces = objective.validation_loss(model, batch)
        sums["loss"] += loss
        sums["pieces"] += pieces
    sums = ranks.total(sums)
    return float(sums["loss"] / sums["pieces"])


def validation_bleu(
    model: Transformer,
    prepared: Prepared,
    config: Config,
    device: torch.device,
    ranks: Ranks,
) -> float:
    """BLEU of greedy translations of dev's first `training.bleu_sentences` sentences."""
    count = config.training.bleu_sentences
    sources, references = prepared.dev_lines(count)
    greedy = dataclasses.replace(config.decoding, beam=1)
    mine = translate(model, prepared.tokenizers, ranks.share(sources), greedy, device)
    return score(ranks.join_shares(mine), references).bleu


def _longest(corpus) -> int:
    return int(max(corpus.source_lengths.max(), corpus.target_lengths.max()))
