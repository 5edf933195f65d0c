"""What the alignment losses refuse, and in which words."""

import math

import pytest
import torch

from fastkd import (
    BackendUnavailable,
    InputError,
    alignment_loss_from_maps,
    attention_alignment_loss,
)
from fastkd.functional.checks import lengths
from tests.functional.attention_literal import case


def call(tried=None, **changes):
    tried = tried or case()
    names = ("student_query", "student_key", "teacher_query", "teacher_key", "weight", "bias")
    arguments = dict(zip(names, tried.tensors(), strict=True)) | tried.options | changes
    return attention_alignment_loss(**arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"student_query": torch.zeros(3, 4, 5)}, "student_query must have 4 dimensions"),
        ({"student_query": []}, "student_query holds no tensor"),
        ({"student_query": [1.0]}, "student_query must hold tensors"),
        ({"student_query": torch.ones(3, 4, 5, 3).int()}, "student_query must be floating point"),
        ({"student_query": [torch.ones(3, 2, 5, 3), torch.ones(3, 2, 4, 3)]}, "layers of student"),
        ({"student_query": torch.ones(3, 4, 5, 7)}, "student_query and student_key must agree"),
        ({"student_key": torch.ones(3, 3, 6, 3)}, "4 heads must be a multiple of student_key's 3"),
        ({"teacher_key": torch.ones(2, 3, 6, 4)}, "teacher_query and teacher_key must agree"),
        ({"teacher_key": torch.ones(3, 3, 7, 4)}, "agree in keys: 6 and 7"),
        ({"teacher_query": torch.ones(3, 3, 4, 4)}, "agree in queries: 5 and 4"),
        ({"weight": None}, "without a weight, student and teacher need the same number"),
        ({"weight": torch.ones(4, 3)}, "(teacher maps, student maps) = (3, 4), not (4, 3)"),
        ({"weight": torch.ones(3, 4).int()}, "weight must be a floating point tensor"),
        ({"weight": [[1.0]]}, "weight must be a floating point tensor, not list"),
        ({"bias": torch.ones(4)}, "bias must have shape (teacher maps,) = (3,)"),
        ({"bias": torch.ones(3), "normalization": "mixture"}, "bias: normalization 'mixture'"),
        ({"temperature": 0.5, "normalization": "mixture"}, "temperature: normalization 'mixture'"),
        ({"temperature": 0.0}, "temperature must be a positive number"),
        ({"temperature": float("nan")}, "temperature must be a positive number"),
        ({"normalization": "column"}, "normalization must be one of map, row, mixture"),
        ({"padding": "drop"}, "padding must be one of exclude, include"),
        ({"reduction": "max"}, "reduction must be one of sum, mean, none"),
        ({"causal": True}, "causal needs as many queries as keys, not 5 and 6"),
        ({"student_scale": float("inf")}, "student_scale must be finite"),
        ({"query_lengths": torch.tensor([6, 1, 1])}, "query_lengths must be in 0..5, not 1..6"),
        ({"key_lengths": torch.tensor([-1, 1, 1])}, "key_lengths must be in 0..6, not -1..1"),
        ({"key_lengths": torch.tensor([1.0, 1, 1])}, "key_lengths must be integers"),
        ({"key_lengths": torch.tensor([True, True, True])}, "key_lengths must be integers"),
        ({"key_lengths": torch.ones(3, 6).long()}, "goes through alignment_loss_from_maps"),
        ({"key_lengths": torch.tensor([1, 1])}, "key_lengths must have shape (batch,) = (3,)"),
        ({"position_bias": torch.ones(1)}, "position_bias: .* alignment_loss_from_maps"),
        ({"soft_cap": 30.0}, "soft_cap: .* alignment_loss_from_maps"),
        ({"window": 0}, "window: .* alignment_loss_from_maps"),
        ({"left_padding": True}, "left_padding: .* alignment_loss_from_maps"),
    ],
)
def test_refused(change, words):
    pattern = words if ".*" in words else "".join(f"[{c}]" if c in "()." else c for c in words)
    with pytest.raises(InputError, match=pattern) as caught:
        call(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["teacher_query", "teacher_key"])
def test_teacher_is_a_constant(name):
    tried = case()
    with pytest.raises(InputError, match=f"{name} requires grad"):
        call(tried, **{name: getattr(tried, name).requires_grad_()})


def test_teacher_maps_are_constants():
    maps = torch.rand(1, 2, 3, 3)
    with pytest.raises(InputError, match="teacher_maps requires grad"):
        alignment_loss_from_maps(maps, maps.clone().requires_grad_())


def test_maps_must_agree():
    with pytest.raises(InputError, match="agree in keys: 3 and 4"):
        alignment_loss_from_maps(torch.rand(1, 2, 3, 3), torch.rand(1, 2, 3, 4))


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend must be 'auto' or one of"):
        call(backend="numpy")


def test_named_backend_never_falls_back(monkeypatch):
    import fastkd.backends.attention.reference as module

    monkeypatch.setattr(module, "unavailable", lambda *call: "it is away", raising=False)
    with pytest.raises(BackendUnavailable, match=r"'reference' cannot serve .* it is away"):
        call(backend="reference")


def test_lengths_without_padding_are_none():
    assert lengths("key_lengths", torch.tensor([4, 4]), 2, 4) is None
    assert (
        lengths("key_lengths", torch.tensor([4, 3], dtype=torch.int32), 2, 4).dtype == torch.int64
    )
    assert lengths("key_lengths", [4, 3], 2, 4).tolist() == [4, 3]


def test_scales_default_to_the_head_size():
    tried = case()
    scaled = call(tried, student_scale=1 / math.sqrt(3), teacher_scale=0.5)
    assert call(tried) == scaled
    assert call(tried, student_scale=1.0) != scaled
