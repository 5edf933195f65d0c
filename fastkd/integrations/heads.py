"""What makes logits of a Transformers model's last hidden states, without making them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fastkd.errors import InputError
from fastkd.functional.divided import is_divided
from fastkd.integrations.embeddings import ByParts
from fastkd.integrations.projections import (
    Weights,
    asked,
    is_plain,
    size_of,
    weights_of,
)
from fastkd.integrations.sharded import beside, needed_again, parts, put_in_place, whole
from fastkd.integrations.undisturbed import undisturbed
from fastkd.integrations.unwrapped import projection_of
from fastkd.terms.passes import Projection

_PROBE = 1000.0  # far beyond usual logits, so that a soft cap bends them
_SMALL = 2.0**-17  # of the probe, too small to be bent


@dataclass(frozen=True)
class _Affine:
    """What a model does to the output z of its projection.

    scale · z + offset; or, with a cap c, c · tanh(scale · z / c)
    """

    scale: float
    offset: Tensor | None = None  # (V,); None: zeros
    cap: float | None = None


@dataclass(eq=False)
class Head:
    """The output projection of `model`, and the hidden states that went into it.

    frozen: whether it never trains, so that a weight can be kept of one that shows none
    by_parts: whether one that FSDP2 divides may exchange its gradient before the backward pass

    Raises InputError for a model whose logits are no linear function of hidden states.
    """

    model: nn.Module
    frozen: bool = False
    by_parts: bool = True  # whether one that processes divide comes part by part
    hidden: Tensor | None = field(default=None, init=False)  # (B, T, D) of the last pass
    _affine: _Affine | None = field(default=None, init=False)
    _learned_of: Any = field(default=None, init=False)
    _asked: tuple[nn.Module, Weights] | None = field(default=None, init=False)
    _whole: dict[tuple[int, bool], Tensor] = field(default_factory=dict, init=False)
    _aside: nn.Module | None = field(default=None, init=False)  # while another stands in for it

    def __post_init__(self) -> None:
        self.name = type(self.model).__name__
        self._check(self.module)

    @property
    def module(self) -> nn.Module:
        """As the model has it now: resizing embeddings makes another."""
        if self._aside is not None:
            return self._aside
        module: nn.Module = projection_of(self.model)
        return module

    def _check(self, module: Any) -> None:
        parameters = () if module is None else module.parameters()
        if any(hasattr(parameter, "ds_id") for parameter in parameters):
            raise InputError(
                f"{self.name}: its parameters are divided by DeepSpeed's ZeRO-3; expected FSDP2, "
                "as fastkd.integrations.sharded.divide divides a model"
            )
        if self.frozen and not is_plain(module) and hasattr(module, "out_features"):
            return
        if module is None:
            raise InputError(
                f"{self.name}: it tells no output embeddings; expected get_output_embeddings() to "
                "give the nn.Linear that makes its logits, or token_distillation_loss with the "
                "logits themselves"
            )
        if weights_of(module) is None:
            raise InputError(
                f"{self.name}: expected a model whose output embeddings are nn.Linear, which "
                "LoRA or modules_to_save may adapt, or token_distillation_loss with the logits "
                f"themselves, not {type(module).__module__}.{type(module).__qualname__}"
            )

    @property
    def vocabulary(self) -> int:
        return size_of(self.module)[0]

    @property
    def width(self) -> int:
        return size_of(self.module)[1]

    @property
    def device(self) -> torch.device:
        """Where its weight lies; weights that are offloaded take batches from anywhere."""
        tensors = (*self.module.parameters(), *self.model.parameters())
        present = (tensor.device for tensor in tensors if not tensor.is_meta)
        return next(present, torch.device("cpu"))

    @property
    def _weights(self) -> Weights:
        module: Any = self.module
        if self.by_parts and is_plain(module) and is_divided(module.weight):
            bias = None if module.bias is None else self._held(module.bias)
            return Weights(parts(self._holder, module.weight), bias)
        if (found := weights_of(module, self._held)) is not None:
            return found
        if self._asked is None or self._asked[0] is not module:
            self._asked = module, asked(module, self.taken, self.name)
        return self._asked[1]

    @property
    def taken(self) -> Tensor:
        """The last states of the last pass, (B, T, width)."""
        if self.hidden is None:
            raise InputError(f"{self.name}: its pass did not call its output embeddings")
        return self.hidden

    def hold(self) -> None:
        """Has the backward of `taken` find what it needs, though no loss uses the logits."""
        if self._aside is None:
            for parameter in self.module.parameters():
                needed_again(self._holder, parameter, self.taken)

    @contextlib.contextmanager
    def taking(self, logits: int = 0) -> Iterator[None]:
        """Within, passes leave their last states in `hidden`, and logits of so many positions."""
        self.hidden = None
        module = self.module
        # Kernels of quantised layers may divide by the number of rows.
        least = 1 if self.frozen and not is_plain(module) else 0

        def take(module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
            self.hidden = arguments[0]
            return (arguments[0][..., : max(logits, least), :],)

        with contextlib.ExitStack() as stack:
            if logits == 0 and (embeddings := beside(module)) is not None:
                # FSDP2 would gather it for logits that nobody wants, and for a few rows.
                for other in embeddings:
                    stack.enter_context(_standing(self.model, other, ByParts(other)))
                module = stack.enter_context(self._stood_in())
            # After the hooks that others have on it, so that it takes what they make of the states.
            stack.callback(module.register_forward_pre_hook(take).remove)
            try:
                yield
            finally:
                self.hidden = None
                self._whole.clear()

    @contextlib.contextmanager
    def _stood_in(self) -> Iterator[nn.Module]:
        """Within, the model has a module without weights in place of the projection."""
        aside = self.module
        standing = _WithoutRows(aside)
        with _standing(self.model, aside, standing):
            self._aside = aside
            try:
                yield standing
            finally:
                self._aside = None

    @property
    def _holder(self) -> nn.Module:
        """What the projection is found in."""
        return self.model if self._aside is None else self._aside

    def scaled(self, hidden: Tensor) -> Tensor:
        """States of which `projection` makes the model's logits."""
        assert self._affine is not None
        return hidden * self._affine.scale if self._affine.scale != 1 else hidden

    @property
    def projection(self) -> Projection:
        assert self._affine is not None
        weights = self._weights
        weight, bias = weights.weight, weights.bias
        scale, offset = self._affine.scale, self._affine.offset
        if scale != 1:
            bias = None if bias is None else bias * scale
        if offset is not None:
            offset = offset.to(weight.device, weight.dtype)
            bias = offset if bias is None else bias + offset
        return Projection(weight, bias, self._affine.cap, weights.extended)

    def _held(self, parameter: Tensor) -> Tensor:
        """A parameter of the projection, gathered once for all passes within `taking`."""
        if not is_divided(parameter):
            return parameter
        key = id(parameter), torch.is_grad_enabled() and parameter.requires_grad
        if key not in self._whole:
            self._whole[key] = whole(self._holder, parameter)
        return self._whole[key]

    @property
    def _kind(self) -> Any:
        """What of the projection makes something else of its output when it changes."""
        return (self.module, size_of(self.module), tuple(self.module._forward_hooks))

    def learn(self, inputs: dict[str, Any]) -> None:
        """Finds out, once, what the model does to the output of its projection.

        inputs: of one pass of the model, which is run twice, on a projection that gives known
            values at one position
        """
        module = self.module
        if self._affine is not None and self._learned_of == self._kind:
            return
        self._check(module)
        ramp = _ramp(self.vocabulary)
        with undisturbed(self.model), self.taking(logits=1):
            offset = self._logits_for(torch.zeros_like(ramp), inputs)
            bent = self._logits_for(ramp, inputs)
            small = self._logits_for(ramp * _SMALL, inputs)
        self._affine = self._fitted(ramp, offset, bent, small)
        self._learned_of = self._kind

    def presume(self, inputs: dict[str, Any]) -> None:
        """In place of `learn`, where parameters have no data: an unknown offset counts as zeros."""
        self._check(self.module)
        with torch.no_grad(), self.taking(logits=1):
            ramp = _ramp(self.vocabulary)
            found = [self._logits_for(values, inputs) for values in (0 * ramp, ramp, ramp * _SMALL)]
        known = not any(isinstance(logits, FakeTensor) for logits in found)
        self._affine = self._fitted(ramp, *found) if known else _Affine(1.0)
        self._learned_of = self._kind

    def keep(self) -> None:
        """What was learned, or presumed, after FSDP2 has put its hooks on the projection."""
        self._learned_of = self._kind

    def _fitted(self, ramp: Tensor, offset: Tensor, bent: Tensor, small: Tensor) -> _Affine:
        """What gives these logits of zeros, of the ramp and of one too small to be bent."""
        # In float64, or offsets of -inf and large sums would hide the scale.
        straight, slope = bent.double() - offset.double(), ramp.double()
        scale = float((straight * slope).sum() / slope.square().sum())
        unit = _unit(bent)
        rounded = unit * (bent.double().abs() + offset.double().abs())
        if scale and bool(((straight - scale * slope).abs() <= 1e-4 * _PROBE + rounded).all()):
            return _Affine(_round(scale), offset if bool(offset.any()) else None)
        cap, slope = float(bent.abs().max()), slope * _SMALL
        unbent = cap * (small.double() / cap).atanh() if cap else small.double()
        scale = _round(float((unbent * slope).sum() / slope.square().sum()))
        capped = cap * (scale * ramp.double() / cap).tanh() if cap else straight
        close = torch.allclose(bent.double(), capped, rtol=unit, atol=1e-4 * cap)
        if not cap or bool(offset.any()) or not close:
            raise InputError(f"{self.name}: {self._complaint()}")
        return _Affine(scale, cap=cap)

    def _logits_for(self, values: Tensor, inputs: dict[str, Any]) -> Tensor:
        """(V,): the model's logits where its projection gives `values` (V,)."""

        def give(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            # Of `output` itself nothing is to be known.
            return values.to(output.device).expand(output.shape)

        # Before the hooks that others have on it, whose work belongs to what is learned.
        hook = self.module.register_forward_hook(give, prepend=True)
        try:
            logits = self.model(**inputs).logits
        finally:
            hook.remove()
        last: Tensor = logits.flatten(0, -2)[-1].float().cpu()
        return last

    def _complaint(self) -> str:
        config = self.model.config.to_dict()  # type: ignore[operator,union-attr]
        caps = [f"{key}={value}" for key, value in config.items() if "softcap" in key and value]
        found = f" ({', '.join(caps)})" if caps else ""
        return (
            f"its logits are no scale, offset or soft cap of its output projection{found}; "
            "expected token_distillation_loss with the logits themselves"
        )


@contextlib.contextmanager
def _standing(model: nn.Module, module: nn.Module, other: nn.Module) -> Iterator[None]:
    """Within, `other` is wherever `model` has `module`."""
    places = put_in_place(model, module, other)
    try:
        yield
    finally:
        for modules, name in places:
            modules[name] = module


class _WithoutRows(nn.Module):
    """Makes no logits of no states, as a linear layer; anything else of it is `linear`'s."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self._linear = (linear,)  # in a tuple, so that its parameters are not this module's

    def forward(self, states: Tensor) -> Tensor:
        assert states.shape[-2] == 0
        return states.new_empty(*states.shape[:-1], size_of(self._linear[0])[0])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._linear[0], name)


def _ramp(vocabulary: int) -> Tensor:
    """(V,): known values, which 16-bit types hold as they are."""
    return torch.linspace(-_PROBE, _PROBE, vocabulary).bfloat16().float()


def _unit(logits: Tensor) -> float:
    """How far, of their size, logits may have been rounded: FSDP2 casts what a model gives."""
    for kind in (torch.bfloat16, torch.float16):
        if torch.equal(logits.to(kind).to(logits.dtype), logits):
            return torch.finfo(kind).eps / 2
    return 0.0


def _round(scale: float) -> float:
    return 1.0 if abs(scale - 1) < 1e-6 else scale
