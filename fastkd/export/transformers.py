"""A run's model and tokenizer as a folder that Hugging Face Transformers loads.

Marian for `norm: post`, M2M100 for `norm: pre`: the two layouts whose positions, norms and
projections are ours.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastkd.config.tree import Config, ModelConfig
from fastkd.data.tokenizer import Tokenizer, Tokenizers
from fastkd.errors import InputError
from fastkd.export.layout import to_transformers
from fastkd.files import replaced_folder
from fastkd.runs.folder import RunFolder
from fastkd.tensors import write_tensors

EXPORTED = "fastkd.json"  # what `fastkd import` needs to make the same run again
_FILES = (
    EXPORTED,
    "sentencepiece.bpe.model",
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "source.spm",
    "target.spm",
    "vocab.json",
    "target_vocab.json",
)


def export_transformers(run: RunFolder, folder: Path, checkpoint: str = "best") -> None:
    """Writes config, generation settings, weights and tokenizer; the folder appears complete.

    Raises InputError for a model that neither layout holds, with the reason.
    """
    config, tokenizers = run.config, run.tokenizers
    refuse_what_does_not_fit(config.model)
    tensors = to_transformers(config.model, run.read_weights(checkpoint).tensors)
    with replaced_folder(folder, _FILES) as new:
        write_tensors(tensors, new / "model.safetensors", {"format": "pt"})
        _write(new / "config.json", model_config(config.model, tokenizers))
        _write(new / "generation_config.json", generation_config(config, tokenizers))
        _write_tokenizer(new, config, tokenizers)
        _write(new / EXPORTED, {"decoding": asdict(config.decoding)})


def refuse_what_does_not_fit(config: ModelConfig) -> None:
    """InputError for what neither Marian nor M2M100 can hold."""
    if config.kind != "transformer":
        raise InputError(f"model.kind: {config.kind} has no layout in Transformers")
    if not config.tie_output:
        raise InputError("model.tie_output: Transformers ties the output to the target embedding")
    if config.norm == "pre":
        if config.output_bias:
            raise InputError("model.output_bias: M2M100, the pre-norm layout, has none")
        if not config.share_embeddings:
            raise InputError("model.share_embeddings: M2M100, the pre-norm layout, shares them")
        if config.decoder_start == "pad":
            raise InputError("model.decoder_start: M2M100 gives pad no position; expected bos, eos")


def model_config(config: ModelConfig, tokenizers: Tokenizers) -> dict[str, Any]:
    """`config.json` of the Marian or M2M100 model."""
    target = tokenizers.target
    start = getattr(target, f"{config.decoder_start}_id")
    common = {
        "vocab_size": tokenizers.source.size,
        "d_model": config.width,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.ffn,
        "decoder_ffn_dim": config.ffn,
        "activation_function": config.activation,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "max_position_embeddings": config.max_positions,
        "scale_embedding": True,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "pad_token_id": target.pad_id,
        "bos_token_id": target.bos_id,
        "eos_token_id": target.eos_id,
        "decoder_start_token_id": start,
        "forced_eos_token_id": None,
        "dtype": "float32",
    }
    if config.norm == "pre":
        return {
            "model_type": "m2m_100",
            "architectures": ["M2M100ForConditionalGeneration"],
            **common,
        }
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        **common,
        "decoder_vocab_size": target.size,
        "share_encoder_decoder_embeddings": config.share_embeddings,
    }


def generation_config(config: Config, tokenizers: Tokenizers) -> dict[str, Any]:
    """`generation_config.json`: the run's beam search."""
    target = tokenizers.target
    banned = (*target.never_text, *(() if config.decoding.unknown else (target.unk_id,)))
    return {
        "num_beams": config.decoding.beam,
        "length_penalty": config.decoding.length_penalty,
        "early_stopping": True,  # a sentence is done with as many finished hypotheses as beams
        "max_length": min(512, config.model.max_positions),
        "pad_token_id": target.pad_id,
        "bos_token_id": target.bos_id,
        "eos_token_id": target.eos_id,
        "decoder_start_token_id": getattr(target, f"{config.model.decoder_start}_id"),
        "bad_words_ids": [[index] for index in banned],
        "renormalize_logits": True,  # the others share the probability of what is banned
    }


def _write_tokenizer(folder: Path, config: Config, tokenizers: Tokenizers) -> None:
    """A tokenizer class that reads sentencepiece models as they are, for both layouts.

    With one vocabulary that is Speech2Text's, with two Marian's; the latter takes >>xx<< at the
    beginning of a line for the code of a language. Special pieces in text are text.
    """
    (folder / "source.spm").write_bytes(tokenizers.source.model)
    (folder / "target.spm").write_bytes(tokenizers.target.model)
    _write(folder / "vocab.json", _pieces(tokenizers.source))
    settings = {
        "source_lang": config.data.source,
        "target_lang": config.data.target,
        "model_max_length": config.model.max_positions,
        "split_special_tokens": True,
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    if tokenizers.joint:
        (folder / "sentencepiece.bpe.model").write_bytes(tokenizers.source.model)
        settings |= {"tokenizer_class": "Speech2TextTokenizer", "bos_token": "<s>"}
    else:
        _write(folder / "target_vocab.json", _pieces(tokenizers.target))
        settings |= {"tokenizer_class": "MarianTokenizer", "separate_vocabs": True}
    _write(folder / "tokenizer_config.json", settings)


def _pieces(tokenizer: Tokenizer) -> dict[str, int]:
    return {tokenizer.piece(index): index for index in range(tokenizer.size)}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
