import pytest
import torch

from fastkd import (
    InputError,
    SparseTeacher,
    TokenDistillation,
    linear_token_distillation_loss,
    token_distillation_loss,
)

OPTIONS = {
    "ce_weight": 0.5,
    "kd_weight": 0.25,
    "rank_weight": 2.0,
    "top_k": 3,
    "label_smoothing": 0.1,
    "student_temperature": 2.0,
    "teacher_temperature": 0.5,
    "ignore_index": 1,
    "reduction": "none",
    "return_prediction": True,
}


def test_dense():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, 6)
    target, mask = torch.randint(6, (4, 3)), torch.rand(4, 3) < 0.5
    torch.testing.assert_close(
        TokenDistillation(**OPTIONS)(student, teacher, target, mask=mask),
        token_distillation_loss(student, teacher, target, mask=mask, **OPTIONS),
    )


def test_linear():
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(4, 3, 5), torch.randn(6, 5), torch.randn(6)
    teacher = (torch.randn(4, 3, 2), torch.randn(6, 2))
    target, mask = torch.randint(6, (4, 3)), torch.rand(4, 3) < 0.5
    call = {"student_bias": bias, "teacher_bias": bias.flip(0), "mask": mask}
    module = TokenDistillation(**OPTIONS)
    torch.testing.assert_close(
        module.linear(hidden, weight, *teacher, target, **call),
        linear_token_distillation_loss(hidden, weight, *teacher, target, **call, **OPTIONS),
    )
    sparse = SparseTeacher(torch.tensor([0, 2, 4]).expand(4, 3, 3), torch.zeros(4, 3, 3) - 2)
    torch.testing.assert_close(
        module.linear(hidden, weight, sparse, target=target),
        linear_token_distillation_loss(hidden, weight, sparse, target=target, **OPTIONS),
    )


def test_temperature_squared():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 6)
    options = {"ce_weight": 0.0, "student_temperature": 3.0, "divergence": "jsd"}
    found = TokenDistillation(kd_weight=0.5, t_squared=True, **options)(student, teacher)
    plain = token_distillation_loss(student, teacher, kd_weight=0.5, **options)
    torch.testing.assert_close(found.loss, 9 * plain.loss)


def test_holds_no_parameters_and_shows_its_options():
    module = TokenDistillation(ce_weight=0.5, kd_weight=1)
    assert not list(module.parameters()) and not module.state_dict()
    assert "ce_weight=0.5" in repr(module)


def test_refuses_wrong_options_when_built():
    with pytest.raises(InputError, match="reduction must be one of"):
        TokenDistillation(ce_weight=1, kd_weight=1, reduction="total")
