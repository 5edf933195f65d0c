"""Which ids both models know, where their embeddings are padded differently."""

import logging
from typing import Any

from fastkd.errors import InputError
from fastkd.integrations.models import LanguageModel

_log = logging.getLogger(__name__)


def common_vocabulary(student: LanguageModel, teacher: LanguageModel, tokenizer: Any) -> int | None:
    """n where distillation compares the ids below n; None where both have the same number.

    tokenizer: of both models, or None. Its ids have to be among those that are compared.

    Raises InputError where they are not.
    """
    sizes = (student.head.vocabulary, teacher.head.vocabulary)
    compared = min(sizes)
    if tokenizer is not None and len(tokenizer) > compared:
        raise InputError(
            f"tokenizer: has {len(tokenizer)} ids, student and teacher have {sizes[0]} and "
            f"{sizes[1]} logits; expected the tokenizer of both"
        )
    if sizes[0] == sizes[1]:
        return None
    _log.warning(
        "student and teacher have %d and %d logits: distillation compares the first %d, %s",
        *sizes,
        compared,
        "among which are all of the tokenizer"
        if tokenizer is not None
        else "which are taken to be the same tokens (a tokenizer would be checked)",
    )
    return compared
