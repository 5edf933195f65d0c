"""End to end: what a training step costs by each method and backend, against training alone."""

import dataclasses
import gc
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from fastkd.bench.record import Row
from fastkd.bench.run import figures
from fastkd.bench.tables import TRAINING
from fastkd.bench.turns import host_clock, in_turns
from fastkd.config.load import validate
from fastkd.config.tree import Config, ModelConfig
from fastkd.data.batches import Batch
from fastkd.errors import BackendUnavailable, InputError
from fastkd.functional.dispatch import BACKENDS
from fastkd.memory.step.measure import measure_in_own_process, measure_step
from fastkd.memory.step.training_step import TrainingStep
from fastkd.memory.step.workload import Update, Vocabulary
from fastkd.nn.build import build_model

_CE = {"name": "cross_entropy"}
# A method's losses; "alone" and "masked alone" are what the methods below them are compared with.
METHODS: dict[str, list[dict[str, Any]]] = {
    "alone": [_CE],
    "word KD": [_CE, {"name": "word_kd"}],
    "A2D": [_CE, {"name": "word_kd"}, {"name": "a2d"}],
    "TIE-KD": [_CE, {"name": "tie_kd"}],
    "masked, alone": [{"name": "masked_cross_entropy"}, {"name": "length"}],
    "DiMS": [{"name": "dims"}, {"name": "length"}],
}
BASES = {method: "masked, alone" if "mask" in method or method == "DiMS" else "alone"
         for method in METHODS}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of a student, its teacher and their batches; each sentence has `length` pieces."""

    name: str
    width: int
    ffn: int
    heads: int
    layers: int  # of the student's encoder and of its decoder; twice as many of the teacher's
    vocabulary: int
    batch_tokens: int
    length: int = 32


SCALES = {
    "smoke": Scale("smoke", 16, 32, 2, 1, 100, 64, 8),
    "cpu": Scale("cpu", 256, 1024, 4, 3, 8000, 2048),
    "cuda": Scale("cuda", 512, 1024, 4, 3, 32000, 16384),
}


def backends_of(providers: Sequence[str], device: torch.device) -> tuple[str, ...]:
    """Those of the providers that train: our backends that serve the device."""
    served = [name for name in BACKENDS if device.type != "cpu" or name != "triton"]
    return tuple(name for name in providers if name in served)


def weights_of(scale: Scale, method: str) -> tuple[int, int]:
    """Numbers that the student has, and that its teacher has where the method takes one."""
    config, teacher = configure(scale, method, BACKENDS[0])
    vocabulary = Vocabulary.of_sizes(scale.vocabulary, scale.vocabulary)
    with torch.device("meta"):
        models = [build_model(model, vocabulary) for model in (config.model, teacher) if model]
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    return sizes[0], sum(sizes[1:])


def run_training(
    scale: Scale,
    device: torch.device,
    backends: Sequence[str],
    methods: Sequence[str],
    rounds: int,
    memory: bool = True,
) -> list[Row]:
    """Rows of methods × backends; `tokens_per_second` counts target tokens.

    All steps take turns.
    """
    update = update_of(scale)
    vocabulary = Vocabulary.of_sizes(scale.vocabulary, scale.vocabulary)
    pieces = [piece.to(device) for piece in update.pieces(1, vocabulary)]
    steps: dict[tuple[str, str], TrainingStep] = {}
    absent: dict[tuple[str, str], str] = {}
    for method in methods:
        for backend in backends:
            config, teacher = configure(scale, method, backend)
            try:
                step = TrainingStep(config, vocabulary, teacher, device)
                step(update, pieces)
                steps[method, backend] = step
            except (InputError, BackendUnavailable, torch.OutOfMemoryError) as reason:
                absent[method, backend] = f"absent: {str(reason).splitlines()[0]}"
    calls = {key: partial(_again, step, update, pieces) for key, step in steps.items()}
    times = in_turns(calls, rounds, device)
    calls.clear()
    steps.clear()
    gc.collect()
    rows = []
    for method, backend in [(method, backend) for method in methods for backend in backends]:
        common: dict[str, Any] = {
            "operation": TRAINING,
            "shape": f"{scale.name} {method}",
            "dtype": "float32" if device.type == "cpu" else "bfloat16",
            "provider": backend,
            "version": "",
            "direction": "step",
        }
        if (method, backend) in absent:
            rows.append(Row(**common, status=absent[method, backend]))
            continue
        own, base = times[method, backend], times.get((BASES[method], backend), [])
        peak = None
        if memory:
            config, teacher = configure(scale, method, backend)
            peak = _peak(config, vocabulary, teacher, update, device)
        rows.append(
            Row(
                **common,
                **figures(own, base),
                status="ok",
                clock=host_clock(device).__name__,
                peak_bytes=peak,
                tokens_per_second=int(update.target_lengths.sum()) / statistics.median(own),
            )
        )
    return rows


def _again(step: TrainingStep, update: Update, pieces: list[Batch], number: int) -> None:
    step(update, pieces)


def configure(scale: Scale, method: str, backend: str) -> tuple[Config, ModelConfig | None]:
    """The configuration of a step, and the teacher's model where the method has one."""
    masked = BASES[method] != "alone"
    model = {
        "kind": "cmlm" if masked else "transformer",
        "encoder_layers": scale.layers,
        "decoder_layers": scale.layers,
        "width": scale.width,
        "ffn": scale.ffn,
        "heads": scale.heads,
    }
    taught = method != BASES[method]
    tree = {
        "run": "benchmark",
        "data": dict.fromkeys(("source", "target", "train", "dev", "prepared"), "benchmark"),
        "tokenizer": {"vocabulary": scale.vocabulary},
        "model": model,
        "training": {
            "batch_tokens": scale.batch_tokens,
            "backend": backend,
            "precision": "auto" if scale.name == "cuda" else "float32",
        },
        "teacher": {"run": "benchmark"} if taught else None,
        "losses": METHODS[method],
    }
    config = validate(tree, "benchmark")
    if not taught:
        return config, None
    # A DiMS student starts from its teacher's weights, so they have one size.
    factor = 1 if masked else 2
    layers = factor * scale.layers
    return config, dataclasses.replace(config.model, encoder_layers=layers, decoder_layers=layers)


def update_of(scale: Scale) -> Update:
    lengths = np.full(scale.batch_tokens // scale.length, scale.length, np.int64)
    return Update(lengths, lengths)


def _peak(
    config: Config,
    vocabulary: Vocabulary,
    teacher: ModelConfig | None,
    update: Update,
    device: torch.device,
) -> int:
    """Of the whole step, parameters, gradients and optimizer included."""
    if device.type == "cpu":
        memory = measure_in_own_process(config, vocabulary, teacher, update)
        return memory.start + (memory.resident or 0)
    return measure_step(config, vocabulary, teacher, update, device).allocator["peak allocated"]
