"""Every option of the token losses crossed, on the kernels, by the rule of `tokens_compare`."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd import SparseTeacher, token_distillation_loss
from fastkd.functional.calls import DIVERGENCES
from tests.kernels.tokens_compare import DEVICE, assert_as_exact_as_reference
from tests.tokens_drawn import calls, prepared

pytestmark = pytest.mark.usefixtures("on_the_device")

ROUNDED = 64 * torch.finfo(torch.float32).eps


@given(call=calls())
@settings(max_examples=40, deadline=None)
def test_as_exact_as_the_reference(call):
    loss, learned, constants, options = prepared(call)
    assert_as_exact_as_reference(loss, learned, *constants, **options)


@given(
    beta=st.floats(1e-9, 1 - 1e-9),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-2, 1.0, 10.0]),
)
@settings(max_examples=10, deadline=None)
def test_properties(beta, seed, scale):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    student, teacher = (scale * torch.randn(5, 9, generator=generator) for _ in range(2))

    def value(form, q=teacher, p=student, **options):
        return token_distillation_loss(
            p, q, ce_weight=0.0, kd_weight=1.0, divergence=form, reduction="none",
            backend="triton", **options,
        ).kd  # fmt: skip

    jsd, turned = value("jsd", beta=beta), value("jsd", student, teacher, beta=1 - beta)
    least = min(beta, 1 - beta)
    torch.testing.assert_close(jsd, turned, rtol=ROUNDED, atol=ROUNDED * least)
    most = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    assert (jsd <= most * (1 + ROUNDED)).all()
    for form in ("skew_kl", "skew_reverse_kl"):
        assert (value(form, beta=beta) <= -math.log(beta) + ROUNDED).all()
    assert (value("tvd") <= 1 + ROUNDED).all()
    values, ids = teacher.log_softmax(-1).topk(3)
    tail = SparseTeacher(ids, values, "tail")
    for form in DIVERGENCES:
        whole = value(form)
        assert (whole >= -ROUNDED).all()
        assert form == "kl" or (value(form, student, student) == 0).all()
        # One outcome for what is not listed tells no more than all of them, and is known as well as
        # its mass: 1 − Σq of float32, whose logarithm is nothing where it is rounding.
        missing = 1 - values.double().exp().sum(-1)
        unsure = ROUNDED / missing.clamp(min=0)
        told = value(form, tail) <= whole * (1 + ROUNDED) + ROUNDED + unsure
        assert told[missing > ROUNDED].all()
