"""Thirty classes of Transformers of differing kind: each one's own loss is what is computed."""

import csv
import os
import signal
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", minversion="5.1")

import benchmarks.models.__main__ as sweep
from benchmarks.models.__main__ import CLOSE, judged
from benchmarks.models.table import table
from benchmarks.models.tiny import TASKS, build, config_of, inputs_of
from tests.integrations.versions import skip_refused

# Decoders, with what each is here for.
CAUSAL = [
    "BertLMHeadModel",  # shifts of its own
    "BloomForCausalLM",  # biases of distance
    "CTRLLMHeadModel",  # a head with a bias
    "Cohere2ForCausalLM",  # a scale of the logits
    "DeepseekV3ForCausalLM",  # latent attention, experts
    "FalconForCausalLM",  # one key for all queries
    "GPT2LMHeadModel",  # no loss type
    "GPTBigCodeForCausalLM",
    "Gemma2ForCausalLM",  # a soft cap
    "Gemma3ForCausalLM",  # windows
    "GptOssForCausalLM",  # sinks
    "GraniteForCausalLM",  # a divided head
    "LlamaForCausalLM",
    "MambaForCausalLM",  # no attention
    "MixtralForCausalLM",  # experts
    "OPTForCausalLM",
    "Qwen3MoeForCausalLM",
    "RwkvForCausalLM",
]
MASKED = [
    "AlbertForMaskedLM",  # shared layers
    "BertForMaskedLM",
    "DebertaV2ForMaskedLM",
    "ModernBertForMaskedLM",  # unpadded
    "RobertaForMaskedLM",
]
SEQ2SEQ = [
    "BartForConditionalGeneration",
    "EncoderDecoderModel",  # a mask of what the decoder reads
    "LEDForConditionalGeneration",
    "M2M100ForConditionalGeneration",
    "MBartForConditionalGeneration",  # starts with the label at the end
    "MarianMTModel",  # an offset of the logits
    "T5ForConditionalGeneration",  # scaled states
]
SPEECH = ["Speech2TextForConditionalGeneration", "WhisperForConditionalGeneration"]
VISION = [
    "BlipForConditionalGeneration",  # a part of it tells the head
    "GitForCausalLM",  # images before the words
    "IdeficsForVisionText2Text",  # a head of a class of its own
    "LlavaForConditionalGeneration",  # an image among the words
    "Qwen2VLForConditionalGeneration",  # patches of all images in one tensor
    "VisionEncoderDecoderModel",
]
CLASSES = [
    *(("causal", name) for name in CAUSAL),
    *(("masked", name) for name in MASKED),
    *(("seq2seq", name) for name in SEQ2SEQ),
    *(("speech", name) for name in SPEECH),
    *(("vision", name) for name in VISION),
]
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "models"


@pytest.mark.parametrize(("task", "name"), CLASSES)
def test_the_models_own_loss(task, name):
    if not hasattr(transformers, name):
        pytest.skip(f"Transformers {transformers.__version__} has no {name}")
    skip_refused(name)
    row = judged(task, name)
    assert row["outcome"] == "equal", row
    assert row["line"] == ""  # no image was left out


def test_another_loss_is_told(monkeypatch):
    """What the sweep calls equal is no matter of its own bound."""
    model = build("LlamaForCausalLM")
    loss = float(model(**inputs_of("causal", model)).loss)
    assert abs(1.001 * loss - loss) > CLOSE * (1 + loss)

    class Doubled(transformers.LlamaForCausalLM):
        def forward(self, *arguments, labels=None, **inputs):
            output = super().forward(*arguments, labels=labels, **inputs)
            if labels is not None:
                output.loss = 2 * output.loss
            return output

    monkeypatch.setattr(transformers, "LlamaForCausalLM", Doubled)
    row = judged("causal", "LlamaForCausalLM")
    assert row["outcome"] == "refused" and "its own loss" in row["line"]


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda: os._exit(3), "its process ended (3)"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "its process ended (-15)"),
        (lambda: os.kill(os.getpid(), signal.SIGXCPU), "no answer within 40 s"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "no answer within 40 s"),
    ],
)
def test_a_crash_is_told_from_a_limit(monkeypatch, end, told):
    monkeypatch.setattr(sweep, "judged", lambda task, name: end())
    row = sweep.apart("causal", "LlamaForCausalLM")
    assert (row["outcome"], row["line"]) == ("not built", told)


def test_small_configurations_keep_their_parts():
    config = config_of(transformers.LlavaConfig)
    assert config.text_config.hidden_size == 32 and config.text_config.vocab_size == 64
    assert config.vision_config.hidden_size == 32 and config.vision_config.num_hidden_layers == 2


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.csv")), ids=lambda file: file.stem)
def test_no_class_is_computed_differently(file):
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert {row["outcome"] for row in rows} <= {"equal", "refused", "not built", "no own loss"}
    assert {row["task"] for row in rows} == set(TASKS)
    assert all(row["line"] for row in rows if row["outcome"] == "refused")


def test_the_table_is_that_of_the_files():
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == table(RESULTS)
