"""Predicts a training step's memory without the device, and without the memory."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastkd import watching
from fastkd.backends.tokens.torch.positions import DEVICE_CHUNK
from fastkd.config.tree import Config, ModelConfig
from fastkd.memory.step import cuda_formulas
from fastkd.memory.step.measure import record_step
from fastkd.memory.step.predictor import Predictor
from fastkd.memory.step.processes import PretendedRanks, Processes
from fastkd.memory.step.report import StepMemory
from fastkd.memory.step.training_step import TrainingStep
from fastkd.memory.step.workload import Update, Vocabulary

# Attention's compiled kernel tells its workspace, and computes nothing.
AS_ON_CPU = watching.Pretence(compiled="idle", few_chunks=True)
# Padding is computed; the Triton kernels take what has no data, and is not on CUDA.
AS_ON_CUDA = watching.Pretence(
    packed=False, compiled="never", fused=True, chunk=DEVICE_CHUNK, few_chunks=True
)


def predict_step(
    config: Config,
    vocabulary: Vocabulary,
    teacher: ModelConfig | None,
    update: Update,
    device: str = "cpu",
    limit: int | None = None,
    processes: int = 1,
) -> StepMemory:
    """The step's memory on `device`, "cpu" or "cuda", by running it on tensors without data.

    For "cuda": padding is computed as it is there, `precision: auto` is bfloat16, attention's
    workspaces come from `cuda_formulas`, and PyTorch's caching allocator is replayed, with at
    most `limit` bytes to reserve; where they are too few, its figures are those without a limit.

    processes: that share the update by `training.sharding`; the memory is that of the first, with
        the largest share
    """
    if device == "cpu":
        with watching.pretending(AS_ON_CPU):
            return _run(config, vocabulary, teacher, update, Predictor, processes)[0]
    with watching.pretending(AS_ON_CUDA):
        config = _as_on_cuda(config)
        predictor = cuda_formulas.CudaPredictor
        memory, tracker = _run(config, vocabulary, teacher, update, predictor, processes)
    figures = cuda_formulas.replay(tracker.blocks, limit)
    return dataclasses.replace(memory, device="cuda", allocator=figures)


def _as_on_cuda(config: Config) -> Config:
    training = config.training
    if training.precision == "auto":
        training = dataclasses.replace(training, precision="bfloat16")
    if training.backend == "auto":
        training = dataclasses.replace(training, backend=cuda_formulas.best_backend())
    return dataclasses.replace(config, training=training)


def _run(
    config: Config,
    vocabulary: Vocabulary,
    teacher: ModelConfig | None,
    update: Update,
    predictor: type[Predictor],
    processes: int,
) -> tuple[StepMemory, Predictor]:
    pretended = Processes(processes, config.training.sharding).pretended()
    with pretended as mesh, without_data() as mode:
        ranks = PretendedRanks(0, processes, made=mesh)
        with mode:
            made = TrainingStep(config, vocabulary, teacher, torch.device("cpu"), ranks)
        step = made.of(update)
        tracker = predictor(mode, step.modules())
        return record_step(tracker, step), tracker


@contextlib.contextmanager
def without_data() -> Iterator[FakeTensorMode]:
    """The mode under which modules are made of tensors without data, to run within."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield FakeTensorMode(allow_non_fake_inputs=True)
