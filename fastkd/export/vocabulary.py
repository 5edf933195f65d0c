"""`vocab.json`, the ids by piece of a Transformers checkpoint."""

import json
from pathlib import Path

from fastkd.errors import InputError
from fastkd.reading import read_text


def read_vocabulary(path: Path) -> dict[str, int]:
    """Ids by piece, of a `vocab.json`."""
    try:
        vocabulary: dict[str, int] = json.loads(read_text(path))
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
