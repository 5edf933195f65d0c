"""The table of docs/devices.md: memory a device, predicted for a pair on 1, 8 and 64 GPUs.

python -m benchmarks.training.devices [DEVICES ...] writes the rows of docs/devices.md anew.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import transformers
from torch import nn

from fastkd.losses import CrossEntropy, WordKD
from fastkd.memory import Pair
from fastkd.tables import size

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"
DEVICES = (1, 8, 64)
BATCH, LENGTH = 4, 512
# Shapes of Qwen2.5, 0.5 and 7 billion parameters, with the vocabulary of the smaller one.
SHAPES = {
    "student": (896, 4864, 24, 14, 2, True),
    "teacher": (3584, 18944, 28, 28, 4, False),
}


def model(name: str) -> nn.Module:
    width, ffn, layers, heads, key_heads, tied = SHAPES[name]
    config = transformers.Qwen2Config(
        vocab_size=151936,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=tied,
    )
    return transformers.Qwen2ForCausalLM(config)


def row(devices: int) -> str:
    pair = Pair(
        lambda: model("student"),
        [CrossEntropy(weight=0.5), WordKD(weight=0.5)],
        lambda: model("teacher"),
        batch=BATCH,
        length=LENGTH,
        precision="bfloat16",
        processes=devices,
        sharding="fully_shard",
    )
    step = pair.predicted("cuda")
    held = ("parameters", "teacher", "optimizer")
    cells = [step.held.get(name, 0) for name in held]
    cells += [step.losses["token losses"].peak, step.peak, step.allocator["device in use"]]
    return f"| {devices} | " + " | ".join(size(cell) for cell in cells) + " |"


def main(numbers: Sequence[int]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for devices in numbers:
        made = row(devices)
        print(made, flush=True)
        text = re.sub(rf"^\| {devices} \|.*$", made, text, flags=re.M)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or DEVICES)
