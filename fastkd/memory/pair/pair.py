"""`fastkd.memory.Pair`: a student, its teacher and its losses, and what a step of them takes."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from fastkd import watching
from fastkd.config.losses import CrossEntropy, WordKD
from fastkd.errors import InputError
from fastkd.memory.pair.batch import random_batch
from fastkd.memory.pair.models import Model, maker_of
from fastkd.memory.step import cuda_formulas
from fastkd.memory.step.fit import needed
from fastkd.memory.step.measure import measured, record_step
from fastkd.memory.step.predict import AS_ON_CPU, AS_ON_CUDA, without_data
from fastkd.memory.step.predictor import Predictor
from fastkd.memory.step.processes import Processes
from fastkd.memory.step.report import StepMemory
from fastkd.memory.step.search import largest
from fastkd.memory.step.tables import step_tables

if TYPE_CHECKING:
    from fastkd.integrations.distillation import Distillation
    from fastkd.memory.pair.step import MakesOptimizer, PairStep

_SEED = 0


@dataclass(frozen=True)
class PairMemory:
    """A pair's step on one device, as predicted and, where there is such a device, as measured."""

    predicted: StepMemory
    measured: StepMemory | None

    @property
    def apart(self) -> float | None:
        """By which share of the measured peak the predicted one is above it."""
        if self.measured is None:
            return None
        ours, theirs = (
            m.allocator.get("peak allocated", m.peak) for m in (self.predicted, self.measured)
        )
        return ours / theirs - 1

    def __str__(self) -> str:
        columns = [("predicted", self.predicted)]
        if self.measured is not None:
            columns.append(("measured", self.measured))
        return "\n\n".join(
            table.text() for table in step_tables("Memory of a training step", columns)
        )


@dataclass(frozen=True, eq=False)
class Pair:
    """A training step of Transformers models, whoever's trainer makes it.

        pair = fastkd.memory.Pair(make_student, losses, make_teacher, batch=16, length=128)
        print(pair.predicted("cuda").peak, pair.largest(24 * 2**30))

    student, teacher: functions that make the models, as a Trainer's `model_init`; whatever they
        set holds: gradient checkpointing, PEFT's adapters, a dtype. Or the folder of a model, a
        configuration of Transformers, or the model itself, which is copied as it is
    losses: of `fastkd.losses`, or mappings of their keys, as `Distillation` takes them; None:
        cross-entropy, with a teacher word-level distillation beside it
    batch: sentences; `accumulation` such batches make an update, of each of `processes`
    length, target_length: pieces of every sentence on both sides; None: as the other
    precision: "float32", or "bfloat16" for autocast
    optimizer: makes one of parameters, such as `torch.optim.Adam`; or its name, as Transformers'
        `TrainingArguments.optim` has it: "adamw_torch", "adamw_8bit", "adafactor"
    sharding: how several processes share models, gradients and optimizer: "fully_shard", by
        `fastkd.integrations.sharded.divide`, or "none", as DistributedDataParallel

    Sizes are bytes. A step is forward and backward of each batch, the gradient's norm clipped at
    `clip`, the optimizer, and gradients set to None; weights are what the functions leave, and ids
    are random. A prediction runs the step on tensors without data, for which neither the models'
    memory nor their time is needed.
    """

    student: Model
    losses: Sequence[Any] | None = None
    teacher: "Model | None" = None
    batch: int = 8
    length: int = 128
    target_length: int | None = None
    accumulation: int = 1
    precision: str = "float32"
    optimizer: "MakesOptimizer | str" = "adamw_torch"
    clip: float = 1.0
    backend: str = "auto"
    processes: int = 1
    sharding: str = "none"

    def __post_init__(self) -> None:
        self._processes  # noqa: B018 - which it checks
        for name in ("batch", "length", "accumulation"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, not {getattr(self, name)}")
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision: expected float32 or bfloat16, not {self.precision!r}")

    @property
    def _processes(self) -> Processes:
        return Processes(self.processes, self.sharding)

    def measured(
        self, device: str | torch.device = "cpu", snapshot: Path | None = None
    ) -> StepMemory:
        """The step in earnest: its tensors, and what the system or the allocator say of it.

        snapshot: CUDA: a file for PyTorch's memory viewer

        What PyTorch's allocator of this process held on a GPU before does not count; in "device in
        use" other processes' memory does. Of several processes each calls it, after
        `torch.distributed.init_process_group`.
        """
        device = torch.device(device)
        torch.manual_seed(_SEED)
        step = self._step(device, self._optimizer(), mesh=self._processes.met(device))
        return measured(step, step.modules(), device, snapshot)

    def predicted(self, device: str = "cpu", limit: int | None = None) -> StepMemory:
        """The step on "cpu" or "cuda", of which CUDA's own figures are by formula.

        limit: bytes that PyTorch's allocator may reserve; where they are too few, its figures are
            those without a limit

        What the models read is taken to be what models of their kind read as a rule; measuring
        compares it with their own losses.
        """
        if device not in ("cpu", "cuda"):
            raise InputError(f"device: expected cpu or cuda, not {device!r}")
        if device == "cpu":
            with watching.pretending(AS_ON_CPU):
                return self._run(Predictor)[0]
        backend = self.backend
        if backend == "auto" and not self._processes.divide:  # which no single one may serve
            backend = cuda_formulas.best_backend()
        with watching.pretending(AS_ON_CUDA):
            asked = dataclasses.replace(self, backend=backend)
            memory, tracker = asked._run(cuda_formulas.CudaPredictor)
        figures = cuda_formulas.replay(tracker.blocks, limit)
        return dataclasses.replace(memory, device="cuda", allocator=figures)

    def profiled(self, device: str = "cpu") -> PairMemory:
        """Predicted for "cpu" or "cuda", and measured where it is there."""
        predicted = self.predicted(device)
        there = self.processes == 1 and (device == "cpu" or torch.cuda.is_available())
        return PairMemory(predicted, self.measured(device) if there else None)

    def largest(
        self,
        capacity: int,
        device: str = "cuda",
        known: Mapping[int, int] | None = None,
        progress: Callable[[int], object] = lambda done: None,
    ) -> int | None:
        """The largest batch that is predicted to fit into `capacity` bytes; None: not even 1.

        known: what some batches need, as far as it is known
        progress: called with 1 after each predicted step
        """
        limit = capacity - cuda_formulas.CONTEXT if device == "cuda" else None

        def taken(batch: int) -> float:
            if known and known.get(batch, capacity + 1) <= capacity:
                return known[batch]
            memory = dataclasses.replace(self, batch=batch).predicted(device, limit)
            progress(1)
            return needed(memory)

        return largest(taken, 1, self.batch, capacity, 0.01)

    def _run(self, predictor: type[Predictor]) -> tuple[StepMemory, Predictor]:
        torch.manual_seed(_SEED)
        optimizer = self._optimizer()  # refused, or warned of, before processes are pretended
        with self._processes.pretended() as mesh, without_data() as mode:
            step = self._step(torch.device("cpu"), optimizer, mode, mesh)
            tracker = predictor(mode, step.modules())
            return record_step(tracker, step), tracker

    def _step(
        self,
        device: torch.device,
        optimizer: "MakesOptimizer",
        mode: FakeTensorMode | None = None,
        mesh: DeviceMesh | None = None,
    ) -> "PairStep":
        """On `device`, or without data, but as if it were there."""
        from fastkd.integrations.distillation import Distillation
        from fastkd.memory.pair.step import PairStep

        with device if mode is None else torch.device("meta"):
            student = maker_of("student", self.student)()
            teacher = None if self.teacher is None else maker_of("teacher", self.teacher)()
        for model in filter(None, (student, teacher)):
            if mode is None:
                model.to(device)  # functions may make them elsewhere all the same
            else:
                _pretend_on(device, model, mode)
        with device if mode is None else mode:
            losses = usual_losses(teacher) if self.losses is None else self.losses
            distillation = Distillation(student, losses, teacher, backend=self.backend)
        sizes = self.batch, self.length, self.target_length
        batches = [random_batch(student, teacher, *sizes, device) for _ in range(self.accumulation)]
        with contextlib.nullcontext() if mode is None else mode:
            if mode is not None:
                distillation.presume(batches[0])
            if mesh is not None and self._processes.divide:
                self._divide(distillation, mesh)
        return PairStep(  # optimizers that keep constants have to read them
            distillation,
            optimizer,
            batches,
            self.precision,
            self.clip,
            self._processes,
        )

    def _divide(self, distillation: "Distillation", mesh: DeviceMesh) -> None:
        """As a Trainer does it, what is learned among the student's parameters."""
        from fastkd.integrations.distillation import ATTRIBUTE
        from fastkd.integrations.sharded import divide

        policy = MixedPrecisionPolicy()
        if self.precision == "bfloat16":
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        setattr(distillation.student, ATTRIBUTE, distillation)
        for model in filter(None, (distillation.teacher, distillation.student)):
            divide(model, mesh, mp_policy=policy)
        distillation.keep_presumed()

    def _optimizer(self) -> "MakesOptimizer":
        if callable(self.optimizer):
            return self.optimizer
        from transformers import Trainer, TrainingArguments

        try:
            arguments = TrainingArguments(optim=self.optimizer, report_to=[], use_cpu=True)
            made, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
        except (ImportError, RuntimeError, ValueError) as error:
            raise InputError(f"optim: {str(error).splitlines()[0]}") from None
        return lambda parameters: made(parameters, **settings)


def usual_losses(teacher: object) -> list[CrossEntropy | WordKD]:
    """The losses where none are given."""
    return [CrossEntropy(weight=0.5), WordKD(weight=0.5)] if teacher else [CrossEntropy()]


def _pretend_on(device: torch.device, model: nn.Module, mode: FakeTensorMode) -> None:
    """Puts tensors without data, but on `device`, in place of those of `model`."""
    made: dict[Tensor, Tensor] = {}  # those that several modules share stay shared

    def shaped(tensor: Tensor) -> Tensor:
        if tensor not in made:
            known: Any = mode.fake_tensor_converter
            fake = known.from_meta_and_device(mode, tensor.detach().to("meta"), device)
            parameter = isinstance(tensor, nn.Parameter)
            made[tensor] = nn.Parameter(fake, tensor.requires_grad) if parameter else fake
        return made[tensor]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            held: dict[str, Any] = tensors
            held.update({name: shaped(t) for name, t in held.items() if t is not None})
