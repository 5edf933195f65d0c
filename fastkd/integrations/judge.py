"""The model's own loss as the judge of what is computed in its place."""

import itertools
from typing import Any

import torch
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from fastkd.errors import InputError
from fastkd.functional import linear_token_distillation_loss
from fastkd.integrations.models import COLUMNS, IGNORED, Inputs, LanguageModel
from fastkd.integrations.routers import RouterLoss, router_losses
from fastkd.integrations.undisturbed import undisturbed

Kind = frozenset[tuple[str, int]]


def judge(model: LanguageModel, inputs: Inputs, verify: bool) -> None:
    """Learns from the model's own loss of a batch which labels are shifted and what is added.

    Two passes in evaluation mode, without gradient: the model's own with `labels`, and one that
    withholds them, as training does. The cross-entropy of the states that entered the head in the
    second, with labels shifted or not, with router losses or not, is compared with the first's
    loss; what is nearest holds from then on.

    Raises InputError where nothing is as near as the precision of the logits explains, if `verify`.
    """
    inputs = _on(model.head.device, inputs)
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
            routers = router_losses(model.model, ours)
            found = _nearest(model, hidden, labels, routers, float(own))
    model.shifts, model.routed, value = found
    tolerance = error + 1e-5 * (1 + abs(float(own)))
    if verify and not abs(value - float(own)) <= tolerance:
        raise InputError(
            f"{model.name}: its own loss of a batch of {', '.join(inputs)} is {float(own):.6g}, "
            f"the cross-entropy of its states {value:.6g}; expected a model that is trained by "
            "cross-entropy (verify=False trains by the latter all the same)"
        )


def presume(model: LanguageModel, inputs: Inputs) -> None:
    """What `judge` finds of most models of this kind, for one whose tensors have no data.

    The offset of its logits counts as zeros, which it is until somebody has trained it.
    """
    read = model.read(inputs)
    model.shifts = _is_causal(model)
    model.head.presume(read)
    with torch.no_grad():
        model.routed = bool(router_losses(model.model, model.model(**read)))


def _nearest(
    model: LanguageModel, hidden: Tensor, labels: Tensor, routers: list[RouterLoss], own: float
) -> tuple[bool, bool, float]:
    """Whether labels are shifted, whether router losses are added, and the loss of both."""
    usual = _is_causal(model)
    shifts = [usual, not usual] if labels.shape[1] > 1 else [usual]  # a tie falls to the first
    if not bool((labels != IGNORED).any()):
        return usual, bool(routers), own
    more = sum(loss.coefficient * float(loss.value) for loss in routers)
    candidates = []
    for shifted, routed in itertools.product(shifts, [False, True] if routers else [False]):
        value = _cross_entropy(model, hidden, labels, shifted) + more * routed
        candidates.append((abs(value - own), shifted, routed, value))
    nearest = min(candidates, key=lambda candidate: candidate[0])
    return nearest[1:]


def _cross_entropy(model: LanguageModel, hidden: Tensor, labels: Tensor, shifted: bool) -> float:
    head = model.head
    states, target = (hidden[:, :-1], labels[:, 1:]) if shifted else (hidden, labels)
    projection = head.projection
    losses = linear_token_distillation_loss(
        projection.entered(head.scaled(states)),
        projection.weight,
        target=target,
        student_bias=projection.bias,
        student_soft_cap=projection.soft_cap,
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
