"""Models of any class of Transformers, built small and random from the defaults of their config."""

import contextlib
import inspect
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from benchmarks.models.pictures import with_pictures

VOCABULARY = 64
LARGEST = 100_000_000  # parameters of what counts as small

TASKS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "vision": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
}


class TooLarge(ValueError):
    """A model whose configuration does not become small."""


_SMALL: dict[int | float, tuple[str, ...]] = {
    VOCABULARY: (
        "vocab_size",
        "vocab_size_per_layer_input",
        "decoder_vocab_size",
        "n_words",
        "entity_vocab_size",
        "encoder_hash_byte_group_vocab",
    ),
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
        "ffn_embed_dim",
        "emb_dim",
        "d_latents",
        "entity_emb_size",
        "embed_dim",
        "out_hidden_size",
        "projection_dim",
        "projector_hidden_size",
        "mlp_dim",
        "expert_ffn_hidden_size",
        "image_size",
        "text_hidden_size",
        "base_channels",
        "resolution",
        "audio_hidden_size",
    ),
    16: (
        "kv_lora_rank",
        "q_lora_rank",
        "d_kv",
        "lru_width",
        "state_size",
        "num_mel_bins",
        "mamba_d_head",
        "mamba_d_state",
        "mamba_head_dim",
        "ssm_state_size",
        "chunk_size",
        "mamba_chunk_size",
        "index_head_dim",
    ),
    8: (
        "head_dim",
        "qk_nope_head_dim",
        "v_head_dim",
        "qk_rope_head_dim",
        "attention_head_dim",
        "time_step_rank",
        "mamba_dt_rank",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "patch_size",
    ),
    4: (
        "rotary_dim",
        "mamba_n_heads",
        "mamba_num_heads",
        "linear_num_value_heads",
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
        "mm_tokens_per_image",
        "num_query_tokens",
        "latent_query_num",
    ),
    2: (
        "num_hidden_layers",
        "linear_num_key_heads",
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
        "depth",
        "num_self_attends_per_block",
    ),
    1: (
        "n_group",
        "topk_group",
        "n_shared_experts",
        "bos_token_id",
        "decoder_start_token_id",
        "mamba_n_groups",
        "n_groups",
        "first_k_dense_replace",
    ),
    0: ("pad_token_id", "num_kv_shared_layers", "num_nextn_predict_layers"),
}
# Of models that any encoder and decoder make.
_PAIRS = {
    "EncoderDecoderModel": ("BertConfig", "BertConfig"),
    "SpeechEncoderDecoderModel": ("Wav2Vec2Config", "BertConfig"),
    "VisionEncoderDecoderModel": ("ViTConfig", "BertConfig"),
}
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
# What some classes need besides, tried in turn, where their configuration has it.
NEEDS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"head_dim": 8, "d_kv": 8},
    {"head_dim": 8, "num_key_value_heads": 4},
    {"num_key_value_heads": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "head_dim": 4},
    {"hidden_size_per_layer_input": 0, "num_key_value_heads": 4},
    {"attention_types": [[["global", "local"], 1]]},
    {"num_hidden_layers": 4, "num_layers": 4},
    {"head_dim": 16},
    {"num_experts_per_tok": 1},
    {"default_language": "en_XX"},
    {"is_decoder": True, "axial_pos_embds": False},
    {"sliding_window": 8},
    {"video_temporal_patch_size": 2},
    {"top_k_experts": 2, "num_experts": 4, "moe_intermediate_size": 32},
    {"mrope_section": [2, 1, 1], "num_key_value_heads": 4},
    {"mrope_section": [1, 1, 0], "num_key_value_heads": 4},
    {"mrope_section": [4, 2, 2], "head_dim": 16},
    {"mlp_layer_types": ["dense", "sparse"]},
    {"indexer_budget": 8, "indexer_compress_ratio": 4, "indexer_n_heads": 2}
    | {"indexer_kv_heads": 1, "indexer_head_dim": 8},
    {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _ROPE)},
    {"attn_layer_period": 2, "attn_layer_offset": 1, "layer_types": ["mamba", "attention"]},
    {"attn_layer_indices": [1], "mamba_d_ssm": 64, "mrope_section": [1, 1, 2]},
    {"layer_types": ["conv", "full_attention"]},
    {"axial_pos_embds": False, "is_decoder": False},
)
# Ids of a picture and what stands around it, which text does not have.
_SPECIAL = {
    "image_token_id": VOCABULARY - 1,
    "image_token_index": VOCABULARY - 1,
    "video_token_id": VOCABULARY - 2,
    "video_token_index": VOCABULARY - 2,
    "vision_start_token_id": VOCABULARY - 3,
    "vision_end_token_id": VOCABULARY - 4,
}
_IMAGE_WORDS = {
    "<image>": VOCABULARY - 1,
    "<|extra_200|>": VOCABULARY - 5,
    **{f"IMGIMG{letter}Z": 40 + n for n, letter in enumerate("ABCD")},
    **{f"<|visual token {n:06d}|>": 40 + n for n in range(4)},
}
_SETTINGS = _SPECIAL | {name: value for value, names in _SMALL.items() for name in names}


def classes() -> list[tuple[str, str]]:
    """(task, name of the class) of each model that an auto class knows, by task and name."""
    found = set()
    for task, mapping in TASKS.items():
        for names in getattr(modeling_auto, mapping).values():
            for name in (names,) if isinstance(names, str) else names:
                found.add((task, name))
    return sorted(found)


def config_of(config_class: Any, defaults: Any = None, **more: Any) -> Any:
    """Its defaults, with every size that has a usual name made small, in parts as well.

    more: settings that hold wherever a part has them
    """
    defaults = config_class() if defaults is None else defaults
    known = defaults.to_dict()
    changes: dict[str, Any] = {}
    for name, value in known.items():
        unset = value is None and name == "head_dim"
        if name in _SETTINGS and isinstance(value, int | float | None) and not unset:
            changes[name] = _SETTINGS[name]
    if "eos_token_id" in known:
        changes["eos_token_id"] = 2
    if isinstance(known.get("vision_feature_layer"), list):
        changes["vision_feature_layer"] = [1, 0][: len(known["vision_feature_layer"])]
    rope = known.get("rope_parameters")
    if isinstance(rope, dict) and ("mrope_section" in rope or "mrope_section" in more):
        section = more.get("mrope_section", [2, 1, 1])  # of half a head
        changes["rope_parameters"] = {**rope, "mrope_section": section}
    for name, size in {"embed_dim": 32, "num_heads": 4, "num_groups": 4}.items():
        if isinstance(known.get(name), list):  # one a stage
            changes[name] = [size] * len(known[name])
    if "vocabulary_map" in known:
        changes["vocabulary_map"] = _IMAGE_WORDS
    changes |= {name: value for name, value in more.items() if name in known}
    for name in getattr(config_class, "sub_configs", {}):
        part = getattr(defaults, name, None)
        if isinstance(part, PretrainedConfig):
            changes[name] = config_of(type(part), part, **more)
    layers = changes.get("num_hidden_layers")
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = getattr(defaults, name, None)
        own_name = getattr(config_class, "attribute_map", {}).get(name, name)
        computed = isinstance(getattr(config_class, own_name, None), property)
        if layers and isinstance(kinds, list) and not computed and name not in changes:
            # One of each kind, where there are as many as layers.
            changes[name] = (list(dict.fromkeys(kinds)) * layers)[:layers]
    parts = {k: v.to_dict() for k, v in changes.items() if isinstance(v, PretrainedConfig)}
    with contextlib.suppress(AttributeError, TypeError):
        config = config_class(**changes)
        if all(isinstance(getattr(config, part, None), PretrainedConfig) for part in parts):
            return config
    return config_class(**changes | parts)  # older ones take their parts as mappings


def build(name: str, **more: Any) -> Any:
    """A small model of the class, far from uniform predictions, in evaluation mode.

    Raises TooLarge where its defaults do not become small.
    """
    model_class = getattr(transformers, name)
    if name in _PAIRS:
        parts = [config_of(getattr(transformers, part), **more) for part in _PAIRS[name]]
        config = model_class.config_class.from_encoder_decoder_configs(*parts)
    else:
        config = config_of(model_class.config_class, **more)
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 1
    if config.is_encoder_decoder and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    if not hasattr(config, "pad_token_id"):  # older ones leave it to their parts
        config.pad_token_id = 0
    if hasattr(config, "vision_config") and not hasattr(config, "vision_start_token_id"):
        config.vision_start_token_id = _SPECIAL["vision_start_token_id"]
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config).parameters())
    if size > LARGEST:
        raise TooLarge(f"{size} parameters")
    torch.manual_seed(0)
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        parameter.data.add_(0.05 * noise.to(parameter.dtype))
    return model


def inputs_of(task: str, model: Any) -> dict[str, torch.Tensor]:
    """A batch of two rows, the second padded, with labels: of text where a model reads text."""
    generator = torch.Generator().manual_seed(2)
    words = VOCABULARY - (8 if task == "vision" else 0)
    ids = torch.randint(3, words, (2, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    if not model.config.is_encoder_decoder:
        labels = ids.masked_fill(mask == 0, -100)
        text = {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}
        return (with_pictures(model, text) if task == "vision" else None) or text
    labels = torch.randint(3, VOCABULARY, (2, 8), generator=generator)
    labels[1, 6:] = -100
    known = inspect.signature(model.forward).parameters
    reads = "flattened_patches" if "flattened_patches" in known else model.main_input_name
    if reads == "input_features":
        return {reads: _sound(model, generator), "labels": labels}
    if reads == "flattened_patches":
        width = 2 + model.config.vision_config.patch_embed_hidden_size
        return {reads: torch.rand(2, 16, width, generator=generator), "labels": labels}
    if reads in ("input_values", "inputs"):
        return {"input_values": torch.randn(2, 16_000, generator=generator), "labels": labels}
    if reads == "pixel_values":
        size = getattr(getattr(model.config, "encoder", model.config), "image_size", 32)
        return {reads: torch.randn(2, 3, size, size, generator=generator), "labels": labels}
    text = {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}
    if "FSMT" in type(model).__name__:  # which takes what it reads for what it writes
        return text | {"decoder_input_ids": labels.roll(1, 1).clamp(min=0)}
    return (with_pictures(model, text) if task == "vision" else None) or text


def _sound(model: Any, generator: torch.Generator) -> torch.Tensor:
    encoder = getattr(model.config, "encoder_config", model.config)
    names = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "d_model")
    bins = next(found for name in names if (found := getattr(encoder, name, None)))
    time = 2 * getattr(encoder, "max_source_positions", 64)
    sound = torch.randn(2, time, bins, generator=generator)
    return sound.mT.contiguous() if "Whisper" in type(model).__name__ else sound
