"""Steps that several processes share, measured in earnest.

python -m tests.memory.divided_steps FOLDER, as one of WORLD_SIZE processes: FOLDER/found.json holds
the first one's memory by case.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.optim import SGD

from fastkd.config.load import validate
from fastkd.integrations.distillation import ATTRIBUTE
from fastkd.losses import A2D, CrossEntropy, WordKD
from fastkd.memory import Pair
from fastkd.memory.step.measure import record_step
from fastkd.memory.step.training_step import TrainingStep
from fastkd.memory.step.workload import Update, Vocabulary
from fastkd.memory.tracker import Tracker
from fastkd.train.ranks import Ranks

VOCABULARY = Vocabulary.of_sizes(1000, 1000)
UPDATE = Update(np.full(32, 24), np.full(32, 24))


def own(sharding="fully_shard"):
    tree = {
        "run": "run",
        "data": {"source": "a", "target": "b", "train": "x", "dev": "x", "prepared": "x"},
        "model": {
            "width": 64,
            "ffn": 128,
            "heads": 4,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "max_positions": 64,
        },
        "training": {"sharding": sharding, "optimizer": {"clip": 1.0}},
        "teacher": {"run": "teacher"},
        "losses": [{"name": "cross_entropy"}, {"name": "word_kd"}, {"name": "a2d"}],
    }
    return validate(tree, "config")


def llama(layers, width, tied):
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=3000,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def pair(processes, tied=False, precision="float32"):
    return Pair(
        lambda: llama(2, 64, tied),
        [CrossEntropy(), WordKD(), A2D()],
        lambda: llama(3, 96, False),
        batch=4,
        length=32,
        precision=precision,
        processes=processes,
        sharding="fully_shard",
    )


PAIRS = {"apart": {}, "tied": {"tied": True}, "bfloat16": {"precision": "bfloat16"}}


def buckets_of(parallel, step):
    """Bytes of what DistributedDataParallel exchanges in an update, by its own telling."""
    seen = []

    def exchanged(state, bucket):
        seen.append(bucket.buffer().nbytes)
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    parallel.register_comm_hook(None, exchanged)
    step()  # after which it makes its buckets anew
    seen.clear()
    step()
    return sum(seen)


def pair_buckets(size):
    step = dataclasses.replace(pair(size), sharding="none")._step(torch.device("cpu"), SGD)
    setattr(step.student, ATTRIBUTE, step.distillation)  # as a Trainer does it
    parallel = torch.nn.parallel.DistributedDataParallel(step.student)
    counts = step.distillation.counts(step.batches)
    return buckets_of(
        parallel, lambda: step.distillation(parallel, step.batches[0], counts).loss.backward()
    )


def own_buckets(ranks):
    config = own("none")
    step = TrainingStep(config, VOCABULARY, config.model, torch.device("cpu"), ranks)
    kind = torch.nn.parallel.DistributedDataParallel
    (parallel,) = (m for m in vars(step.updater).values() if isinstance(m, kind))
    return buckets_of(parallel, step.of(UPDATE))


def main(folder):
    dist.init_process_group("gloo")
    size, found = dist.get_world_size(), {}
    for name, settings in PAIRS.items():
        # Gloo's threads let go of what they have sent now or a moment later, which only adds.
        tries = [pair(size, **settings).measured() for _ in range(3)]
        found[name] = min(tries, key=lambda step: step.peak).plain()
    config = own()
    ranks = Ranks(dist.get_rank(), size)
    step = TrainingStep(config, VOCABULARY, config.model, torch.device("cpu"), ranks).of(UPDATE)
    found["own"] = record_step(Tracker(step.modules()), step).plain()
    buckets = {"pair": pair_buckets(size), "own": own_buckets(ranks)}
    if ranks.first:
        (folder / "found.json").write_text(json.dumps(found))
        (folder / "buckets.json").write_text(json.dumps(buckets))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main(Path(sys.argv[1]))
