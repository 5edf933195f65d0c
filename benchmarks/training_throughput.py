"""Target tokens a second of a training step, against a bare loop over torch.nn.Transformer.

    python -m benchmarks.training_throughput PREPARED [--rounds N] [--threads N]

Ours trains on real batches of the corpus that `fastkd prepare` wrote to PREPARED, padding and
all: model, linear cross-entropy with label smoothing, gradient and AdamW. The bare loop is fed
with full batches without any padding, of one length for all sentences: torch.nn.Transformer
with its defaults and the same sizes, an embedding, an output projection, F.cross_entropy with
label smoothing and the same AdamW. Both take turns step by step, so that whatever else the
machine does falls on both; the ratio is the median over the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.config.tree import ModelConfig
from fastkd.data.batches import Batch, BatchPlan, collate
from fastkd.data.corpus import Corpus
from fastkd.data.tokenizer import Tokenizers
from fastkd.functional import linear_token_distillation_loss
from fastkd.nn import Transformer

TOKENS = 4096
SMOOTHING = 0.1
LENGTH = 32  # of each sentence in the bare loop's batches
SIZES = {"encoder_layers": 3, "decoder_layers": 3, "width": 256, "ffn": 1024, "heads": 4}


class BareModel(nn.Module):
    """torch.nn.Transformer with what it lacks."""

    def __init__(self, vocabulary: int, norm: str) -> None:
        super().__init__()
        width = SIZES["width"]
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(LENGTH, width) * width**-0.5)
        self.transformer = nn.Transformer(
            width,
            SIZES["heads"],
            SIZES["encoder_layers"],
            SIZES["decoder_layers"],
            SIZES["ffn"],
            dropout=0.1,
            norm_first=norm == "pre",
            batch_first=True,
        )
        self.output = nn.Linear(width, vocabulary, bias=False)
        self.output.weight = self.embedding.weight
        self.future = nn.Transformer.generate_square_subsequent_mask(LENGTH)

    def forward(self, source: Tensor, decoder_input: Tensor) -> Tensor:
        embedded = [
            F.dropout(self.embedding(ids) + self.positions, 0.1) for ids in (source, decoder_input)
        ]
        hidden = self.transformer(*embedded, tgt_mask=self.future, tgt_is_causal=True)
        return self.output(hidden)


def bare_step(vocabulary: int, norm: str, dtype: torch.dtype) -> Callable[[int], int]:
    model = BareModel(vocabulary, norm)
    optimizer = adamw(model)
    ids = torch.randint(5, vocabulary, (3, TOKENS // LENGTH, LENGTH))

    def step(number: int) -> int:
        source, decoder_input, target = ids
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(source, decoder_input)
            loss = F.cross_entropy(
                logits.flatten(0, 1), target.flatten(), label_smoothing=SMOOTHING
            )
        loss.backward()
        optimizer.step()
        return target.numel()

    return step


def our_step(batches: list[Batch], size: int, norm: str, dtype: torch.dtype) -> Callable:
    model = Transformer(ModelConfig(**SIZES, norm=norm), size, size, pad_id=0)
    optimizer = adamw(model)

    def step(number: int) -> int:
        batch = batches[number % len(batches)]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = model(
                batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths
            )
            loss = linear_token_distillation_loss(
                output.rows,
                model.output_weight,
                target=output.layout.rows(batch.target),
                ce_weight=1.0,
                kd_weight=0.0,
                label_smoothing=SMOOTHING,
                reduction="mean",
            ).loss
        loss.backward()
        optimizer.step()
        return batch.target_tokens

    return step


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def rate(step: Callable[[int], int], number: int) -> float:
    start = time.perf_counter()
    tokens = step(number)
    return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared", help="folder that `fastkd prepare` wrote")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--norm", choices=["pre", "post"], default="pre")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "both"], default="both")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    tokenizers = Tokenizers.load(options.prepared)
    size = tokenizers.target.size
    corpus = Corpus(f"{options.prepared}/train")
    plan = BatchPlan(corpus.source_lengths, corpus.target_lengths, TOKENS)
    chosen = plan.epoch(1)[: options.rounds + 1]
    batches = [collate(corpus, ids, tokenizers) for ids in chosen]
    print(f"{options.threads} threads, {size} pieces, padding {plan.padding_share():.1%}")
    for precision in ("float32", "bfloat16"):
        if options.precision not in (precision, "both"):
            continue
        dtype = getattr(torch, precision)
        ours = our_step(batches, size, options.norm, dtype)
        bare = bare_step(size, options.norm, dtype)
        rates = [(rate(ours, n), rate(bare, n)) for n in range(options.rounds + 1)][1:]
        ratio = statistics.median(our / other for our, other in rates)
        medians = [statistics.median(column) for column in zip(*rates, strict=True)]
        print(
            f"{precision:9} ours {medians[0]:6.0f}  bare {medians[1]:6.0f} target tokens/s"
            f"  ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
