"""Vocabularies that are padded differently; batches counted where no pass can be made."""

import logging

import pytest
import torch

import fastkd
from fastkd.losses import CrossEntropy, TieKD, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")

from fastkd.integrations.distillation import Distillation
from tests.integrations.families import VOCABULARY, build, labelled

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)
SIZES = [(VOCABULARY, VOCABULARY + 5), (VOCABULARY + 5, VOCABULARY)]


class Tokens:
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("tokenizer", [None, Tokens(VOCABULARY - 2)])
def test_the_common_ids_are_compared(sizes, backend, tokenizer, caplog):
    """Each side normalised over them; cross-entropy is the student's own."""
    student, teacher = (build("qwen2", vocab_size=size) for size in sizes)
    inputs, distillation = labelled("qwen2"), None
    with caplog.at_level(logging.WARNING, "fastkd"):
        distillation = Distillation(
            student, [PLAIN, WordKD()], teacher, backend=backend, tokenizer=tokenizer
        )
        _, components = distillation(student, inputs)
        distillation(student, inputs)
    assert [f"the first {VOCABULARY}, " in message for message in caplog.messages] == [True]
    p, q = (m(**inputs).logits[:, :-1, :VOCABULARY].log_softmax(-1) for m in (student, teacher))
    counted = inputs["labels"][:, 1:] != -100
    expected = (q.exp() * (q - p)).sum(-1)[counted].mean()
    torch.testing.assert_close(components["word_kd"], expected.detach())
    own = student(**inputs).loss
    torch.testing.assert_close(components["cross_entropy"], own.detach())


def test_passes_of_predictions_over_the_common_ids():
    student, teacher = (build("marian", vocab_size=size) for size in SIZES[0])
    inputs = labelled("marian")
    loss, _ = Distillation(student, [TieKD(iterations=2)], teacher)(student, inputs)
    loss.backward()
    assert loss > 0


@pytest.mark.parametrize("sizes", [*SIZES, (VOCABULARY, VOCABULARY)])
def test_a_tokenizer_of_more_ids_is_refused(sizes):
    student, teacher = (build("qwen2", vocab_size=size) for size in sizes)
    distillation = Distillation(student, [WordKD()], teacher, tokenizer=Tokens(VOCABULARY + 1))
    with pytest.raises(fastkd.InputError, match="expected the tokenizer of both"):
        distillation(student, labelled("qwen2"))


def test_counting_in_a_loaders_worker_is_refused():
    distillation = Distillation(build("llama"), [PLAIN])

    def collate(rows):
        distillation.counts([labelled("llama")])

    loader = torch.utils.data.DataLoader([0], collate_fn=collate, num_workers=1)
    with pytest.raises(fastkd.InputError, match="called in a worker"):
        next(iter(loader))


def test_prompt_tuning_is_refused():
    peft = pytest.importorskip("peft")
    config = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    tuned = peft.get_peft_model(build("llama"), peft.PromptTuningConfig(**config))
    with pytest.raises(fastkd.InputError, match="in place of prompt tuning"):
        Distillation(tuned, [PLAIN])(tuned, labelled("llama"))
    prefixed = peft.get_peft_model(build("llama"), peft.PrefixTuningConfig(**config))
    loss, _ = Distillation(prefixed, [PLAIN])(prefixed, labelled("llama"))
    torch.testing.assert_close(loss, prefixed(**labelled("llama")).loss)
