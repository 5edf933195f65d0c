"""What the lives of a step's tensors add up to."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from fastkd.memory.scopes import Scope, loss_of
from fastkd.memory.tracker import Block, running_total


@dataclass(frozen=True)
class Peak:
    """The moment at which the most memory was taken."""

    phase: str  # forward | backward | optimizer
    scope: str
    operation: str
    parts: dict[str, int]  # category -> bytes, the whole of the peak


@dataclass(frozen=True)
class LossMemory:
    saved: int  # from the forward pass for the backward pass
    peak: int  # at most at one time, what is saved included


@dataclass(frozen=True)
class StepMemory:
    """Memory of one training step, in bytes."""

    device: str
    start: int  # before the step
    end: int
    peak: int
    at_peak: Peak
    held: dict[str, int]  # what outlives a step, gradients included
    activations: dict[str, int]  # module -> saved from forward to backward
    losses: dict[str, LossMemory]
    timeline: tuple[list[int], list[int]] = field(repr=False)  # events, bytes
    phases: list[tuple[int, str]] = field(repr=False)  # event with which each begins
    resident: int | None = None  # rise of the process's resident peak over the step's start
    allocator: dict[str, int] = field(default_factory=dict)  # a caching allocator's own figures

    @property
    def rise(self) -> int:
        return self.peak - self.start

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, tree: dict[str, Any]) -> "StepMemory":
        return cls(
            **{
                **tree,
                "at_peak": Peak(**tree["at_peak"]),
                "losses": {name: LossMemory(**loss) for name, loss in tree["losses"].items()},
                "timeline": tuple(tree["timeline"]),
                "phases": [(event, phase) for event, phase in tree["phases"]],
            }
        )


class Lives(Protocol):
    """What a `Tracker` saw, or a recording tells."""

    blocks: list[Block]
    time: int
    forward_ends: list[int]  # when backward passes began


def summarise(tracker: Lives, start: int, device: str) -> StepMemory:
    """The step that `tracker` saw from time `start` on, of tensors on `device`."""
    blocks = [block for block in tracker.blocks if block.device.startswith(device)]
    curve = running_total(blocks, tracker.time)
    peak_time = start + int(np.argmax(curve[start:]))
    ends = [time for time in tracker.forward_ends if time > start]
    forward_end = max(ends, key=lambda time: curve[time - 1]) - 1 if ends else peak_time
    born = next(block for block in blocks if block.birth <= peak_time and block.lives(peak_time))
    for block in blocks:
        if block.lives(peak_time) and block.birth > born.birth:
            born = block
    return StepMemory(
        device=device,
        start=int(curve[start - 1]) if start else 0,
        end=int(curve[-1]),
        peak=int(curve[peak_time]),
        at_peak=Peak(
            born.phase,
            _place(born.scope),
            born.operation.removeprefix("aten::"),
            _sums(blocks, peak_time, lambda block: _category(block, forward_end)),
        ),
        held=_sums(
            [block for block in blocks if block.label], tracker.time, lambda block: block.label
        ),
        activations=_sums(
            [block for block in blocks if _category(block, forward_end) == "activations"],
            forward_end,
            lambda block: _module(block.scope),
        ),
        losses=_losses(blocks, forward_end, tracker.time),
        timeline=_thinned(curve[max(start - 1, 0) :]),
        phases=_phases(blocks, start),
    )


def _phases(blocks: Sequence[Block], start: int) -> list[tuple[int, str]]:
    """The step's forward and backward passes and its optimizer, clipping among it."""
    phases: list[tuple[int, str]] = []
    for block in blocks:
        if block.birth >= start and block.phase in ("forward", "backward", "optimizer"):
            phase = block.phase
            if phase == "optimizer" and phases[-2:-1] and phases[-1][1] == "forward":
                phases[-1] = (phases[-1][0], phase)  # the norm of the gradients
            if not phases or phases[-1][1] != phase:
                phases.append((block.birth - max(start - 1, 0), phase))
    if len(phases) > 1 and phases[-1][1] == "forward":  # optimizers that PyTorch's hooks miss
        phases[-1] = (phases[-1][0], "optimizer")
    return phases


def _sums(blocks: Sequence[Block], time: int, key: Callable[[Block], str | None]) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for block in blocks:
        if block.lives(time):
            sums[key(block) or "other"] += block.size
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _category(block: Block, forward_end: int) -> str:
    if block.label is not None:
        return block.label
    if loss_of(block.scope):
        return "losses"
    if block.phase == "forward":
        if block.scope and any(part.split(".")[0] == "teacher" for part in block.scope):
            return "teacher's activations"
        return "activations" if block.lives(forward_end) else "temporaries of the forward pass"
    return f"temporaries of the {block.phase} pass".replace("optimizer pass", "optimizer")


def _losses(blocks: Sequence[Block], forward_end: int, time: int) -> dict[str, LossMemory]:
    by_loss: dict[str, list[Block]] = defaultdict(list)
    for block in blocks:
        name = loss_of(block.scope)
        if name and not block.label:
            by_loss[name].append(block)
    return {
        name: LossMemory(
            saved=sum(block.size for block in own if block.lives(forward_end)),
            peak=int(running_total(own, time).max()),
        )
        for name, own in by_loss.items()
    }


def _module(scope: Scope) -> str:
    """`model.encoder.layers.3.feed_forward.expand` as `model.encoder.layers.*.feed_forward`."""
    if not scope:
        return "outside modules"
    name = re.sub(r"\.\d+(?=\.|$)", ".*", scope[-1])
    head, star, tail = name.partition(".*.")
    return f"{head}{star}{tail.split('.')[0]}" if star else name


def _place(scope: Scope) -> str:
    return scope[-1] if scope and not loss_of(scope) else loss_of(scope) or "outside modules"


def _thinned(curve: np.ndarray, points: int = 2000) -> tuple[list[int], list[int]]:
    """The curve with at most about `points` points: the largest of each stretch."""
    width = -(-len(curve) // points)
    starts = np.arange(0, len(curve), width)
    return starts.tolist(), np.maximum.reduceat(curve, starts).tolist()
