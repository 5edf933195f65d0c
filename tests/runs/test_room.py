from dataclasses import replace
from types import SimpleNamespace

import pytest

from fastkd.config.tree import CMLMConfig, ModelConfig
from fastkd.errors import InputError
from fastkd.nn.build import build_model
from fastkd.runs.room import check_room, weight_bytes

ROLES = {"size": 50, "pad_id": 0, "bos_id": 1, "eos_id": 2, "mask_id": 4}
TOKENIZERS = SimpleNamespace(source=SimpleNamespace(**ROLES), target=SimpleNamespace(**ROLES))
SMALL = ModelConfig(encoder_layers=3, decoder_layers=5, width=16, ffn=24, heads=2)


@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, norm="post", share_embeddings=False, tie_output=False)]
    + [
        replace(SMALL, kind="cmlm", cmlm=CMLMConfig(causal_attention=causal))
        for causal in (False, True)
    ],
)
def test_counts_what_is_built(config):
    model = build_model(config, TOKENIZERS)
    tensors = [*model.parameters(), *model.buffers()]
    assert weight_bytes(config, TOKENIZERS) == sum(t.numel() * t.element_size() for t in tensors)


def test_refuses_what_does_not_fit():
    check_room(SMALL, TOKENIZERS, "model", copies=4)
    with pytest.raises(InputError, match=r"model: expected a model that fits the .* GiB"):
        check_room(replace(SMALL, width=2**16, ffn=2**16, encoder_layers=9), TOKENIZERS, "model", 4)


def test_knows_the_limit_of_a_container(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("fastkd.runs.room._LIMITS", (tmp_path / "none", limit))
    limit.write_text("max\n")
    check_room(SMALL, TOKENIZERS, "model")
    limit.write_text(f"{weight_bytes(SMALL, TOKENIZERS) - 1}\n")
    with pytest.raises(InputError, match="model: expected a model that fits"):
        check_room(SMALL, TOKENIZERS, "model")
