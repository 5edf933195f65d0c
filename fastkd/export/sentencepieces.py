"""Sentencepiece models whose ids are those of a vocabulary, special ids first."""

import json
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from fastkd.data.tokenizer import BOS, EOS, MASK_PIECE, PAD, UNK, Tokenizer
from fastkd.errors import InputError

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", MASK_PIECE)  # by id
spm: Any = sentencepiece_model_pb2  # its classes are made when it is imported
_Piece = spm.ModelProto.SentencePiece


def read_vocabulary(path: Path) -> dict[str, int]:
    """Ids by piece, of a `vocab.json`."""
    try:
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
        ids = sorted(vocabulary.values())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError, TypeError):
        raise InputError(f"{path}: expected a JSON object of pieces and their ids") from None
    if ids != list(range(len(ids))):
        raise InputError(f"{path}: expected the ids 0 to {len(ids) - 1}, each once")
    for piece in ("<unk>", "</s>", "<pad>"):
        if piece not in vocabulary:
            raise InputError(f"{path}: expected a piece {piece}")
    codes = [piece for piece in vocabulary if piece.startswith(">>") and piece.endswith("<<")]
    if codes:
        raise InputError(
            f"{path}: has target languages' codes such as {codes[0]}, which a run's tokenizer "
            "cannot write; expected a model of one pair of languages"
        )
    return vocabulary


def read_model(path: Path) -> Any:
    """A sentencepiece model's contents."""
    model = spm.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception:
        raise InputError(f"{path}: not a sentencepiece model") from None
    return model


def pieces_of(model: Any) -> list[str]:
    """The pieces that text is cut into."""
    cut = (_Piece.NORMAL, _Piece.USER_DEFINED, _Piece.BYTE)
    return [piece.piece for piece in model.pieces if piece.type in cut]


def with_pieces(model: Any, pieces: list[str]) -> Tokenizer:
    """`model` with the special ids and, from 5 on, `pieces`; it cuts text as before.

    Pieces that the model does not know are there for their ids alone.
    """
    known = {piece.piece: piece for piece in model.pieces}
    wanted = spm.ModelProto()
    wanted.CopyFrom(model)
    del wanted.pieces[:]
    for index, piece in enumerate(SPECIAL):
        kind = _Piece.UNKNOWN if index == UNK else _Piece.CONTROL
        wanted.pieces.add(piece=piece, score=0.0, type=kind)
    for piece in pieces:
        entry = known.get(piece)
        if entry is None:
            wanted.pieces.add(piece=piece, score=0.0, type=_Piece.UNUSED)
        else:
            wanted.pieces.append(entry)
    trainer = wanted.trainer_spec
    trainer.vocab_size = len(wanted.pieces)
    trainer.pad_id, trainer.unk_id, trainer.bos_id, trainer.eos_id = PAD, UNK, BOS, EOS
    trainer.pad_piece, trainer.unk_piece = SPECIAL[PAD], SPECIAL[UNK]
    trainer.bos_piece, trainer.eos_piece = SPECIAL[BOS], SPECIAL[EOS]
    return Tokenizer(wanted.SerializeToString())
