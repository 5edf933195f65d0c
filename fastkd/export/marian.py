"""A Marian checkpoint of Hugging Face Transformers, such as OPUS-MT's, or our own export, as a run.

Our exports, in Marian's layout or M2M100's, give the run that they were made of: its weights, ids
and sentencepiece models, and its search.

Of other checkpoints the vocabulary is reordered, the special ids before it. Both sides'
sentencepiece models keep their own way of cutting, over the same ids; pieces they write that the
vocabulary lacks, which Marian reads as <unk>, come after it with the embedding of <unk>, and are
never written. (A character that a side's own model does not know is <unk>, though Marian finds it
where the other side's lists it.)
"""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastkd.config.load import validate
from fastkd.data.sentencepieces import SPECIAL, pieces_of, read_model, with_pieces
from fastkd.data.tokenizer import Tokenizer, Tokenizers
from fastkd.errors import InputError
from fastkd.export.layout import from_transformers
from fastkd.export.transformers import EXPORTED
from fastkd.export.vocabulary import read_vocabulary
from fastkd.files import foreign_file, writable
from fastkd.nn.build import build_model
from fastkd.reading import open_file, read_text
from fastkd.runs.checkpoint import write_checkpoint
from fastkd.runs.folder import MODEL, RunFolder
from fastkd.runs.weights import load_weights
from fastkd.tensors import check_values, read_tensors

_ACTIVATIONS = {"relu": "relu", "swish": "swish", "silu": "swish"}
# What a run's model is, for which Marian has settings.
_EXPECTED = {
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
    "scale_embedding": True,
    "tie_word_embeddings": True,
}
_NORMS = {"marian": "post", "m2m_100": "pre"}  # by the layout
# What a run consists of before its first checkpoint.
_BEGUN = (".lock", "run.json", "config.yaml", "tokenizer/*.model", "*.partial", "*.partial/*")
_NEEDED = (
    "activation_function",
    "pad_token_id",
    "eos_token_id",
    "d_model",
    "max_position_embeddings",
    *(
        f"{side}_{size}"
        for side in ("encoder", "decoder")
        for size in ("layers", "attention_heads", "ffn_dim")
    ),
)
# Of generation: what changes a beam search into something that a run's is not.
_PLAIN = {
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "diversity_penalty": 0.0,
    "num_beam_groups": 1,
    "min_length": 0,
    "do_sample": False,
}


def import_marian(folder: Path, path: Path) -> RunFolder:
    """Writes the run `path`, for `translate` and as a teacher.

    Raises InputError for what a run cannot hold, with the reason, and where `path` holds anything
    but what an earlier call has left that was killed.
    """
    with writable(path):
        if path.exists() and (RunFolder(path).checkpoints() or foreign_file(path, _BEGUN)):
            raise InputError(f"{path}: is not empty; expected a folder for a new run")
    settings = _read(folder / "config.json")
    generation = settings | _read(folder / "generation_config.json", optional=True)
    names = _read(folder / "tokenizer_config.json", optional=True)
    model = _model(folder, settings)
    weights = _weights(folder)
    model["output_bias"] = "final_logits_bias" in weights
    source, target = _vocabularies(folder, model["share_embeddings"])
    if model["norm"] == "pre" and not (source.own and target.own):
        raise InputError(
            f"{folder}: an M2M100 checkpoint with a vocabulary that a run's tokenizer cannot have; "
            "expected one that `fastkd export` wrote"
        )
    joint = source.own and not (folder / "target_vocab.json").is_file()
    tokenizers = Tokenizers(source.tokenizer, source.tokenizer if joint else target.tokenizer)
    config = validate(
        {
            "run": str(path),
            "data": {
                "source": names.get("source_lang") or "source",
                "target": names.get("target_lang") or "target",
                **{split: str(path / "corpus" / split) for split in ("train", "dev")},
                "prepared": str(path / "prepared"),
            },
            "tokenizer": str(path),
            "model": model,
            "decoding": _decoding(folder, generation, target),
        },
        str(folder / "config.json"),
    )
    tensors = _reordered(from_transformers(config.model, weights), source, target)
    load_weights(build_model(config.model, tokenizers), tensors, folder)
    run = RunFolder.create(config, tokenizers)
    with contextlib.closing(run):
        run.record(config)
        run.checkpoint(1).parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(run.checkpoint(1), {MODEL: tensors}, {"update": 1})
    return run


def _model(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The configuration's `model`."""
    for key in _NEEDED:
        if key not in settings:
            raise InputError(f"{folder / 'config.json'}: {key}: required, but missing")
    kind = settings.get("model_type", "marian")
    if kind not in _NORMS:
        raise InputError(
            f"{folder / 'config.json'}: model_type: a run's model cannot hold {kind!r}; "
            f"expected {' or '.join(map(repr, _NORMS))}"
        )
    for key, expected in _EXPECTED.items():
        if settings.get(key, expected) != expected:
            raise InputError(
                f"{folder / 'config.json'}: {key}: a run's model cannot hold {settings[key]!r}; "
                f"expected {expected!r}"
            )
    if settings["activation_function"] not in _ACTIVATIONS:
        raise InputError(
            f"{folder / 'config.json'}: activation_function: expected "
            f"{', '.join(_ACTIVATIONS)}, not {settings['activation_function']!r}"
        )
    for name in ("attention_heads", "ffn_dim"):
        if settings[f"encoder_{name}"] != settings[f"decoder_{name}"]:
            raise InputError(
                f"{folder / 'config.json'}: decoder_{name}: a run's model has one for both sides; "
                f"expected {settings[f'encoder_{name}']}, not {settings[f'decoder_{name}']}"
            )
    starts = {settings["pad_token_id"]: "pad", settings["eos_token_id"]: "eos"}
    own = (folder / EXPORTED).is_file()  # others have an id of bos that is no piece's
    start = settings.get("decoder_start_token_id")
    if own and start == settings.get("bos_token_id"):
        starts[start] = "bos"
    if start not in starts:
        raise InputError(
            f"{folder / 'config.json'}: decoder_start_token_id: expected that of padding or of "
            f"end-of-sentence, not {start!r}"
        )
    return {
        "encoder_layers": settings["encoder_layers"],
        "decoder_layers": settings["decoder_layers"],
        "width": settings["d_model"],
        "ffn": settings["encoder_ffn_dim"],
        "heads": settings["encoder_attention_heads"],
        "dropout": settings.get("dropout", 0.1),
        "attention_dropout": settings.get("attention_dropout", 0.0),
        "activation_dropout": settings.get("activation_dropout", 0.0),
        "activation": _ACTIVATIONS[settings["activation_function"]],
        "norm": _NORMS[kind],
        "share_embeddings": settings.get("share_encoder_decoder_embeddings", True),
        "decoder_start": starts[start],
        "max_positions": settings["max_position_embeddings"],
    }


def _decoding(folder: Path, generation: dict[str, Any], target: "_Vocabulary") -> dict[str, Any]:
    for key, plain in _PLAIN.items():
        if (generation.get(key) or plain) != plain:
            raise InputError(
                f"{folder / 'generation_config.json'}: {key}: a run's search has no such setting; "
                f"expected {plain!r}, not {generation[key]!r}"
            )
    banned = generation.get("bad_words_ids") or []
    never = {generation["pad_token_id"]}
    if target.own:
        never |= {*target.tokenizer.never_text, target.tokenizer.unk_id}
    if any(len(words) != 1 or words[0] not in never for words in banned):
        raise InputError(
            f"{folder / 'generation_config.json'}: bad_words_ids: a run bans its special pieces "
            f"alone, not {banned!r}"
        )
    settings = {
        "beam": generation.get("num_beams") or 1,
        "length_penalty": generation.get("length_penalty", 1.0),
    }
    own: dict[str, Any] = _read(folder / EXPORTED, optional=True).get("decoding", {})
    return settings | own


@dataclass(frozen=True)
class _Vocabulary:
    """One side's tokenizer, and what its ids were in the checkpoint."""

    tokenizer: Tokenizer
    rows: list[int]  # of the embedding, that of <unk> for what the checkpoint lacks
    real: list[bool]  # whether the checkpoint has it
    own: bool  # whether it is a run's, with the same ids


def _vocabularies(folder: Path, shared: bool) -> list[_Vocabulary]:
    """Source and target; with one embedding both have the same ids."""
    models = [read_model(folder / f"{side}.spm") for side in ("source", "target")]
    files = [folder / "vocab.json", folder / ("vocab.json" if shared else "target_vocab.json")]
    sides = []
    for side, model, file in zip(("source", "target"), models, files, strict=True):
        ids = read_vocabulary(file)
        if (own := _own(folder / f"{side}.spm", ids)) is not None:
            sides.append(own)
            continue
        listed = [piece for piece in sorted(ids, key=ids.__getitem__) if piece not in SPECIAL]
        written = [piece for m in (models if shared else [model]) for piece in pieces_of(m)]
        lacking = [piece for piece in dict.fromkeys(written) if piece not in {*ids, *SPECIAL}]
        pieces = [*listed, *lacking]
        order = [*SPECIAL, *pieces]
        sides.append(
            _Vocabulary(
                Tokenizer(with_pieces(model, pieces)),
                [ids.get(piece, ids["<unk>"]) for piece in order],
                [piece in ids for piece in order],
                own=False,
            )
        )
    return sides


def _own(file: Path, ids: dict[str, int]) -> _Vocabulary | None:
    """A run's own tokenizer, whose ids are those of the checkpoint; None where they are not."""
    try:
        tokenizer = Tokenizer.load(file)
    except InputError:
        return None
    places = range(tokenizer.size)
    if len(ids) != len(places) or any(ids.get(tokenizer.piece(i)) != i for i in places):
        return None
    return _Vocabulary(tokenizer, list(places), [True] * len(places), own=True)


def _reordered(
    tensors: dict[str, Tensor], source: _Vocabulary, target: _Vocabulary
) -> dict[str, Tensor]:
    """With embeddings and output bias by the run's ids; what is not real is never written."""
    found = dict(tensors)
    if "output_bias" in tensors:
        bias = tensors["output_bias"][target.rows]
        found["output_bias"] = bias.masked_fill(~torch.tensor(target.real), -torch.inf)
    for name, side in (("source_embedding.weight", source), ("target_embedding.weight", target)):
        if name in tensors:
            found[name] = tensors[name][side.rows]
    return found


def _weights(folder: Path) -> dict[str, Tensor]:
    if os.path.lexists(file := folder / "model.safetensors"):
        tensors = read_tensors(file)
    else:
        file = folder / "pytorch_model.bin"
        try:
            with open_file(file) as stream:
                tensors = torch.load(stream, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise InputError(f"{folder}: expected model.safetensors or pytorch_model.bin") from None
        except Exception as error:
            raise InputError(f"{file}: damaged: {error}") from None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise InputError(f"{file}: {name}: expected real numbers")
    converted = {name: tensor.float() for name, tensor in tensors.items()}
    check_values(converted, file)
    return converted


def _read(file: Path, optional: bool = False) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file))
    except FileNotFoundError:
        if optional:
            return {}
        raise InputError(f"{file}: no such file; expected a Marian checkpoint's folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object")
    return content
