"""What a run logged, and whether two runs logged the same."""

import json

import torch

OF_THE_MACHINE = {"tokens_per_second", "bleu_signature", "time"}


def log(folder):
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def assert_same_log(one, other, relative=2e-4):
    """Equal numbers, also inside of a record's lists, but for rounding and speed."""
    assert len(one) == len(other)
    for record, expected in zip(one, other, strict=True):
        assert record.keys() == expected.keys()
        for key in record.keys() - OF_THE_MACHINE:
            close = {"rtol": relative, "atol": 1e-5}
            torch.testing.assert_close(record[key], expected[key], msg=key, **close)
