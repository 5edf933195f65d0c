"""Forms of nn.MultiheadAttention, and what others make of it."""

import pytest
import torch
from torch import nn

import fastkd
from fastkd.taps import Projections, record
from tests.taps.attention import HEADS, LENGTHS, TS, TT, WIDTH, maps_of, sequences, transformer


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"bias": False}, {"kdim": 12, "vdim": 10}, {"dropout": 0.5}]
)
def test_forms_of_multihead_attention(batch_first, settings):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **settings).eval()
    if module.in_proj_bias is not None:
        nn.init.normal_(module.in_proj_bias)
    query = torch.randn(3, TT, WIDTH)
    key, value = (torch.randn(3, TS, width or WIDTH) for width in (module.kdim, module.vdim))
    if not batch_first:
        query, key, value = (side.transpose(0, 1) for side in (query, key, value))
    padding = torch.arange(TS) >= LENGTHS[:, None]
    with record(module, {"cross": [module]}) as taps:
        _, maps = module(query, key, value, padding, average_attn_weights=False)
    torch.testing.assert_close(maps_of(taps.cross), maps)


class Renamed(nn.MultiheadAttention):
    """A subclass whose call is its own."""

    def forward(self, states):
        return super().forward(states, states, states)


@pytest.mark.parametrize("own", [Renamed, torch.ao.nn.quantizable.MultiheadAttention])
def test_a_subclass_with_a_forward_of_its_own_is_refused(own):
    """PyTorch's quantizable one projects by other weights than it inherits."""
    module = own(WIDTH, HEADS)
    with pytest.raises(fastkd.InputError, match=r"encoder\[0\]: .*its own; expected"):
        record(module, {"encoder": [module]}).__enter__()


def test_a_quantizable_layer_by_its_projections():
    module = torch.ao.nn.quantizable.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    states = sequences()[0]
    by = Projections("linear_Q", "linear_K", HEADS, batch_first=False)  # as it projects within
    with record(module, {"encoder": [by]}) as taps:
        _, maps = module(states, states, states, average_attn_weights=False)
    torch.testing.assert_close(maps_of(taps.encoder), maps)


def test_weights_that_are_computed():
    """As those of weight norm, LoRA and functional calls are."""
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    nn.utils.parametrizations.weight_norm(module, "in_proj_weight")
    doubled = {name: 2 * parameter for name, parameter in module.named_parameters()}
    states = sequences()[0]
    with record(module, {"encoder": [module]}) as taps:
        _, maps = torch.func.functional_call(
            module, doubled, (states,) * 3, {"average_attn_weights": False}
        )
    torch.testing.assert_close(maps_of(taps.encoder), maps)


def test_nested_tensors_are_refused():
    model = transformer().encoder.eval()
    nested = torch.nested.nested_tensor([torch.randn(5, WIDTH), torch.randn(3, WIDTH)])
    line = r"modules.encoder\[0\]: expected padded"
    with torch.no_grad(), record(model), pytest.raises(fastkd.InputError, match=line):
        model(nested)


def test_padding_that_the_fast_path_drops():
    """Where all sentences are shorter than their batch PyTorch nests them; not within."""
    model = transformer().encoder.eval()
    states, padding = sequences()[0], torch.arange(TS) >= LENGTHS[:, None] - 2
    with torch.no_grad():
        expected = model(states, src_key_padding_mask=padding)
        with record(model) as taps:
            found = model(states, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding])
    assert torch.equal(taps.encoder.key_lengths, LENGTHS - 2)
