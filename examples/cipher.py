"""A translation that small models learn in seconds: each symbol becomes the next one."""

import torch
from torch import Tensor

PAD, END, START, SYMBOLS = 0, 1, 2, 16
VOCABULARY = 3 + SYMBOLS


def sentences(count: int, seed: int) -> list[dict[str, list[int]]]:
    """`input_ids` of 3 to 6 symbols, and `labels`: both end with END."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 7, (count,), generator=draw).tolist()
    rows = [torch.randint(SYMBOLS, (length,), generator=draw) for length in lengths]
    return [
        {
            "input_ids": [*(3 + row).tolist(), END],
            "labels": [*(3 + (row + 1) % SYMBOLS).tolist(), END],
        }
        for row in rows
    ]


def collate(features: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """A batch, padded at the end; labels with -100."""

    def padded(name: str, value: int) -> Tensor:
        rows = [torch.tensor(feature[name]) for feature in features]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    source = padded("input_ids", PAD)
    return {
        "input_ids": source,
        "attention_mask": (source != PAD).long(),
        "labels": padded("labels", -100),
    }
