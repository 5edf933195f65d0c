"""Loss, BLEU and chrF on the development set."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastkd.config.tree import Config
from fastkd.data.batches import BatchPlan, collate
from fastkd.data.corpus import Corpus
from fastkd.data.prepare import Prepared
from fastkd.decode.score import DEFAULT, Scores, score, tokenizer_of
from fastkd.decode.translate import translate
from fastkd.methods.objective import Objective
from fastkd.nn.transformer import Transformer
from fastkd.train.position import Position
from fastkd.train.ranks import Ranks

LOGGER = logging.getLogger(__name__)


class _Stopped(Exception):
    """Leaves a translation in its midst."""


@dataclass(frozen=True)
class Validation:
    """What the development set says of a model; no scores where none were asked for."""

    loss: float  # nats per predicted piece
    scores: Scores | None

    def result(self, metric: str) -> float:
        """The value of `early_metric`, higher is better; the loss where there are no scores."""
        if self.scores is None or metric == "loss":
            return -self.loss
        return self.scores.chrf if metric == "chrf" else self.scores.bleu

    def record(self) -> dict[str, Any]:
        """For the log."""
        if self.scores is None:
            return {"dev_loss": self.loss}
        return {
            "dev_loss": self.loss,
            "dev_bleu": self.scores.bleu,
            "dev_chrf": self.scores.chrf,
            "bleu_signature": self.scores.bleu_signature,
        }

    def __str__(self) -> str:
        if self.scores is None:
            return f"dev loss {self.loss:.4f}"
        return f"dev loss {self.loss:.4f}, BLEU {self.scores.bleu:.2f}, chrF {self.scores.chrf:.2f}"


def bleu_tokenizer(config: Config, position: Position) -> str:
    """What cuts BLEU's words in this run's validations.

    The configured one; else that of the validations before, so that their scores compare; at the
    first, the target language's own.
    """
    configured = config.training.bleu_tokenizer
    if configured is not None:
        return configured
    own = tokenizer_of(config.data.target)
    if position.bleu_tokenizer is not None:
        return position.bleu_tokenizer
    if position.best_update is None or own == DEFAULT or config.training.early_metric == "loss":
        return own
    # Validated before the choice was made by language.
    LOGGER.warning(
        "this run's best checkpoint was chosen by BLEU with tokenizer %s, which is kept; "
        "training.bleu_tokenizer=%s is the one for %s",
        *(DEFAULT, own, config.data.target),
    )
    return DEFAULT


def validate(
    objective: Objective,
    model: Transformer,
    prepared: Prepared,
    config: Config,
    device: torch.device,
    ranks: Ranks,
    tokenizer: str,
    stopped: Callable[[], bool] = lambda: False,
) -> Validation | None:
    """Loss on all of dev; BLEU and chrF on its first `training.bleu_sentences` sentences.

    stopped: asked after each batch whether to stop, and then None is what comes of it
    """
    where = prepared, config, device, ranks
    loss = validation_loss(objective, model, *where, stopped)
    if ranks.any(stopped(), device):
        return None
    if not config.training.bleu_sentences:
        return Validation(loss, None)
    scores = validation_scores(model, *where, tokenizer, stopped)
    return None if scores is None else Validation(loss, scores)


def validation_loss(
    objective: Objective,
    model: Transformer,
    prepared: Prepared,
    config: Config,
    device: torch.device,
    ranks: Ranks,
    stopped: Callable[[], bool] = lambda: False,
) -> float:
    """Cross-entropy in nats per predicted piece, on all of dev.

    Of an autoregressive model that is every target token, end-of-sentence included; of a masked
    one, the pieces behind masks that are the same each time. No figure where it was `stopped`.
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
        ranks.go_on()
        if stopped():
            break
    sums = ranks.total(sums)
    return float(sums["loss"] / sums["pieces"])


def validation_scores(
    model: Transformer,
    prepared: Prepared,
    config: Config,
    device: torch.device,
    ranks: Ranks,
    tokenizer: str,
    stopped: Callable[[], bool] = lambda: False,
) -> Scores | None:
    """Of greedy translations of dev's first `training.bleu_sentences` sentences."""
    count = config.training.bleu_sentences
    sources, references = prepared.dev_lines(count)
    greedy = dataclasses.replace(config.decoding, beam=1)

    def progress(count: int) -> None:
        ranks.go_on()
        if stopped():
            raise _Stopped

    mine: list[str] = []
    with contextlib.suppress(_Stopped):
        mine = translate(model, prepared.tokenizers, ranks.share(sources), greedy, device, progress)
    translations = ranks.join_shares(mine)
    if ranks.any(stopped(), device):
        return None
    return score(translations, references, tokenizer)


def _longest(corpus: Corpus) -> int:
    return int(max(corpus.source_lengths.max(), corpus.target_lengths.max()))
