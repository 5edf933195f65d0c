"""Models of any class of Transformers, built small and random from the defaults of their config."""

from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

VOCABULARY = 64
LARGEST = 5_000_000  # parameters of what counts as small

TASKS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
}
_SMALL: dict[int | float, tuple[str, ...]] = {
    VOCABULARY: ("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"),
    128: (
        "max_position_embeddings",
        "n_positions",
        "max_source_positions",
        "n_ctx",
        "max_target_positions",
        "max_seq_len",
        "max_length",
    ),
    32: (
        "hidden_size",
        "d_model",
        "n_embd",
        "intermediate_size",
        "d_ff",
        "n_inner",
        "ffn_dim",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "moe_intermediate_size",
        "embedding_size",
        "shared_expert_intermediate_size",
        "word_embed_proj_dim",
        "dim",
        "hidden_dim",
        "inner_dim",
        "decoder_hidden_size",
        "ffn_hidden_size",
        "moe_shared_expert_intermediate_size",
    ),
    16: ("kv_lora_rank", "q_lora_rank", "d_kv", "lru_width", "state_size", "num_mel_bins"),
    8: ("head_dim", "qk_nope_head_dim", "v_head_dim", "qk_rope_head_dim", "attention_head_dim"),
    4: (
        "num_attention_heads",
        "n_head",
        "num_heads",
        "n_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "moe_num_experts",
        "num_encoder_attention_heads",
        "num_decoder_attention_heads",
    ),
    2: (
        "num_hidden_layers",
        "n_layer",
        "num_layers",
        "n_layers",
        "encoder_layers",
        "decoder_layers",
        "num_key_value_heads",
        "num_experts_per_tok",
        "num_decoder_layers",
        "encoder_num_hidden_layers",
        "decoder_num_hidden_layers",
        "moe_k",
        "moe_topk",
        "num_encoder_layers",
        "encoder_num_layers",
    ),
    1: ("n_group", "topk_group", "n_shared_experts", "bos_token_id", "decoder_start_token_id"),
    0: ("pad_token_id",),
}
_SETTINGS = {name: value for value, names in _SMALL.items() for name in names}


def classes() -> list[tuple[str, str]]:
    """(task, name of the class) of each model that an auto class knows, by task and name."""
    found = set()
    for task, mapping in TASKS.items():
        for names in getattr(modeling_auto, mapping).values():
            for name in (names,) if isinstance(names, str) else names:
                found.add((task, name))
    return sorted(found)


def config_of(config_class: Any, **more: Any) -> Any:
    """Its defaults, with every size that has a usual name made small, in parts as well."""
    defaults = config_class()
    changes: dict[str, Any] = {}
    for name, value in defaults.to_dict().items():
        unset = value is None and name == "head_dim"
        if name in _SETTINGS and isinstance(value, int | float | None) and not unset:
            changes[name] = _SETTINGS[name]
    if "eos_token_id" in defaults.to_dict():
        changes["eos_token_id"] = 2
    for name, part in getattr(config_class, "sub_configs", {}).items():
        if hasattr(part, "to_dict") and part.__name__ != "AutoConfig":
            changes[name] = config_of(part).to_dict()
    layers = changes.get("num_hidden_layers")
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = getattr(defaults, name, None)
        if layers and isinstance(kinds, list):
            # One of each kind, where there are as many as layers.
            changes[name] = (list(dict.fromkeys(kinds)) * layers)[:layers]
    return config_class(**{**changes, **more})


def build(name: str, **more: Any) -> Any:
    """A small model of the class, far from uniform predictions, in evaluation mode.

    Raises ValueError where its defaults do not become small.
    """
    model_class = getattr(transformers, name)
    config = config_of(model_class.config_class, **more)
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(0)
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        parameter.data.add_(0.05 * noise.to(parameter.dtype))
    return model


def inputs_of(task: str, model: Any) -> dict[str, torch.Tensor]:
    """A batch of two rows, the second padded, with labels."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=generator)
    mask = torch.ones_like(ids)
    if task not in ("causal", "masked"):
        labels = torch.randint(3, VOCABULARY, (2, 8), generator=generator)
        labels[1, 6:] = -100
    else:
        labels = ids.clone()
    if task == "speech":
        encoder = getattr(model.config, "encoder_config", model.config)
        bins = getattr(encoder, "num_mel_bins", None) or encoder.input_feat_per_channel
        time = 2 * getattr(encoder, "max_source_positions", 64)
        sound = torch.randn(2, time, bins, generator=generator)
        whisper = "Whisper" in type(model).__name__
        return {"input_features": sound.mT.contiguous() if whisper else sound, "labels": labels}
    mask[1, 9:] = 0
    if task in ("causal", "masked"):
        labels[mask == 0] = -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}
