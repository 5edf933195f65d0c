"""Output projections as DTensors: what is refused, and what is gathered, in one process."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from fastkd import InputError, linear_token_distillation_loss
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
