"""What mixtures of experts add to their cross-entropy for their routers."""

from typing import Any, NamedTuple

from torch import Tensor, nn

# Component: the fields of a model's output whose sum it is, the settings that weight it.
_TERMS = {
    "router": (
        ("aux_loss", "encoder_aux_loss", "decoder_aux_loss"),
        ("router_aux_loss_coef", "aux_loss_coef"),
    ),
    "router_z": (("encoder_z_loss", "decoder_z_loss"), ("router_z_loss_coef",)),
}


class RouterLoss(NamedTuple):
    name: str
    coefficient: float
    value: Tensor


def router_losses(model: nn.Module, output: Any) -> list[RouterLoss]:
    """Those in a model's output, with what the model weights each: none of weight 0."""
    losses = []
    for name, (fields, settings) in _TERMS.items():
        # Stacks without experts have the number 0.
        found = [getattr(output, field, None) for field in fields]
        values = [value for value in found if isinstance(value, Tensor)]
        if values and (coefficient := _setting(model, settings)):
            total = sum(values[1:], start=values[0])
            losses.append(RouterLoss(name, coefficient, total))
    return losses


def _setting(model: nn.Module, names: tuple[str, ...]) -> float:
    config: Any = model.config
    for holder in (model, config, getattr(config, "text_config", None)):
        for name in names:
            if isinstance(found := getattr(holder, name, None), int | float):
                return float(found)
    return 0.0
