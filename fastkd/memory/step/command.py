"""What `fastkd memory` does: chooses the update, measures or predicts its step, and says so."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fastkd.config.tree import Config, ModelConfig
from fastkd.memory.step import cuda_formulas
from fastkd.memory.step.fit import (
    Progress,
    available,
    largest_batch,
    needed,
    predicted_steps,
    with_batch_tokens,
)
from fastkd.memory.step.measure import measure_in_own_process, measure_step
from fastkd.memory.step.report import StepMemory
from fastkd.memory.step.search import ENOUGH
from fastkd.memory.step.tables import step_tables
from fastkd.memory.step.training_step import teacher_config
from fastkd.memory.step.workload import Update, Workload, workload
from fastkd.tables import Table, size

UNMEASURED = (
    "Predicted for CUDA: the tensors as they are seen on a CPU, attention's workspaces and"
    " PyTorch's allocator by formulas that were not compared with a GPU;"
    f" {size(cuda_formulas.CONTEXT)} assumed for the CUDA context."
)


@dataclass(frozen=True)
class Question:
    config: Config
    teacher: ModelConfig | None  # in place of the one in the teacher's run folder
    device: torch.device | None  # None: predict for a GPU of `capacity`
    capacity: int | None
    batch_tokens: tuple[int, ...] = ()
    processes: int = 1
    largest: bool = True
    plot: Path | None = None
    snapshot: Path | None = None

    @property
    def kind(self) -> str:
        """Of the device: cpu or cuda."""
        return "cpu" if self.device is not None and self.device.type == "cpu" else "cuda"


Watch = Callable[[str], contextlib.AbstractContextManager[Progress]]


def unwatched(title: str) -> contextlib.AbstractContextManager[Progress]:
    return contextlib.nullcontext(lambda done: None)


def answer(question: Question, watch: Watch = unwatched) -> Iterator[str | Table]:
    """Tables and lines for a terminal, one after another as they are known.

    `watch` opens a count of the steps that are predicted between two of them.
    """
    config = question.config
    teacher = question.teacher or teacher_config(config)
    work = workload(config)
    columns, known = [], {}
    for batch_tokens in question.batch_tokens or (config.training.batch_tokens,):
        with watch("steps predicted") as progress:
            steps = predicted_steps(
                config,
                work,
                teacher,
                batch_tokens,
                question.kind,
                progress=progress,
                processes=question.processes,
            )
            update, predicted = max(steps, key=lambda step: needed(step[1]))
            measured = _measured(question, work, teacher, batch_tokens, update)
        known[batch_tokens] = needed(predicted)
        columns.append((f"{batch_tokens:,} tokens", measured or predicted))
        remark = f"Predicted{of_processes(question.processes, config.training.sharding)}."
        if measured is not None:
            remark = compared(predicted, measured)
        yield f"{batch_tokens:,} tokens: {update.describe()}. {remark}"
    yield f"Sentences: {work.source}."
    title = "Memory of a training step"
    yield from step_tables(title, columns)
    if question.device is None:
        yield UNMEASURED
    if question.plot is not None:
        from fastkd.memory.step.plots import plot_timeline

        plot_timeline(columns, title, question.plot)
        yield f"timeline: {question.plot}"
    if question.largest:
        with watch("steps predicted for the largest batch") as progress:
            found = _largest(question, work, teacher, known, progress)
        yield found


def _measured(
    question: Question,
    work: Workload,
    teacher: ModelConfig | None,
    batch_tokens: int,
    update: Update,
) -> StepMemory | None:
    """The step in earnest; None where there is no device to take it on."""
    if question.device is None or question.processes > 1:
        return None
    config = with_batch_tokens(question.config, batch_tokens)
    if question.kind == "cpu":
        return measure_in_own_process(config, work.vocabulary, teacher, update)
    return measure_step(
        config, work.vocabulary, teacher, update, question.device, question.snapshot
    )


def of_processes(number: int, sharding: str) -> str:
    """Whose memory it is."""
    return "" if number == 1 else f", of one of {number} devices with sharding {sharding}"


def compared(predicted: StepMemory, measured: StepMemory) -> str:
    """How near the prediction came."""
    ours, theirs = (m.allocator.get("peak allocated", m.peak) for m in (predicted, measured))
    return (
        f"Measured; the prediction was {size(ours)} of {size(theirs)} ({ours / theirs - 1:+.1%})."
    )


def _largest(
    question: Question,
    work: Workload,
    teacher: ModelConfig | None,
    known: dict[int, int],
    progress: Progress,
) -> str:
    capacity = question.capacity or available(question.device)
    found = largest_batch(
        question.config,
        work,
        teacher,
        question.kind,
        capacity,
        known,
        progress,
        processes=question.processes,
    )
    if found is None:
        return f"Not even the smallest batch is predicted to fit into {size(capacity)}."
    if found >= ENOUGH:
        return f"training.batch_tokens = {ENOUGH:,} or more is predicted to fit {size(capacity)}."
    return (
        f"Largest batch predicted to fit into {size(capacity)}: training.batch_tokens = {found:,}."
    )
