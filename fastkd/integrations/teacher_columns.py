"""A teacher asked beforehand: two columns of a data set, in place of a model in memory.

listed = dataset.map(lambda rows: teacher_columns(teacher, collate(rows), top_k=64), ...)
collate = TeacherCollator(collate)
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.errors import InputError
from fastkd.integrations.judge import judge
from fastkd.integrations.models import (
    IGNORED,
    TEACHER_IDS,
    TEACHER_LOG_PROBS,
    Inputs,
    LanguageModel,
)
from fastkd.integrations.passes import Call
from fastkd.integrations.undisturbed import undisturbed


@torch.no_grad()
def teacher_columns(teacher: nn.Module, batch: Inputs, top_k: int) -> dict[str, list[Tensor]]:
    """What a Transformers model expects at the predicted labels of a collated batch.

    `teacher_ids` and `teacher_log_probs` hold one tensor (labels, top_k) a sentence: the most
    likely ids, the likeliest first, and their log-probabilities, for its predicted labels in order.
    """
    model = LanguageModel(teacher, frozen=True)
    model.refuse_packed(batch)
    judge(model, batch, verify=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(undisturbed(teacher))
        call = Call(model, batch, stack, taps=False)
        asked = call.passed(teacher(**batch))
        projection = asked.projection
        counted = model.predicted(batch["labels"]) != IGNORED
        columns: dict[str, list[Tensor]] = {TEACHER_IDS: [], TEACHER_LOG_PROBS: []}
        for row, rows in zip(asked.states, counted, strict=True):
            given = projection.entered(row[rows])
            logits = nn.functional.linear(given, projection.weight, projection.bias).float()
            if projection.soft_cap is not None:
                logits = projection.soft_cap * (logits / projection.soft_cap).tanh()
            if top_k > logits.shape[1]:
                raise InputError(f"top_k: expected at most {logits.shape[1]}, the vocabulary")
            best = logits.log_softmax(-1).topk(top_k)
            columns[TEACHER_IDS].append(best.indices.cpu())
            columns[TEACHER_LOG_PROBS].append(best.values.cpu())
    return columns


class TeacherCollator:
    """A collator of features that have the two columns beside what `collate` knows.

    The batch holds them at the predicted labels: (B, T, K), elsewhere id 0 and −inf.

    shifted: whether label i is predicted by state i − 1, as in decoder-only models, so that a first
        label is not predicted
    """

    def __init__(
        self, collate: Callable[[list[dict[str, Any]]], Any], shifted: bool = False
    ) -> None:
        self.collate, self.shifted = collate, shifted

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        features = [dict(feature) for feature in features]
        ids, log_probs = (
            [torch.as_tensor(feature.pop(name)) for feature in features]
            for name in (TEACHER_IDS, TEACHER_LOG_PROBS)
        )
        batch = self.collate(features)
        counted = batch["labels"] != IGNORED  # (B, T)
        if self.shifted:
            counted[:, 0] = False
        if counted.sum(1).tolist() != [len(rows) for rows in ids]:
            raise InputError(
                f"{TEACHER_IDS}: {sum(map(len, ids))} rows for {int(counted.sum())} predicted "
                "labels; expected columns made from the same labels"
            )
        for name, rows, fill in (
            (TEACHER_IDS, ids, 0),
            (TEACHER_LOG_PROBS, log_probs, -torch.inf),
        ):
            joined = torch.cat(rows)
            column = joined.new_full((*counted.shape, joined.shape[1]), fill)
            column[counted] = joined
            batch[name] = column
        return batch
