"""The model's own loss as the judge of what is computed in its place."""

import itertools
from typing import Any

import torch
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from fastkd.errors import InputError
from fastkd.functional import linear_token_distillation_loss
from fastkd.integrations.models import COLUMNS, IGNORED, Inputs, LanguageModel
from fastkd.integrations.undisturbed import undisturbed

Kind = frozenset[tuple[str, int]]

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")


def judge(model: LanguageModel, inputs: Inputs, verify: bool) -> None:
    """Learns from the model's own loss of a batch which labels are shifted and what is added.

    Two passes in evaluation mode, without gradient: the model's own with `labels`, and one that
    withholds them, as training does. The cross-entropy of the states that entered the head in the
    second, with labels shifted or not, with router losses or not, is compared with the first's
    loss; what is nearest holds from then on.

    Raises InputError where nothing is as near as the precision of the logits explains, if `verify`.
    """
    inputs = _on(model.head.linear.weight.device, inputs)
    labels: Tensor = inputs["labels"]
    with undisturbed(model.model):
        given = {k: v for k, v in inputs.items() if k not in (*COLUMNS, "num_items_in_batch")}
        state = torch.get_rng_state()
        output = model.model(**given)
        own = getattr(output, "loss", None)
        if own is None or own.numel() != 1:
            raise InputError(f"{model.name}: gives no loss for labels; expected one")
        error = _error(output.logits, labels)
        del output
        torch.set_rng_state(state)
        read = model.read(inputs)
        model.head.learn(read)
        with model.head.taking(), model.reading(read):
            ours = model.model(**read)
            hidden = model.hidden_of(labels)
            found = _nearest(model, hidden, labels, getattr(ours, "aux_loss", None), float(own))
    model.shifts, model.router, value = found
    tolerance = error + 1e-5 * (1 + abs(float(own)))
    if verify and not abs(value - float(own)) <= tolerance:
        raise InputError(
            f"{model.name}: its own loss of a batch of {', '.join(inputs)} is {float(own):.6g}, "
            f"the cross-entropy of its states {value:.6g}; expected a model that is trained by "
            "cross-entropy (verify=False trains by the latter all the same)"
        )


def _nearest(
    model: LanguageModel, hidden: Tensor, labels: Tensor, aux: Tensor | None, own: float
) -> tuple[bool, float, float]:
    """Whether labels are shifted, what router losses are added with, and the loss of both."""
    usual = _is_causal(model)
    shifts = [usual, not usual] if labels.shape[1] > 1 else [usual]  # a tie falls to the first
    if not bool((labels != IGNORED).any()):
        return usual, _coefficient(model) if aux is not None else 0.0, own
    added = [(0.0, 0.0)]
    if aux is not None and (coefficient := _coefficient(model)):
        added.append((coefficient, coefficient * float(aux)))
    candidates = []
    for shifted, (coefficient, more) in itertools.product(shifts, added):
        value = _cross_entropy(model, hidden, labels, shifted) + more
        candidates.append((abs(value - own), shifted, coefficient, value))
    nearest = min(candidates, key=lambda candidate: candidate[0])
    return nearest[1:]


def _cross_entropy(model: LanguageModel, hidden: Tensor, labels: Tensor, shifted: bool) -> float:
    head = model.head
    states, target = (hidden[:, :-1], labels[:, 1:]) if shifted else (hidden, labels)
    losses = linear_token_distillation_loss(
        head.scaled(states),
        head.projection.weight,
        target=target,
        student_bias=head.projection.bias,
        student_soft_cap=head.projection.soft_cap,
        ce_weight=1.0,
        kd_weight=0.0,
        ignore_index=IGNORED,
        reduction="mean",
    )
    return float(losses.ce)


def _is_causal(model: LanguageModel) -> bool:
    """What models of this kind do as a rule, where their loss cannot tell."""
    if model.is_encoder_decoder:
        return False
    return getattr(model.model, "loss_function", None) is ForCausalLMLoss


def _coefficient(model: LanguageModel) -> float:
    config: Any = model.model.config
    for holder in (model.model, config, getattr(config, "text_config", None)):
        for name in _COEFFICIENTS:
            if isinstance(found := getattr(holder, name, None), int | float):
                return float(found)
    return 0.0


def _error(logits: Tensor, labels: Tensor) -> float:
    """How far rounding of the logits moves their mean cross-entropy.

    Logits z with the relative error u of their type move −log p by at most 2u · max |z|; products
    of other shapes have sums of another order, for which the bound is doubled twice.
    """
    largest = logits.detach().abs().nan_to_num(posinf=0.0).amax(-1)
    usual = float(largest.float().mean()) if largest.numel() else 0.0
    return 4 * float(torch.finfo(logits.dtype).eps) * usual


def _on(device: torch.device, inputs: Inputs) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def kind_of(inputs: Inputs) -> Kind:
    """What batches that are judged alike have in common: their keys and ranks."""
    return frozenset((k, v.dim() if isinstance(v, Tensor) else -1) for k, v in inputs.items())
