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
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial

from fastkd.errors import InputError
from fastkd.functional.divided import divided_as
from fastkd.integrations.unwrapped import projection_of


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

    Units are the layers that Transformers names as not to be split, the output projection as
    `divide_head` has it, the embeddings, these and layers where they share no weight with others,
    and what is left of the model.
    """
    settings = {"reshard_after_forward": True, **settings}
    layers = set(getattr(model, "_no_split_modules", None) or ())
    divide_head(model, mesh, **settings)
    named = [m for m in model.modules() if type(m).__name__ in layers]
    units = [m for m in named if not _shares(model, m)]
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    if type(embeddings) is nn.Embedding and len(holders(model, embeddings.weight)) == 1:
        units.append(embeddings)
    for module in (*units, model):
        fully_shard(module, mesh=mesh, **settings)


def divide_head(model: nn.Module, mesh: DeviceMesh | None = None, **settings: Any) -> None:
    """Makes a unit of a Transformers model's output projection, which then is never whole.

    mesh, settings: those of `fully_shard`

    Embeddings that share its weight are in that unit, and several of them become one module. It is
    for models that somebody else divides afterwards, as Accelerate does. Where others share the
    weight or the bias, or divide it already, nothing is done.
    """
    head = projection_of(model)
    if type(head) is not nn.Linear or isinstance(head.weight, DTensor):
        return
    if head.bias is not None and len(holders(model, head.bias)) > 1:  # as BERT's
        return
    tied = [module for module in holders(model, head.weight) if module is not head]
    if not tied:
        fully_shard(head, mesh=mesh, **settings)
    elif all(looks_up(other) and _are_one(tied[0], other) for other in tied):
        for other in tied[1:]:
            put_in_place(model, other, tied[0])
        fully_shard([tied[0], head], mesh=mesh, **settings)


def holders(model: nn.Module, parameter: Tensor) -> list[nn.Module]:
    """The modules of which it is a parameter."""
    return [m for m in model.modules() if any(p is parameter for p in m._parameters.values())]


def _shares(model: nn.Module, module: nn.Module) -> bool:
    """Whether a parameter of it, which is in no unit yet, is one of what lies outside of it too."""
    own = {id(p) for p in module.parameters() if not isinstance(p, DTensor)}
    within = set(module.modules())
    return any(
        id(p) in own for m in model.modules() if m not in within for p in m._parameters.values()
    )


def looks_up(module: Any) -> bool:
    """Whether all that it does with its weight is to look up rows of it by ids."""
    if not isinstance(module, nn.Embedding) or module.max_norm is not None:
        return False
    kind: Any = own_class(module)
    usual = kind.forward is nn.Embedding.forward or kind.__name__.endswith("ScaledWordEmbedding")
    return usual and not (module.sparse or module.scale_grad_by_freq)


def _are_one(first: nn.Module, other: nn.Module) -> bool:
    """Whether the one can stand where the other does."""
    if first is other:
        return True
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (first, other))
    told = [{k: v for k, v in vars(m).items() if k[0] != "_"} for m in (first, other)]
    return type(first) is type(other) and told[0] == told[1] and not (hooked or other._buffers)


def put_in_place(
    model: nn.Module, module: nn.Module, other: nn.Module
) -> list[tuple[dict[str, Any], str]]:
    """Puts `other` wherever `model` has `module`, and tells where that was."""
    places: list[tuple[dict[str, Any], str]] = [
        (parent._modules, name)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is module
    ]
    for modules, name in places:
        modules[name] = other
    return places


def own_class(module: nn.Module) -> type:
    """Its class, in place of the one that `fully_shard` makes of it."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def whole(model: nn.Module, parameter: Tensor) -> Tensor:
    """All parts of a parameter of `model` together, with its gradient divided again.

    As the parameter's own unit of FSDP2 does it: gathered in its policy's `param_dtype`, gradients
    summed in its `reduce_dtype` and divided by the number of processes, or by what
    `set_gradient_divide_factor` asks for. Every process must ask.

    Raises InputError for a parameter that something else has divided.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    unit = Unit.of(model, parameter)
    gathered: Tensor = _Gathered.apply(unit.parameter, unit)  # type: ignore[no-untyped-call]
    return gathered


def parts(model: nn.Module, parameter: DTensor) -> DTensor:
    """A weight in the `param_dtype` of its unit, still divided over the processes by rows.

    A gradient, a sum over the processes, is divided as that unit's gradients are.
    """
    unit = Unit.of(model, parameter)
    found: DTensor = _Parts.apply(unit.parameter, unit)  # type: ignore[no-untyped-call]
    return found


def beside(module: Any) -> list[nn.Module] | None:
    """Embeddings of the same weight that are one unit of FSDP2 with an output projection.

    None where it is divided no longer, shares its unit with anything else, or where somebody else
    has a hook on one of them.
    """
    weight = getattr(module, "weight", None)
    if not issubclass(type(module), FSDPModule) or not isinstance(weight, DTensor):
        return None
    groups = [group for holder, group in _groups(module) if holder is module]
    if len(groups) != 1 or not any(member is module for member in groups[0].modules):
        return None
    members: list[Any] = list(groups[0].modules)
    if any(len(m._forward_hooks) != 1 or len(m._forward_pre_hooks) != 1 for m in members):
        return None
    others = [member for member in members if member is not module]
    return others if all(looks_up(m) and m.weight is weight for m in others) else None


def needed_again(model: nn.Module, parameter: Tensor, states: Tensor) -> None:
    """Makes the modules that share a unit with `parameter` whole when gradients reach `states`.

    The unit waits for the gradient of what its last module gave, the logits, which no loss uses.
    """
    if not isinstance(parameter, DTensor) or not states.requires_grad:
        return
    unit = Unit.of(model, parameter)
    if unit.modules > 1:
        states.register_hook(lambda gradient: unit.module.unshard())


@dataclass(frozen=True, eq=False)
class Unit:
    """What `fully_shard` was given, by one of its modules, and how it exchanges gradients."""

    module: FSDPModule
    parameter: DTensor  # divided over all its processes
    modules: int
    divisor: float  # of summed gradients
    param_dtype: torch.dtype | None
    reduce_dtype: torch.dtype | None
    output_dtype: torch.dtype | None

    @classmethod
    def of(cls, model: nn.Module, parameter: DTensor) -> "Unit":
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
                policy.output_dtype,
            )
        raise InputError(
            f"{type(model).__name__}: its output projection is divided as "
            f"{parameter.placements}; expected by fully_shard on it or on a module of it"
        )

    def computed(self, parameter: DTensor) -> DTensor:
        """Divided as it is, where and in the type in which the unit computes."""
        device = parameter.device_mesh.device_type
        part = parameter.to_local().to(device, self.param_dtype or parameter.dtype)
        return divided_as(part, parameter)

    def gradient(self, summed: Tensor, like: DTensor) -> DTensor:
        """This process's part of a gradient that is summed over the processes."""
        # Where parameters lie on the host, so do their gradients.
        return divided_as(summed.to(like.to_local().device, like.dtype) / self.divisor, like)


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


def whole_state(model: nn.Module) -> dict[str, Any]:
    """A divided model's state whole, on the host of the first process; every process must ask.

    As `save_pretrained(folder, state_dict=…)` takes it: weights that are shared are one tensor.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return shared_again(model, get_model_state_dict(model, options=options))


def shared_again(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """A state in which what `model` shares is one tensor, though each name was gathered by itself.

    Else files have it once for each name.
    """
    first: dict[Tensor, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in state:
            state[name] = state[first.setdefault(parameter, name)]
    return state


@dataclass(frozen=True)
class Filled:
    """What FSDP2 has a unit's whole parameters in while it needs them; nothing before it first did.

    Empty in between.
    """

    group: Any

    def __call__(self) -> list[Tensor]:
        found = [getattr(held, "all_gather_outputs", ()) for held in self.group.fsdp_params]
        return [tensor for each in found for tensor in each] if all(found) else []


def gathered(model: nn.Module) -> list[Filled]:
    """Of each unit."""
    return [Filled(group) for _, group in _groups(model)]


class _Gathered(torch.autograd.Function):
    """A parameter's parts together; in the backward, its part of the gradients together."""

    @staticmethod
    def forward(ctx: Any, parameter: DTensor, unit: Unit) -> Tensor:
        ctx.unit, ctx.like = unit, parameter.detach()
        return unit.computed(ctx.like).full_tensor()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        unit, like = ctx.unit, ctx.like
        mesh = like.device_mesh
        gradient = gradient.to(unit.reduce_dtype or gradient.dtype)
        summed = DTensor.from_local(gradient, mesh, [Partial()] * mesh.ndim, run_check=False)
        return unit.gradient(summed.redistribute(placements=like.placements).to_local(), like), None


class _Parts(torch.autograd.Function):
    """A parameter in its unit's type."""

    @staticmethod
    def forward(ctx: Any, parameter: DTensor, unit: Unit) -> DTensor:
        ctx.unit, ctx.like = unit, parameter.detach()
        return unit.computed(ctx.like)

    @staticmethod
    def backward(ctx: Any, gradient: DTensor) -> tuple[Tensor, None]:
        return ctx.unit.gradient(gradient.to_local(), ctx.like), None
