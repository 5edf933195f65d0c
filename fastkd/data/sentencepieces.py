"""The contents of sentencepiece models: their pieces, special ids and rules of normalization."""

import functools
import unicodedata
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from fastkd.errors import InputError
from fastkd.reading import read_bytes

# Special pieces and, as their places, ids of every tokenizer here.
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
PAD, UNK, BOS, EOS, MASK = range(5)
spm: Any = sentencepiece_model_pb2  # its classes are made when it is imported
_Piece = spm.ModelProto.SentencePiece


def read_model(path: Path) -> Any:
    """A sentencepiece model's contents."""
    model = spm.ModelProto()
    try:
        model.ParseFromString(read_bytes(path, 1 << 28))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except DecodeError:
        raise InputError(f"{path}: not a sentencepiece model") from None
    return model


def pieces_of(model: Any) -> list[str]:
    """The pieces that text is cut into."""
    cut = (_Piece.NORMAL, _Piece.USER_DEFINED, _Piece.BYTE)
    return [piece.piece for piece in model.pieces if piece.type in cut]


def with_pieces(model: Any, pieces: list[str]) -> bytes:
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
    return bytes(wanted.SerializeToString())


def with_special_ids(model: bytes) -> bytes:
    """A sentencepiece model of any origin with the special ids; it cuts text as before.

    Its own control pieces, which text never gives, are left out.
    """
    content = spm.ModelProto()
    content.ParseFromString(model)
    return with_pieces(content, [p for p in pieces_of(content) if p not in SPECIAL])


def with_name_of_rules(model: bytes, name: str) -> bytes:
    """A model trained with rules from a file, without that file's path, which would be in it."""
    content = spm.ModelProto()
    content.ParseFromString(model)
    content.normalizer_spec.normalization_rule_tsv = ""
    content.normalizer_spec.name = name
    return bytes(content.SerializeToString())


@functools.cache
def nfc_rules() -> str:
    """Unicode's form C as sentencepiece's rules: code points, a tab, those that replace them.

    They compose every character from its whole decomposition and from its last step. A stack of
    marks that no character has is not put into form C's order.
    """
    rules: dict[str, str] = {}
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        character = chr(code)
        decomposed = unicodedata.normalize("NFD", character)
        if decomposed == character:
            continue
        composed = unicodedata.normalize("NFC", character)
        step = unicodedata.decomposition(character).split()
        last = "".join(chr(int(part, 16)) for part in step if not part.startswith("<"))
        for sequence in (character, decomposed, last if len(composed) == 1 else ""):
            if sequence and sequence != composed:
                rules[sequence] = composed
    # Hangul: a syllable of two letters before a third, which has no decomposition of its own.
    for syllable in range(0xAC00, 0xD7A4, 28):
        for final in range(1, 28):
            rules[chr(syllable) + chr(0x11A7 + final)] = chr(syllable + final)
    return "".join(f"{_hex(left)}\t{_hex(right)}\n" for left, right in rules.items())


def _hex(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)
