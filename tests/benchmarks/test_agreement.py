"""How often two models have the same likeliest piece, against one sentence at a time."""

import dataclasses

import pytest
import torch

from benchmarks.translation.agreement import agreement
from fastkd.config.load import load_config
from fastkd.data.batches import collate
from fastkd.data.prepare import open_prepared, prepare
from fastkd.nn.build import build_model
from tests.benchmarks.test_fetch import sentences

SMALL = ("model.encoder_layers=1", "model.decoder_layers=1", "model.width=16", "model.ffn=32")


@pytest.fixture
def prepared(tmp_path):
    for split, count in (("train", 40), ("dev", 9)):
        for side, language in enumerate(("qlo", "qtu")):
            text = "".join(f"{line}\n" for line in sentences(count, side))
            (tmp_path / f"{split}.{language}").write_text(text)
    found = [f"data.{split}={tmp_path / split}" for split in ("train", "dev")]
    found += ["data.test=null", f"data.prepared={tmp_path / 'prepared'}", "tokenizer.vocabulary=48"]
    config = load_config("demo/student", [*found, *SMALL])
    prepare(config)
    return config, open_prepared(config)


def test_is_that_of_single_sentences(prepared):
    config, corpus = prepared
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = build_model(dataclasses.replace(config.model, dropout=0.5), corpus.tokenizers)
        models.append(model)
    assert agreement(models[0], models[0], corpus, "bos") == 100
    same, positions = 0, 0
    for number in range(len(corpus.dev)):
        batch = collate(corpus.dev, [number], corpus.tokenizers, "bos")
        inputs = batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths
        ours, theirs = (model.eval().logits(model(*inputs).rows).argmax(-1) for model in models)
        same += int((ours == theirs).sum())
        positions += len(ours)
    assert positions == int(corpus.dev.target_lengths.sum()) + len(corpus.dev)
    expected = 100 * same / positions
    assert agreement(*models, corpus, "bos") == pytest.approx(expected, abs=100 / positions)
    assert 0 <= expected < 100
