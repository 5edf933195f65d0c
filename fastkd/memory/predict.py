"""Predicts a training step's memory without the device, and without the memory."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastkd.backends.attention.torch import native
from fastkd.backends.tokens.torch import positions
from fastkd.backends.tokens.torch.positions import Part, Positions
from fastkd.config.tree import Config, ModelConfig
from fastkd.memory import cuda_formulas
from fastkd.memory.measure import record_step
from fastkd.memory.predictor import Predictor
from fastkd.memory.report import StepMemory
from fastkd.memory.step import TrainingStep
from fastkd.memory.workload import Update, Vocabulary
from fastkd.nn.layout import Layout


def predict_step(
    config: Config,
    vocabulary: Vocabulary,
    teacher: ModelConfig | None,
    update: Update,
    device: str = "cpu",
    limit: int | None = None,
) -> StepMemory:
    """The step's memory on `device`, "cpu" or "cuda", by running it on tensors without data.

    For "cuda": padding is computed as it is there, `precision: auto` is bfloat16, attention's
    workspaces come from `cuda_formulas`, and PyTorch's caching allocator is replayed, with at
    most `limit` bytes to reserve; where they are too few, its figures are those without a limit.
    """
    if device == "cpu":
        with _compiled_kernel_idle(), _few_chunks():
            return _run(config, vocabulary, teacher, update, Predictor)[0]
    with (
        _padding_computed(),
        cuda_formulas.kernels_offered(),
        _no_compiled_kernel(),
        _few_chunks(),
        mock.patch.object(positions, "CHUNK", positions.DEVICE_CHUNK),
    ):
        config = _as_on_cuda(config)
        memory, tracker = _run(config, vocabulary, teacher, update, cuda_formulas.CudaPredictor)
    figures = cuda_formulas.replay(tracker.blocks, limit)
    return dataclasses.replace(memory, device="cuda", allocator=figures)


def _as_on_cuda(config: Config) -> Config:
    training = config.training
    if training.precision == "auto":
        training = dataclasses.replace(training, precision="bfloat16")
    if training.backend == "auto":
        training = dataclasses.replace(training, backend=cuda_formulas.best_backend())
    return dataclasses.replace(config, training=training)


def _run(config, vocabulary, teacher, update, predictor) -> tuple[StepMemory, Predictor]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        step = TrainingStep(config, vocabulary, teacher, torch.device("cpu"))
    pieces = update.pieces(config.training.accumulation, vocabulary)
    tracker = predictor(mode, step.modules())
    return record_step(tracker, step, update, pieces), tracker


@contextlib.contextmanager
def _compiled_kernel_idle() -> Iterator[None]:
    """The compiled kernel of attention alignment tells its workspace, and computes nothing."""
    original = native.library

    def idle() -> SimpleNamespace | None:
        library = original()
        if library is None:
            return None
        memory = library.fastkd_memory
        return SimpleNamespace(fastkd_memory=memory, fastkd_alignment=lambda call: None)

    with mock.patch.object(native, "library", idle), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield


@contextlib.contextmanager
def _few_chunks() -> Iterator[None]:
    """Token losses go over the first two chunks and the last: those between hold the same."""
    every = Positions.__iter__

    def few(self: Positions) -> Iterator[Part]:
        parts = list(every(self))
        return iter(parts if len(parts) < 4 else [*parts[:2], parts[-1]])

    with mock.patch.object(Positions, "__iter__", few):
        yield


@contextlib.contextmanager
def _no_compiled_kernel() -> Iterator[None]:
    """It is for CPUs alone."""
    with mock.patch.object(native, "wanted", lambda cells: False):
        yield


@contextlib.contextmanager
def _padding_computed() -> Iterator[None]:
    """Layouts that keep padding in their rows, as they do on every device but a CPU."""
    original = Layout.__init__
    with mock.patch.object(Layout, "__init__", functools.partialmethod(original, packed=False)):
        yield
