"""The model's own loss as the judge of what is computed in its place."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from fastkd.errors import InputError
from fastkd.functional import linear_token_distillation_loss, token_distillation_loss
from fastkd.integrations.heads import Head
from fastkd.integrations.models import COLUMNS, IGNORED, Inputs, LanguageModel
from fastkd.integrations.precision import (
    computed_in,
    loss_bound,
    precision_of,
    some_of,
    wrong_logits,
)
from fastkd.integrations.routers import RouterLoss, router_losses
from fastkd.integrations.sharded import own_class
from fastkd.integrations.undisturbed import undisturbed
from fastkd.integrations.unwrapped import unwrapped
from fastkd.terms.passes import Projection

Kind = frozenset[tuple[str, int]]


def judge(model: LanguageModel, inputs: Inputs, verify: bool) -> None:
    """Learns from the model's own loss of a batch which labels are shifted and what is added.

    Two passes in evaluation mode, without gradient or cache: the model's own with `labels`, and one
    that withholds them, as training does. Its loss is compared with the cross-entropy of its
    logits, in float32, with labels shifted or not, with router losses or not; what is nearest holds
    from then on. The logits are compared with those of the states that entered the head in the
    second pass, and so is the cross-entropy.

    Raises InputError where one of them is farther away than the precision of the head's product
    explains, if `verify`. Refusals that depend on the batch come after both passes.
    """
    inputs = _on(model.head.device, inputs)
    labels: Tensor = inputs["labels"]
    model.cuts = verify
    with undisturbed(model.model), _whole_weight(model.head):
        given = {k: v for k, v in inputs.items() if k not in (*COLUMNS, "num_items_in_batch")}
        state = torch.get_rng_state()
        with computed_in(model.head.module) as computed:
            output = model.model(**model.without_cache(given))
        torch.set_rng_state(state)
        read = model.read(inputs)
        model.head.learn(read)
        with model.head.taking(), model.reading(read):
            ours = model.model(**read)
            projection = model.head.projection  # of FSDP2, gathered by all processes
            own = getattr(output, "loss", None)
            if own is None or own.numel() != 1:
                raise InputError(f"{model.name}: gives no loss for labels; expected one")
            hidden = model.hidden_of(labels)
            routers = router_losses(model.model, ours)
            precision = precision_of(output.logits, computed)
            wrong = _compared(model, output, hidden, projection, labels, routers, precision)
    if verify and wrong is not None:
        names = ("decoder_input_ids", "decoder_attention_mask")
        told = not model.is_encoder_decoder or any(name in inputs for name in names)
        other = "" if told else f", or {' and '.join(names)} beside the labels"
        # States that are no labels' are left out only where the loss has shown that they may be.
        placed = output.logits.shape[:-1] == labels.shape
        more = " (verify=False trains by the latter all the same)" if placed else ""
        raise InputError(
            f"{model.name}: its own loss of a batch of {', '.join(inputs)} is {float(own):.6g}, "
            f"{wrong}; expected a model that is trained by cross-entropy{other}{more}"
        )


def judge_both(
    student: LanguageModel,
    teacher: LanguageModel | None,
    inputs: Inputs,
    verify: bool,
    divided: bool,
) -> None:
    """`judge` of a student and, where its own does not tell, of a teacher's labels.

    divided: whether passes need all processes, others of which may not refuse these inputs

    Raises InputError as `judge` does, and for a teacher that predicts other labels.
    """
    alike = (
        teacher is None or teacher.is_encoder_decoder or _class_of(teacher) is _class_of(student)
    )
    # Which batch has told something is for each process to know; their passes are those of all.
    asked = None if teacher is None or alike or (teacher.told and not divided) else teacher
    try:
        judge(student, inputs, verify)
    except InputError:
        if divided and asked is not None:
            with contextlib.suppress(InputError):
                judge(asked, inputs, verify=False)
        raise
    if teacher is None:
        return
    if asked is not None:
        judge(asked, inputs, verify=False)
    elif alike:
        teacher.shifts, teacher.cuts = student.shifts, student.cuts
    if not teacher.told:
        teacher.shifts = student.shifts
    if teacher.shifts != student.shifts:
        raise InputError(
            "teacher: expected a model that predicts the labels that the student does, "
            f"not {teacher.name}"
        )


def _class_of(model: LanguageModel) -> type:
    return own_class(unwrapped(model.model))


def presume(model: LanguageModel, inputs: Inputs) -> None:
    """What `judge` finds of most models of this kind, for one whose tensors have no data.

    The offset of its logits counts as zeros, which it is until somebody has trained it.
    """
    read = model.read(inputs)
    model.shifts = _is_causal(model)
    model.head.presume(read)
    with torch.no_grad():
        model.routed = bool(router_losses(model.model, model.model(**read)))


def _compared(
    model: LanguageModel,
    output: Any,
    hidden: Tensor,
    projection: Projection,
    labels: Tensor,
    routers: list[RouterLoss],
    precision: float,
) -> str | None:
    """Sets `shifts` and `routed` of `model`; what is wrong with its loss, or None.

    output: of the pass with labels
    hidden: what entered the head in the other one
    """
    own = float(output.loss)
    logits = model.behind_images(output.logits, labels)
    model.shifts, model.routed = _is_causal(model), bool(routers)
    if not is_labelled({"labels": labels}):
        return None
    model.told = True
    model.shifts, model.routed, nearest = _nearest(model, logits, labels, routers, own)
    more = sum(loss.coefficient * float(loss.value) for loss in routers) * model.routed
    value = _cross_entropy(model, hidden, projection, labels) + more
    if not abs(nearest - own) <= loss_bound(output.loss):
        return f"the cross-entropy of its logits {nearest:.6g}"
    if not abs(value - own) <= loss_bound(output.loss) + _error(logits, precision):
        return f"the cross-entropy of its states {value:.6g}"
    some = some_of(model.predicted(labels) != IGNORED)
    states = model.head.scaled(model.predicting(hidden)[some])
    return wrong_logits(projection, states, model.predicting(logits)[some], precision)


def _nearest(
    model: LanguageModel, logits: Tensor, labels: Tensor, routers: list[RouterLoss], own: float
) -> tuple[bool, bool, float]:
    """Whether labels are shifted, whether router losses are added, and the loss of both."""
    usual = _is_causal(model)
    shifts = [usual, not usual] if labels.shape[1] > 1 else [usual]  # a tie falls to the first
    more = sum(loss.coefficient * float(loss.value) for loss in routers)
    candidates = []
    for shifted in shifts:
        z, target = (logits[:, :-1], labels[:, 1:]) if shifted else (logits, labels)
        losses = token_distillation_loss(
            z, target=target, ce_weight=1.0, kd_weight=0.0, ignore_index=IGNORED, reduction="mean"
        )
        for routed in [False, True] if routers else [False]:
            value = float(losses.ce) + more * routed
            candidates.append((abs(value - own), shifted, routed, value))
    nearest = min(candidates, key=lambda candidate: candidate[0])
    return nearest[1:]


def _cross_entropy(
    model: LanguageModel, hidden: Tensor, projection: Projection, labels: Tensor
) -> float:
    states = projection.entered(model.head.scaled(model.predicting(hidden)))
    losses = linear_token_distillation_loss(
        states.to(projection.weight.dtype),  # the model may turn autocast on by itself
        projection.weight,
        target=model.predicted(labels),
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


def _error(logits: Tensor, precision: float) -> float:
    """How far rounding of the logits moves their mean cross-entropy.

    Logits z with the relative error u of their type move −log p by at most 2u · max |z|; products
    of other shapes have sums of another order, for which the bound is doubled twice.
    """
    largest = logits.detach().abs().nan_to_num(posinf=0.0).amax(-1)
    usual = float(largest.float().mean()) if largest.numel() else 0.0
    return 4 * precision * usual


@contextlib.contextmanager
def _whole_weight(head: Head) -> Iterator[None]:
    """Within, a weight that processes divide comes whole."""
    by_parts, head.by_parts = head.by_parts, False
    try:
        yield
    finally:
        head.by_parts = by_parts


def _on(device: torch.device, inputs: Inputs) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def new_kinds(batches: list[Inputs], met: set[Kind]) -> list[Inputs]:
    """A batch of each kind that was not met, one that has a label if there is any."""
    new: dict[Kind, Inputs] = {}
    for inputs in batches:
        kind = kind_of(inputs)
        if kind not in met and not is_labelled(new.get(kind, {})):
            new[kind] = inputs
    return list(new.values())


def is_labelled(inputs: Inputs) -> bool:
    """Whether a model's loss of it tells anything."""
    labels = inputs.get("labels")
    return labels is not None and bool((labels != IGNORED).any())


def kind_of(inputs: Inputs) -> Kind:
    """What batches that are judged alike have in common: their keys and ranks."""
    return frozenset((k, v.dim() if isinstance(v, Tensor) else -1) for k, v in inputs.items())
