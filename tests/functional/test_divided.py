"""Output projections as DTensors: what is refused, and what is gathered, in one process."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from fastkd import (
    BackendUnavailable,
    InputError,
    SparseTeacher,
    alignment_loss_from_maps,
    attention_alignment_loss,
    linear_token_distillation_loss,
    token_distillation_loss,
)
from fastkd.backends.tokens.torch.divided import check_same


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,)), init_device_mesh("cpu", (1, 1))
    dist.destroy_process_group()


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize(
    "placements", [[Replicate()], [Shard(1)], [Replicate(), Replicate()], [Shard(0), Shard(1)]]
)
def test_a_weight_that_is_not_divided_by_rows(mesh, backend, side, placements):
    weight = distribute_tensor(drawn(5, 4), mesh[len(placements) - 1], placements)
    weights = {"student_weight": drawn(5, 4), "teacher_weight": drawn(5, 4)}
    weights[f"{side}_weight"] = weight
    with pytest.raises(InputError, match=rf"{side}_weight must be divided by rows, one Shard\(0\)"):
        linear_token_distillation_loss(
            drawn(3, 4), teacher_hidden=drawn(3, 4), target=torch.arange(3), ce_weight=1.0,
            kd_weight=1.0, backend=backend, **weights,
        )  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("placements", [[Shard(0)], [Replicate(), Shard(0)]])
def test_biases_divided_like_their_weights(mesh, backend, placements):
    """As those of a Linear that FSDP2 divides."""

    def losses(divide):
        weights = [divide(drawn(5, 4)), divide(drawn(5, 6)), divide(drawn(5)), divide(drawn(5))]
        for learned in (weights[0], weights[2]):
            learned.requires_grad_()
        weight, theirs, bias, their_bias = weights
        found = linear_token_distillation_loss(
            drawn(3, 4), weight, drawn(3, 6), theirs, torch.arange(3), student_bias=bias,
            teacher_bias=their_bias, ce_weight=1.0, kd_weight=1.0, backend=backend,
        )  # fmt: skip
        return found.loss, torch.autograd.grad(found.loss, [weight, bias])

    loss, gradients = losses(
        lambda value: distribute_tensor(value, mesh[len(placements) - 1], placements)
    )
    expected, whole = losses(lambda value: value)
    torch.testing.assert_close(loss, expected)
    for found, one in zip(gradients, whole, strict=True):
        assert tuple(found.placements) == tuple(placements)
        torch.testing.assert_close(found.full_tensor(), one)


def test_a_loss_without_a_value_has_the_same_gradient_everywhere(mesh):
    weight = distribute_tensor(drawn(5, 4), mesh[0], [Shard(0)])
    for value in (1.0, torch.nan, torch.inf):
        check_same(torch.tensor(value), weight)


def dense(mesh, **divided):
    """A call of logits (3, 5) of which some are DTensors."""
    given = {
        "student_logits": drawn(3, 5).requires_grad_(),
        "teacher_logits": drawn(3, 5),
        "target": torch.arange(3),
    }
    for name, placement in divided.items():
        given[name] = distribute_tensor(given[name].detach(), mesh[0], [placement])
    given["student_logits"] = given["student_logits"].detach().requires_grad_()
    return {**given, "ce_weight": 1.0, "kd_weight": 1.0, "reduction": "mean"}


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()])
def test_logits_as_dtensors(mesh, placement):
    """As sequence and vocabulary parallel models give them."""
    rows = placement if placement.is_shard(0) else Replicate()
    call = dense(mesh, student_logits=placement, teacher_logits=placement, target=rows)
    plain = dense(mesh)
    expected = token_distillation_loss(**plain, backend="torch").loss
    expected.backward()
    for backend in ("auto", "reference"):
        found = token_distillation_loss(**call, backend=backend).loss
        (gradient,) = torch.autograd.grad(found, call["student_logits"])
        torch.testing.assert_close(found.full_tensor(), expected)
        torch.testing.assert_close(gradient.full_tensor(), plain["student_logits"].grad)
    with pytest.raises(BackendUnavailable, match="not DTensors; expected full_tensor"):
        token_distillation_loss(**call, backend="torch")


@pytest.mark.parametrize(
    ("divided", "line"),
    [
        ({"student_logits": Shard(1)}, "target must be a DTensor as student_logits is"),
        (
            {"student_logits": Shard(1), "target": Replicate()},
            "teacher_logits must be a DTensor as student_logits is",
        ),
        ({"target": Replicate()}, "student_logits must be a DTensor as target is"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
def test_some_of_the_tensors_as_dtensors(mesh, backend, divided, line):
    with pytest.raises(InputError, match=line):
        token_distillation_loss(**dense(mesh, **divided), backend=backend)


def test_listed_ids_beside_dtensors(mesh):
    log_probs, ids = drawn(3, 5).log_softmax(-1).topk(3)
    call = dense(mesh, student_logits=Shard(1), target=Replicate())
    with pytest.raises(InputError, match="SparseTeacher: ids must be a DTensor"):
        token_distillation_loss(**{**call, "teacher_logits": SparseTeacher(ids, log_probs)})


@pytest.mark.parametrize("name", ["target", "mask"])
def test_dtensors_beside_hidden_states(mesh, name):
    given = {"target": torch.tensor([1, 2, 3]), "mask": torch.ones(3, dtype=torch.bool)}
    given[name] = distribute_tensor(given[name], mesh[0], [Replicate()])
    with pytest.raises(InputError, match=f"{name} must be a plain tensor, not a DTensor"):
        linear_token_distillation_loss(
            drawn(3, 4), drawn(5, 4), **given, ce_weight=1.0, kd_weight=0.0
        )


@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
@pytest.mark.parametrize("side", ["student_hidden", "teacher_hidden"])
def test_hidden_states_as_dtensors(mesh, backend, side):
    hidden = {"student_hidden": drawn(3, 4), "teacher_hidden": drawn(3, 4)}
    hidden[side] = distribute_tensor(hidden[side], mesh[0], [Replicate()])
    with pytest.raises(InputError, match=rf"{side} must be a (plain tensor|DTensor)"):
        linear_token_distillation_loss(
            **hidden, student_weight=drawn(5, 4), teacher_weight=drawn(5, 4), ce_weight=0.0,
            kd_weight=1.0, backend=backend,
        )  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
def test_attention_as_dtensors(mesh, backend):
    query, key = drawn(2, 2, 3, 4), drawn(2, 2, 3, 4)
    divided = distribute_tensor(query, mesh[0], [Shard(0)])
    with pytest.raises(InputError, match=r"student_query must be a plain tensor.* to_local\(\)"):
        attention_alignment_loss(divided, key, query, key, backend=backend)
    maps = (query @ key.mT).softmax(-1)
    divided = distribute_tensor(maps, mesh[0], [Shard(1)])
    with pytest.raises(InputError, match="teacher_maps must be a plain tensor"):
        alignment_loss_from_maps(maps, divided, backend=backend)
