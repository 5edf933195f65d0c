"""The memory of a step of Transformers models: what is predicted is what is measured."""

import json

import pytest
import torch
import transformers

from fastkd import memory
from fastkd.__main__ import main
from fastkd.errors import InputError
from fastkd.losses import A2D, CrossEntropy, HiddenStates, TieKD, WordKD
from fastkd.memory.pair.models import maker_of

SHARED = {"vocab_size": 500, "pad_token_id": 0, "decoder_start_token_id": 0}
SIZES = {
    "marian": {
        "d_model": 48,
        **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 96 for side in ("encoder", "decoder")},
        "max_position_embeddings": 64,
    },
    "llama": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "t5": {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4},
}
TOKENS = [CrossEntropy(weight=0.5), WordKD(weight=0.5)]


def maker(family, change=lambda model: model, **more):
    def make():
        config = transformers.AutoConfig.for_model(family, **{**SHARED, **SIZES[family], **more})
        one = transformers.AutoModelForSeq2SeqLM
        auto = one if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        return change(auto.from_config(config))

    return make


def checkpointing(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def adapted(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


def pair(family, losses, change=lambda model: model, **more):
    taught = maker(family, num_hidden_layers=3) if family == "llama" else maker(family)
    return memory.Pair(maker(family, change), losses, taught, batch=4, length=24, **more)


def eight_bit(parameters):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    return bitsandbytes.optim.AdamW8bit(parameters)


CASES = {
    "encoder-decoder": ("marian", [*TOKENS, A2D()], {}),
    "lengths that differ": ("marian", TOKENS, {"target_length": 9}),
    "decoder": ("llama", [*TOKENS, A2D(), HiddenStates(encoder=False)], {}),
    "tied and scaled": ("t5", [CrossEntropy(weight=0.5), TieKD(iterations=1)], {}),
    "checkpointing": ("marian", [*TOKENS, A2D()], {"change": checkpointing}),
    "adapters": ("llama", TOKENS, {"change": adapted}),
    "8-bit": ("llama", TOKENS, {"optimizer": eight_bit}),
    "adafactor": ("marian", TOKENS, {"optimizer": "adafactor"}),
    "bfloat16": ("marian", [*TOKENS, A2D()], {"precision": "bfloat16"}),
    "accumulation": ("llama", TOKENS, {"accumulation": 2}),
    "sgd": ("llama", TOKENS, {"optimizer": torch.optim.SGD}),
}


QUICK = ("encoder-decoder", "decoder", "adapters", "8-bit")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_prediction_is_the_measured_step(name):
    family, losses, more = CASES[name]
    asked = pair(family, losses, **more)
    measured, predicted = asked.measured(), asked.predicted()
    assert predicted.held == measured.held
    assert predicted.peak == pytest.approx(measured.peak, rel=0.02)
    assert sum(predicted.activations.values()) == pytest.approx(
        sum(measured.activations.values()), rel=0.02
    )
    assert [phase for _, phase in measured.phases][-3:] == ["forward", "backward", "optimizer"]


BERT = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "architectures": ["BertForMaskedLM"],
}
SPEECH = {
    "d_model": 32,
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WHISPER = {"num_mel_bins": 16, "max_source_positions": 40, "max_target_positions": 64}
MORE = {
    "masked": ("bert", BERT),
    "sound, of one length": ("whisper", {**SPEECH, **WHISPER}),
    "sound, of any": (
        "speech_to_text",
        {**SPEECH, "input_feat_per_channel": 8, "conv_channels": 16},
    ),
}


@pytest.mark.parametrize(
    "name", [n if n == "masked" else pytest.param(n, marks=pytest.mark.slow) for n in MORE]
)
def test_a_pair_of_other_models_by_their_configurations(name):
    """Profiled directly: predicted and measured, with the losses where none are given."""
    family, sizes = MORE[name]
    config = transformers.AutoConfig.for_model(family, **SHARED, **sizes)
    found = memory.profile(memory.Pair(config, teacher=config, batch=3, length=24))
    assert abs(found.apart) < 0.02
    assert found.measured.held == found.predicted.held
    assert {"parameters", "teacher", "optimizer"} <= set(found.measured.held)
    assert "predicted" in str(found) and "measured" in str(found)


def test_what_tells_a_model(tmp_path):
    """A function, a folder, a configuration, or the model, which stays as it is."""
    config = transformers.AutoConfig.for_model("llama", **SHARED, **SIZES["llama"])
    config.save_pretrained(tmp_path)
    model = maker("llama")().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = (maker("llama"), str(tmp_path), tmp_path / "config.json", config, model)
    peaks = {memory.Pair(each, teacher=each, batch=2, length=8).predicted().peak for each in given}
    assert len(peaks) == 1
    assert not model.training and model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(InputError, match="student: expected a function"):
        memory.Pair(3).predicted()


@pytest.mark.parametrize(
    ("named", "made"),
    [
        ("BertForMaskedLM", "BertForMaskedLM"),
        ("BertForSequenceClassification", "BertLMHeadModel"),  # which predicts no words
        ("NotYetKnownForMaskedLM", "BertLMHeadModel"),
    ],
)
def test_the_class_is_the_one_that_is_named(named, made):
    config = transformers.BertConfig(**SHARED, **{**BERT, "architectures": [named]})
    assert type(maker_of("student", config)()).__name__ == made


def test_memory_by_formula():
    found = pair("llama", TOKENS, optimizer=lambda p: torch.optim.Adam(p, foreach=False))
    held = found.predicted().held
    parameters = sum(p.numel() for p in found.student().parameters()) * 4
    steps = 4 * len(list(found.student().parameters()))
    assert held["optimizer"] == 2 * parameters + steps
    assert parameters <= held["parameters"] < 1.01 * parameters


@pytest.mark.slow
def test_checkpointing_and_adapters_take_less():
    plain = pair("llama", TOKENS).predicted()
    less = pair("llama", TOKENS, checkpointing).predicted()
    assert sum(less.activations.values()) < 0.7 * sum(plain.activations.values())
    assert pair("llama", TOKENS, adapted).predicted().held["optimizer"] < (
        0.3 * plain.held["optimizer"]
    )


@pytest.mark.slow
def test_the_largest_batch_is_the_last_that_fits():
    found = pair("llama", TOKENS)
    capacity = 8 * 2**20
    largest = found.largest(capacity, "cpu")

    def peak(batch):
        return memory.Pair(
            found.student, found.losses, found.teacher, batch=batch, length=24
        ).predicted()

    assert peak(largest).peak <= capacity < peak(int(largest * 1.02) + 1).peak


def test_a_gpu_that_is_not_there():
    found = pair("marian", [*TOKENS, A2D()], precision="bfloat16").predicted("cuda")
    assert found.allocator["device in use"] > found.allocator["peak reserved"] > found.peak


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"batch": 0}, "batch"),
        ({"precision": "float16"}, "precision"),
        ({"optimizer": "adamw_9bit"}, "optim"),
    ],
)
def test_what_cannot_be_is_one_line(change, complaint):
    with pytest.raises(InputError, match=complaint):
        memory.Pair(maker("llama"), [CrossEntropy()], **{"length": 8, **change}).predicted()


@pytest.fixture
def student(tmp_path):
    config = transformers.AutoConfig.for_model("marian", **SHARED, **SIZES["marian"])
    config.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.mark.slow
def test_the_command_line_measures_and_predicts(student, tmp_path, capsys):
    file = tmp_path / "pair.yaml"
    file.write_text(json.dumps({"student": str(student), "teacher": str(student), "batch": 2}))
    assert main(["memory", str(file), "length=12", "--device", "cpu", "--no-largest"]) == 0
    printed = capsys.readouterr().out
    assert "2 sentences of 12 and 12 pieces. Measured; the prediction was" in printed
    assert "teacher" in printed
    plot = tmp_path / "timeline.svg"
    arguments = ["memory", str(student), "batch=2", "--predict", "1GiB", "--plot", str(plot)]
    assert main(arguments) == 0
    assert "Largest batch predicted to fit into 1.00 GiB: batch = " in capsys.readouterr().out
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize("largest", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_command_line_predicts_one_of_several_devices(tmp_path, capsys, largest):
    config = transformers.AutoConfig.for_model("llama", **SHARED, **SIZES["llama"])
    config.save_pretrained(tmp_path / "student")
    arguments = ["memory", str(tmp_path / "student"), f"teacher={tmp_path / 'student'}"]
    arguments += ["batch=2", "length=12", "--predict", "1GiB", "--sharding", "fully_shard"]
    arguments += ["--processes", "8", *([] if largest else ["--no-largest"])]
    assert main(arguments) == 0
    printed, told = capsys.readouterr()
    assert "Predicted, of one of 8 devices with sharding fully_shard." in printed
    assert ("Largest batch predicted to fit into 1.00 GiB: batch = " in printed) == largest
    assert "DISTRIBUTED" not in told  # nothing is said of processes that are pretended


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["batchh=3"], "batchh: unknown key; did you mean batch?"),
        (["batch=2", "--plot", "timeline.text"], "--plot"),
        (["--batch-tokens", "5"], "--batch-tokens"),
        (["teacher=nowhere"], "teacher: nowhere"),
        (["optim=adamw_9bit", "--predict", "1GiB"], "optim"),
    ],
)
def test_wrong_input_of_the_command_is_one_line(student, arguments, complaint, capsys):
    assert main(["memory", str(student), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert "\n" not in error
