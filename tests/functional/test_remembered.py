"""A call like one that passed its checks before: what may differ is checked all the same."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from fastkd import (
    InputError,
    alignment_loss_from_maps,
    attention_alignment_loss,
    linear_token_distillation_loss,
    token_distillation_loss,
)
from fastkd.functional import remembered

CE = {"ce_weight": 1.0, "kd_weight": 0.0}
KD = {"ce_weight": 0.0, "kd_weight": 1.0}


def test_ids_are_looked_at_in_each_call():
    logits = torch.zeros(2, 4)
    token_distillation_loss(logits, target=torch.tensor([0, 3]), **CE)
    with pytest.raises(InputError, match=r"target must be in 0\.\.3"):
        token_distillation_loss(logits, target=torch.tensor([0, 4]), **CE)


@pytest.mark.parametrize("wrong", ["requires grad", "size", "type", "options"])
def test_another_layout_is_checked_anew(wrong):
    student, teacher, options = torch.zeros(2, 4), torch.zeros(2, 4), KD
    token_distillation_loss(student, teacher, **options)
    if wrong == "requires grad":
        teacher = teacher.requires_grad_()
    elif wrong == "size":
        teacher = torch.zeros(2, 5)
    elif wrong == "type":
        teacher = torch.zeros(2, 4, dtype=torch.int64)
    else:
        options = {**KD, "vocabulary": 5}
    with pytest.raises(InputError):
        token_distillation_loss(student, teacher, **options)


def test_types_that_autocast_unites_are_refused_without_it():
    hidden, weight = torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(8, 4)
    target = torch.tensor([1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear_token_distillation_loss(hidden, weight, target=target, **CE)
    with pytest.raises(InputError, match=r"student_weight must be torch\.bfloat16"):
        linear_token_distillation_loss(hidden, weight, target=target, **CE)


def test_layers_of_attention_are_told_apart():
    one, two = torch.rand(1, 2, 3, 3), torch.rand(1, 1, 3, 3)
    alignment_loss_from_maps((two, two), one, normalization="row")
    alignment_loss_from_maps(one, one, normalization="row")
    with pytest.raises(InputError, match="same number of maps"):
        alignment_loss_from_maps((one, two), one, normalization="row")
    with pytest.raises(InputError, match="must be finite"):
        for scale in (0.5, float("nan")):
            attention_alignment_loss(one, one, one, one, student_scale=scale)
    with pytest.raises(InputError, match=r"must be in 0\.\.3"):
        for length in (3, 4):
            alignment_loss_from_maps(one, one, key_lengths=torch.tensor([length]))


def test_no_more_is_kept_than_a_bound(monkeypatch):
    monkeypatch.setattr(remembered, "_MOST", 3)
    for size in range(1, 9):
        token_distillation_loss(torch.zeros(size, 4), torch.zeros(size, 4), **KD)
    assert len(remembered._passed) <= 3


def test_subclasses_are_not_remembered():
    class Own(torch.Tensor):
        pass

    assert remembered.layout("check", None, torch.zeros(1).as_subclass(Own)) is None
    assert remembered.layout("check", None, [torch.zeros(1), 3]) is None


def test_a_graph_holds_nothing_of_what_was_passed():
    """Else each new layout would compile it anew."""
    counter = CompileCounter()
    loss = torch.compile(
        lambda student, teacher: token_distillation_loss(student, teacher, **KD).loss,
        backend=counter,
        fullgraph=True,
    )
    for size in (3, 5):
        loss(torch.zeros(2, 4), torch.zeros(2, 4))
        token_distillation_loss(torch.zeros(size, 7), torch.zeros(size, 7), **KD)
    assert counter.frame_count == 1
