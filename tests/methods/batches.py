"""Batches of random pieces, and parts of them."""

import dataclasses

import torch

from fastkd.data.batches import Batch

PAD, BOS, EOS, FIRST = 0, 2, 3, 5


def batch_of(source_lengths, target_lengths, vocabulary, seed=0):
    """Sentences of these lengths, end included."""
    generator = torch.Generator().manual_seed(seed)

    def padded(lengths):
        rows = torch.full((len(lengths), max(lengths)), PAD)
        for row, length in zip(rows, lengths, strict=True):
            row[: length - 1] = torch.randint(FIRST, vocabulary, (length - 1,), generator=generator)
            row[length - 1] = EOS
        return rows, torch.tensor(lengths)

    source, source_lengths = padded(source_lengths)
    target, target_lengths = padded(target_lengths)
    decoder_input = torch.cat([torch.full((len(target), 1), BOS), target[:, :-1]], 1)
    decoder_input[target == PAD] = PAD
    ids = torch.arange(len(target))
    return Batch(source, source_lengths, decoder_input, target, target_lengths, ids)


def cut(batch, rows):
    """These sentences, without padding that none of them needs."""
    fields = {f.name: getattr(batch, f.name)[rows] for f in dataclasses.fields(batch)}
    source, target = (int(fields[f"{side}_lengths"].max()) for side in ("source", "target"))
    fields["source"] = fields["source"][:, :source]
    for name in ("decoder_input", "target"):
        fields[name] = fields[name][:, :target]
    return Batch(**fields)
