"""A run's model as a folder that CTranslate2 loads, for deployment."""

from pathlib import Path
from typing import Any

from torch import Tensor

from fastkd.data.tokenizer import Tokenizer
from fastkd.errors import InputError
from fastkd.files import replaced_folder
from fastkd.nn.transformer import Transformer
from fastkd.runs.folder import RunFolder, Weights

_FILES = (
    "model.bin",
    "config.json",
    "source.spm",
    "target.spm",
    *(f"{side}_vocabulary.json" for side in ("source", "target", "shared")),
)


def export_ctranslate2(
    run: RunFolder,
    folder: Path,
    checkpoint: str = "best",
    quantization: str | None = None,
    weights: Weights | None = None,
) -> None:
    """Writes the model, and its sentencepiece models as `source.spm` and `target.spm`.

    weights: those of the checkpoint, where they are read already

    A `ctranslate2.Translator` takes pieces of the one, adds the end of sentence itself, and gives
    pieces of the other. <pad>, <s> and <mask> are not barred, as that would move all scores a
    little; `suppress_sequences` does it where a badly trained model writes them.

    Raises InputError for a model that is not autoregressive, and without CTranslate2.
    """
    try:
        from ctranslate2.converters.converter import Converter
    except ImportError:
        raise InputError(
            "--to ctranslate2: needs the package ctranslate2: pip install 'fastkd[ctranslate2]'"
        ) from None
    if run.config.model.kind != "transformer":
        raise InputError(f"model.kind: {run.config.model.kind} has no layout in CTranslate2")
    model, tokenizers = run.load_model(checkpoint, weights=weights), run.tokenizers

    class Ours(Converter):  # type: ignore[misc]
        def _load(self) -> Any:
            return _specification(model, tokenizers.source, tokenizers.target)

    with replaced_folder(folder, _FILES) as new:
        Ours().convert(str(new), quantization=quantization, force=True)
        (new / "source.spm").write_bytes(tokenizers.source.model)
        (new / "target.spm").write_bytes(tokenizers.target.model)


def _specification(model: Transformer, source: Tokenizer, target: Tokenizer) -> Any:
    from ctranslate2.specs import common_spec, transformer_spec

    config = model.config
    activations = {
        "relu": common_spec.Activation.RELU,
        "swish": common_spec.Activation.SWISH,
    }
    spec = transformer_spec.TransformerSpec.from_config(
        (config.encoder_layers, config.decoder_layers),
        config.heads,
        pre_norm=config.norm == "pre",
        activation=activations[config.activation],
    )
    for side, module in ((spec.encoder, model.encoder), (spec.decoder, model.decoder)):
        side.scale_embeddings = True
        side.position_encodings.encodings = _array(model.positions)
        if config.norm == "pre":
            _norm(side.layer_norm, module.norm)
    spec.encoder.embeddings[0].weight = _array(model.source_embedding.weight)
    spec.decoder.embeddings.weight = _array(model._target_embedding.weight)
    spec.decoder.projection.weight = _array(model.output_weight)
    if model.output_bias is not None:
        spec.decoder.projection.bias = _array(model.output_bias)
    for into, layer in zip(spec.encoder.layer, model.encoder.layers, strict=True):
        _attention(into.self_attention, layer.attention, layer.attention_norm)
        _feed_forward(into.ffn, layer)
    for into, layer in zip(spec.decoder.layer, model.decoder.layers, strict=True):
        _attention(into.self_attention, layer.self_attention, layer.self_attention_norm)
        cross: Any = layer.cross_attention
        for linear, part in zip(
            into.attention.linear, (cross.query, cross.key_value, cross.output), strict=True
        ):
            _linear(linear, part)
        _norm(into.attention.layer_norm, layer.cross_attention_norm)
        _feed_forward(into.ffn, layer)
    for register, tokenizer in (
        (spec.register_source_vocabulary, source),
        (spec.register_target_vocabulary, target),
    ):
        register([tokenizer.piece(index) for index in range(tokenizer.size)])
    spec.config.unk_token = source.piece(source.unk_id)
    spec.config.bos_token = target.piece(target.bos_id)
    spec.config.eos_token = target.piece(target.eos_id)
    spec.config.decoder_start_token = target.piece(getattr(target, f"{config.decoder_start}_id"))
    spec.config.add_source_eos = True
    spec.config.layer_norm_epsilon = 1e-5
    return spec


def _attention(into: Any, attention: Any, norm: Any) -> None:
    _linear(into.linear[0], attention.qkv)
    _linear(into.linear[1], attention.output)
    _norm(into.layer_norm, norm)


def _feed_forward(into: Any, layer: Any) -> None:
    _linear(into.linear_0, layer.feed_forward.expand)
    _linear(into.linear_1, layer.feed_forward.contract)
    _norm(into.layer_norm, layer.feed_forward_norm)


def _linear(into: Any, linear: Any) -> None:
    into.weight, into.bias = _array(linear.weight), _array(linear.bias)


def _norm(into: Any, norm: Any) -> None:
    into.gamma, into.beta = _array(norm.weight), _array(norm.bias)


def _array(tensor: Tensor) -> Any:
    return tensor.detach().float().contiguous().numpy()
