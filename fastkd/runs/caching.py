"""Writes what a teacher says of a corpus into a `TeacherCache`."""

from collections.abc import Callable
from pathlib import Path

import torch

from fastkd.data.batches import BatchPlan, collate
from fastkd.data.corpus import Corpus
from fastkd.data.prepare import open_prepared
from fastkd.data.teacher_cache import writing_cache
from fastkd.errors import InputError
from fastkd.runs.device import pick_device
from fastkd.runs.folder import RunFolder

_BATCH_TOKENS = 4096


@torch.no_grad()
def cache_teacher(
    run: RunFolder,
    split: str,
    top_k: int,
    folder: Path,
    checkpoint: str = "best",
    dtype: str = "float32",
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Corpus:
    """`top_k` ids and log-probabilities of every target position of a prepared split.

    progress: called with the number of sentences done, and of all

    Raises InputError where `top_k` is more than the vocabulary, or the split is not prepared, or
    with another tokenizer than the run's.
    """
    config = run.config
    prepared = open_prepared(config)
    corpus: Corpus | None = getattr(prepared, split)
    run.check_corpus(prepared)
    vocabulary = prepared.tokenizers.target.size
    if corpus is None:
        raise InputError(f"{run.config_file}: data.{split}: names no corpus")
    if top_k > vocabulary:
        raise InputError(f"--top-k: expected at most {vocabulary}, the vocabulary, not {top_k}")
    if config.model.kind != "transformer":
        raise InputError(f"{run.path}: expected a model of kind transformer to be cached")
    where = pick_device(device)
    weights = run.read_weights(checkpoint)
    model = run.load_model(checkpoint, where, weights)
    about = {"teacher": str(run.path), "teacher_sha256": weights.sha256}
    longest = int(max(corpus.source_lengths.max(), corpus.target_lengths.max())) + 1
    plan = BatchPlan(
        corpus.source_lengths, corpus.target_lengths, max(longest, _BATCH_TOKENS), seed=0
    )
    with writing_cache(folder, corpus, top_k, vocabulary, dtype, about) as writer:
        done = 0
        for sentences in plan.epoch(0):
            batch = collate(corpus, sentences, prepared.tokenizers, config.model.decoder_start)
            batch = batch.to(where)
            output = model(
                batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths
            )
            for row, length in enumerate(batch.target_lengths.tolist()):
                logits = model.logits(output.hidden[row, :length]).float()
                best = logits.log_softmax(-1).topk(top_k)
                writer.write(int(sentences[row]), best.indices.cpu(), best.values.cpu())
            done += len(sentences)
            progress(done, len(corpus))
    return corpus
