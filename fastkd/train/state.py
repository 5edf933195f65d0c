"""What a checkpoint holds of a run in training, and how training goes on from it."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch
from torch import Tensor

from fastkd.methods.objective import Objective
from fastkd.nn.transformer import Transformer
from fastkd.runs.folder import MODEL, OBJECTIVE, STATE, RunFolder, Saved
from fastkd.runs.weights import load_weights, weights_of
from fastkd.train.meter import Meter
from fastkd.train.optimizer import load_optimizer_tensors, optimizer_tensors
from fastkd.train.position import Position
from fastkd.train.ranks import Ranks
from fastkd.train.sharding import whole
from fastkd.train.update import Updater


def save(
    updater: Updater, run: RunFolder, position: Position, meter: Meter, kept: int | None
) -> None:
    """Writes a checkpoint; its model weights are the moving average where there is one.

    kept: how many of the newest stay; None: all
    """
    state = _under("optimizer.", optimizer_tensors(updater.optimizer))
    sums, counts = meter.state(updater.ranks)
    state |= _under("meter.", sums)
    model = weights_of(updater.model)
    if updater.average:
        state |= _under("model.", model)
        model = updater.average.tensors()
    state |= _under("objective.", updater.objective.moving_tensors())
    groups = {MODEL: model, OBJECTIVE: weights_of(updater.objective), STATE: state}
    first = updater.ranks.first
    if updater.sharded:
        groups = {name: _gathered(tensors, first) for name, tensors in groups.items()}
    if first:
        meta = {**asdict(position), "meter": counts}
        run.save(position.update, groups, meta, kept)
    updater.ranks.wait()


def take_state(updater: Updater, saved: Saved) -> Position:
    """The rest of a checkpoint whose weights are taken; the position that it gives."""
    if updater.average:
        updater.average.load(saved.groups[MODEL])
    load_optimizer_tensors(updater.optimizer, _below("optimizer.", saved.groups[STATE]))
    known = Position.__dataclass_fields__
    return Position(**{k: v for k, v in saved.meta.items() if k in known})


def take_meter(meter: Meter, saved: Saved, ranks: Ranks, device: torch.device) -> None:
    """Goes on with the sums of what is to be logged next."""
    counts = saved.meta.get("meter")
    if counts:
        sums = _below("meter.", saved.groups[STATE])
        meter.go_on({name: tensor.to(device) for name, tensor in sums.items()}, counts, ranks)


def take_weights(model: Transformer, objective: Objective, saved: Saved, averaged: bool) -> None:
    """Continues with a checkpoint's weights, which are not divided yet.

    averaged: whether its model weights are a moving average, beside those that were trained
    """
    state = saved.groups[STATE]
    trained = _below("model.", state) if averaged else saved.groups[MODEL]
    load_weights(model, trained, saved.folder)
    load_weights(objective, saved.groups[OBJECTIVE], saved.folder)
    moving = _below("objective.", state)
    for name, tensor in objective.moving_tensors().items():
        tensor.copy_(moving[name])


@contextlib.contextmanager
def evaluated(updater: Updater, build: Callable[[], Transformer]) -> Iterator[Transformer]:
    """The model as a checkpoint has it, whole, and in evaluation mode.

    build: makes one of the same shape, to be filled where this process holds only parts
    """
    model, average = updater.model, updater.average
    if updater.sharded:
        weights = average.tensors() if average else weights_of(model)
        model = build().to(updater.device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(whole(weights[name]))
        yield model.eval()
        return
    model.eval()
    if average:
        average.swap()
    yield model
    if average:
        average.swap()


def _gathered(tensors: dict[str, Tensor], first: bool) -> dict[str, Tensor]:
    """Whole tensors in the first process's memory, one after another; none in the others'."""
    gathered = {}
    for name, tensor in tensors.items():
        tensor = whole(tensor)
        if first:
            gathered[name] = tensor.cpu()
    return gathered


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
