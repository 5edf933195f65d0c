"""Steps that several processes share, measured in earnest.

python -m tests.memory.divided_steps FOLDER, as one of WORLD_SIZE processes: FOLDER/found.json holds
the first one's memory by case.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from fastkd.config.load import validate
from fastkd.losses import A2D, CrossEntropy, WordKD
from fastkd.memory import Pair
from fastkd.memory.step.measure import record_step
from fastkd.memory.step.training_step import TrainingStep
from fastkd.memory.step.workload import Update, Vocabulary
from fastkd.memory.tracker import Tracker
from fastkd.train.ranks import Ranks

VOCABULARY = Vocabulary.of_sizes(1000, 1000)
UPDATE = Update(np.full(32, 24), np.full(32, 24))


def own():
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
        "training": {"sharding": "fully_shard", "optimizer": {"clip": 1.0}},
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
    if ranks.first:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main(Path(sys.argv[1]))
