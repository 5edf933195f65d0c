"""The alignment operators as citizens of PyTorch: registration and compilation."""

import pytest
import torch
import torch._dynamo.testing
from fastkd_kernels.attention import map_operators as _registered  # noqa: F401

from fastkd import alignment_loss_from_maps, attention_alignment_loss
from tests.kernels.attention_compare import attention, learned, maps

OPERATORS = torch.ops.fastkd
LENGTHS = torch.tensor([3, 2]), torch.tensor([4, 0])
SETTINGS = (*LENGTHS, 0.25, 0.2, False, "row", 1.0, False)


def checked(operator, *arguments):
    torch.library.opcheck(operator.default, arguments)


def small(**options):
    return attention(queries=3, keys=4, teachers=3, **options)


@pytest.mark.parametrize("reduce", [0.5, 0.0])
def test_registration_with_a_weight(reduce):
    inputs = [tensor.requires_grad_(place in (0, 1, 4)) for place, tensor in enumerate(small())]
    checked(OPERATORS.align_queries, *inputs, *SETTINGS, reduce, True, True)
    constants = [tensor.detach() for tensor in inputs]
    upstream = torch.ones(2, 3)
    checked(OPERATORS.align_queries_bwd, upstream, *constants, *SETTINGS, True, True)


def test_registration_head_against_head():
    inputs = small(weighted=False)[:4]
    _, logs, statistics = OPERATORS.align_pairs(*inputs, *SETTINGS)
    checked(OPERATORS.align_pairs_bwd, torch.ones(2, 3), logs, statistics, *inputs, *SETTINGS)
    inputs = [tensor.requires_grad_(place < 2) for place, tensor in enumerate(inputs)]
    checked(OPERATORS.align_pairs, *inputs, *SETTINGS)


def test_registration_of_maps():
    inputs = maps(teachers=3, queries=3, keys=4)
    _, statistics = OPERATORS.align_maps(*inputs, *SETTINGS)
    upstream = torch.ones(2, 3)
    checked(OPERATORS.align_maps_bwd, upstream, statistics, *inputs, *SETTINGS, True, True)
    inputs = [tensor.requires_grad_(place != 1) for place, tensor in enumerate(inputs)]
    checked(OPERATORS.align_maps, *inputs, *SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["weighted", "pairs", "maps"])
def test_one_graph_serves_all_lengths(form):
    loss = alignment_loss_from_maps if form == "maps" else attention_alignment_loss
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()

    def call(tensors, query_lengths):
        options = {"normalization": "row", "backend": "triton", "query_lengths": query_lengths}
        return loss(*tensors, **options) * 2

    compiled = torch.compile(call, fullgraph=True, backend=counted, dynamic=True)
    frames = []
    # No two sizes are equal at first, which would be taken for a rule.
    for batch, queries, keys in ((2, 5, 7), (4, 6, 9), (3, 11, 8)):
        sizes = {"batch": batch, "queries": queries, "keys": keys, "teachers": 3}
        if form == "maps":
            tensors = maps(**sizes)
        else:
            tensors = attention(**sizes, weighted=form == "weighted")
        places = learned(tensors)
        for place in places:
            tensors[place].requires_grad_()
        leaves = [tensors[place] for place in places]
        lengths = torch.arange(batch) % queries
        expected = call(tensors, lengths)
        found = compiled(tensors, lengths)
        torch.testing.assert_close(found, expected)
        for gradient, same in zip(
            torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True
        ):
            torch.testing.assert_close(gradient, same)
        frames.append(counted.frame_count)
    assert frames[0] == frames[1] == frames[2]
