"""Models that FSDP2 divides over processes, as the losses need them: whole where they are used.

A module that `fully_shard` was given is whole within its own forward. The output projection is used
after that, by the loss, so that a projection which is a unit of its own is gathered once more.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial

from fastkd.errors import InputError
from fastkd.functional.divided import divided_as


def is_sharded(model: nn.Module) -> bool:
    """Whether its passes need all processes."""
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    )


def divide_like(teacher: nn.Module, student: nn.Module) -> None:
    """Divides a teacher over the processes that a student is divided over, unless it is already.

    Its units are those of `divide`.
    """
    if is_sharded(teacher):
        return
    root = next((group for module, group in _groups(student)), None)
    if root is None:
        raise InputError(f"{own_class(student).__name__}: expected a student that is divided")
    divide(
        teacher,
        root.mesh_info.mesh,
        mp_policy=root.mp_policy,
        offload_policy=root.offload_policy,
    )


def divide(model: nn.Module, mesh: DeviceMesh, **settings: Any) -> None:
    """Divides a Transformers model by `fully_shard`, each unit whole only while it computes.

    settings: those of `fully_shard`, such as `mp_policy`

    Units are the layers that Transformers names as not to be split, the embeddings and the output
    projection where they share their weights with nothing, and what is left of the model.
    """
    layers = set(getattr(model, "_no_split_modules", None) or ())
    units = [m for m in model.modules() if type(m).__name__ in layers]
    for name in ("get_input_embeddings", "get_output_embeddings"):
        end: Any = getattr(model, name, lambda: None)()
        if type(end) in (nn.Embedding, nn.Linear) and _times_held(model, end.weight) == 1:
            units.append(end)
    for module in (*units, model):
        fully_shard(module, mesh=mesh, **{"reshard_after_forward": True, **settings})


def _times_held(model: nn.Module, parameter: Tensor) -> int:
    held = (p for module in model.modules() for p in module._parameters.values())
    return sum(p is parameter for p in held)


def own_class(module: nn.Module) -> type:
    """Its class, in place of the one that `fully_shard` makes of it."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def isdivided_as(parameter: Tensor) -> bool:
    return isinstance(parameter, DTensor)


def whole(model: nn.Module, parameter: Tensor) -> Tensor:
    """All parts of a parameter of `model` together, with its gradient divided again.

    As the parameter's own unit of FSDP2 does it: gathered in its policy's `param_dtype`, gradients
    summed in its `reduce_dtype` and divided by the number of processes, or by what
    `set_gradient_divide_factor` asks for. Every process must ask.

    Raises InputError for a parameter that something else has divided.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    unit = _Unit.of(model, parameter)
    gathered: Tensor = _Gathered.apply(unit.parameter, unit)  # type: ignore[no-untyped-call]
    return gathered


def parts(model: nn.Module, parameter: DTensor) -> DTensor:
    """A weight in the `param_dtype` of its unit, still divided over the processes by rows.

    A gradient, a sum over the processes, is divided as that unit's gradients are.
    """
    unit = _Unit.of(model, parameter)
    found: DTensor = _Parts.apply(unit.parameter, unit)  # type: ignore[no-untyped-call]
    return found


def is_alone(module: Any) -> bool:
    """Whether it is a unit by itself, divided now, and nobody else has a hook on it."""
    weight = getattr(module, "weight", None)
    if not issubclass(type(module), FSDPModule) or weight is None or not isdivided_as(weight):
        return False
    groups = [group for holder, group in _groups(module) if holder is module]
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return [len(group.modules) for group in groups] == [1] and all(len(h) == 1 for h in hooks)


def needed_again(model: nn.Module, parameter: Tensor, states: Tensor) -> None:
    """Makes the modules that share a unit with `parameter` whole when gradients reach `states`.

    The unit waits for the gradient of what its last module gave, the logits, which no loss uses.
    """
    if not isinstance(parameter, DTensor) or not states.requires_grad:
        return
    unit = _Unit.of(model, parameter)
    if unit.modules > 1:
        states.register_hook(lambda gradient: unit.module.unshard())


@dataclass(frozen=True, eq=False)
class _Unit:
    """What `fully_shard` was given, by one of its modules, and how it exchanges gradients."""

    module: FSDPModule
    parameter: DTensor  # divided over all its processes
    modules: int
    divisor: float  # of summed gradients
    param_dtype: torch.dtype | None
    reduce_dtype: torch.dtype | None

    @classmethod
    def of(cls, model: nn.Module, parameter: DTensor) -> "_Unit":
        """The unit of `model` that holds `parameter`."""
        for module, group in _groups(model):
            found = [held.sharded_param for held in group.fsdp_params if _is_of(held, parameter)]
            if not found:
                continue
            mesh = found[0].device_mesh
            if mesh.ndim != group.mesh_info.mesh.ndim:
                break  # divided by tensor parallelism too
            factor = group.gradient_divide_factor
            policy = group.mp_policy
            return cls(
                module,
                found[0],
                len(group.modules),
                float(mesh.size() if factor is None else factor),
                policy.param_dtype,
                policy.reduce_dtype,
            )
        raise InputError(
            f"{type(model).__name__}: its output projection is divided as "
            f"{parameter.placements}; expected by fully_shard on it or on a module of it"
        )


def _is_of(held: Any, parameter: DTensor) -> bool:
    """Whether it is what FSDP2 holds of `held`, over all processes or over some of them."""
    # The latter where `reshard_after_forward` is a number.
    return any(
        getattr(held, name, None) is parameter
        for name in ("sharded_param", "_sharded_post_forward_param")
    )


def _groups(model: nn.Module) -> Iterator[tuple[FSDPModule, Any]]:
    """Units of FSDP2, which tells how gradients are divided in its own attributes only."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            state: Any = module._get_fsdp_state()
            several = getattr(state, "_fsdp_param_groups", None)
            groups = [state._fsdp_param_group] if several is None else several
            yield from zip(itertools.repeat(module), filter(None, groups), strict=False)


def gathered(model: nn.Module) -> Iterator[Tensor]:
    """Tensors in which FSDP2 has whole parameters while it needs them; empty in between."""
    for _, group in _groups(model):
        for held in group.fsdp_params:
            yield from getattr(held, "all_gather_outputs", ())


class _Gathered(torch.autograd.Function):
    """A parameter's parts together; in the backward, its part of the gradients together."""

    @staticmethod
    def forward(ctx: Any, parameter: DTensor, unit: _Unit) -> Tensor:
        ctx.unit, ctx.like = unit, parameter.detach()
        mesh = parameter.device_mesh
        part = parameter.to_local().to(mesh.device_type, unit.param_dtype or parameter.dtype)
        return divided_as(part, parameter).full_tensor()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        unit, like = ctx.unit, ctx.like
        mesh = like.device_mesh
        gradient = gradient.to(unit.reduce_dtype or gradient.dtype)
        summed = DTensor.from_local(gradient, mesh, [Partial()] * mesh.ndim, run_check=False)
        part = summed.redistribute(placements=like.placements).to_local() / unit.divisor
        # Where parameters lie on the host, so do their gradients.
        part = part.to(like.to_local().device, like.dtype)
        return divided_as(part, like), None


class _Parts(torch.autograd.Function):
    """A parameter in its unit's type."""

    @staticmethod
    def forward(ctx: Any, parameter: DTensor, unit: _Unit) -> DTensor:
        ctx.unit, ctx.like = unit, parameter.detach()
        device = parameter.device_mesh.device_type
        part = parameter.to_local().to(device, unit.param_dtype or parameter.dtype)
        return divided_as(part, parameter)

    @staticmethod
    def backward(ctx: Any, gradient: DTensor) -> tuple[Tensor, None]:
        like = ctx.like
        part = gradient.to_local().to(like.to_local().device, like.dtype) / ctx.unit.divisor
        return divided_as(part, like), None
