"""The divergences beside the formulas of other libraries, where both define the same loss.

Liger's and TRL's run as they are installed; DistillKit's are written here from its definition.
"""

import pytest
import torch
import torch.nn.functional as F

from fastkd import (
    InputError,
    SparseTeacher,
    linear_token_distillation_loss,
    token_distillation_loss,
)

BACKENDS = ("reference", "torch")
ROWS, VOCABULARY = 12, 37
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    student, teacher = (2 * torch.randn(*shape, VOCABULARY, dtype=torch.float64) for _ in range(2))
    target = torch.randint(VOCABULARY, shape)
    target[..., 1::3] = -100
    return student.requires_grad_(), teacher, target


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, student: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, **CLOSE)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, **CLOSE)


def kd(student, teacher, target, backend, **options):
    return token_distillation_loss(
        student, teacher, target, ce_weight=0.0, kd_weight=1.0, reduction="mean", backend=backend,
        **options,
    ).loss  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_trl(backend, beta, temperature):
    gkd = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    student, teacher, target = pair(3, 4)
    theirs = gkd.generalized_jsd_loss(student, teacher, target, beta, temperature)
    ends = {0.0: {"divergence": "kl"}, 1.0: {"divergence": "reverse_kl"}}
    options = ends.get(beta, {"divergence": "jsd", "beta": beta})
    options |= {"student_temperature": temperature, "teacher_temperature": temperature}
    assert_same(kd(student, teacher, target, backend, **options), theirs, student)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_liger(backend, beta):
    liger = pytest.importorskip("liger_kernel.chunked_loss.jsd_loss")
    torch.manual_seed(0)
    make = {"dtype": torch.float64}
    hidden, teacher = torch.randn(ROWS, 5, **make), torch.randn(ROWS, 7, **make)
    weight = torch.randn(VOCABULARY, 5, **make).requires_grad_()
    teacher_weight = torch.randn(VOCABULARY, 7, **make)
    target = torch.randint(VOCABULARY, (ROWS,))
    target[::4] = -100
    theirs = liger.LigerFusedLinearJSDLoss(0.4, 0.6, beta=beta, temperature=1.0, compiled=False)(
        hidden, weight, teacher, teacher_weight, target
    )
    ends = {0.0: {"divergence": "kl"}, 1.0: {"divergence": "reverse_kl"}}
    ours = linear_token_distillation_loss(
        hidden, weight, teacher, teacher_weight, target, ce_weight=0.4, kd_weight=0.6,
        reduction="mean", backend=backend, **ends.get(beta, {"divergence": "jsd", "beta": beta}),
    ).loss  # fmt: skip
    # It sums in float32, whatever its inputs are.
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_peers_jump_at_the_ends_of_beta():
    """jsd goes to 0 with β, and what they give for β = 0 is KL: a sweep over β breaks there."""
    gkd = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    liger = pytest.importorskip("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDFunction
    student, teacher, target = pair(1, ROWS)
    ours = kd(student, teacher, target, "torch", divergence="jsd", beta=1e-6)
    for end in (0.0, 1.0):
        near = abs(end - 1e-6)
        at, beside = (gkd.generalized_jsd_loss(student, teacher, target, b) for b in (end, near))
        assert beside < 1e-4 < 0.5 < at
        flat = student.flatten(0, 1), teacher.flatten(0, 1)
        at, beside = (liger.distillation_loss_fn(*flat, beta=b) for b in (end, near))
        assert beside < 1e-3 < 5 < at
        with pytest.raises(InputError, match="take divergence='kl' or 'reverse_kl'"):
            kd(student, teacher, target, "torch", divergence="jsd", beta=end)
    assert ours < 1e-4
    # What does go to KL is jsd/β.
    whole = kd(student, teacher, target, "torch", divergence="kl")
    torch.testing.assert_close(ours / 1e-6, whole, rtol=1e-4, atol=0)


def test_what_peers_do_with_positions_that_do_not_count():
    """TRL's "mean" divides by rows times the vocabulary; its trainers' batchmean, as Liger's and
    ours, by the rows that count."""
    gkd = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    student, teacher, target = pair(3, 4)
    ours = kd(student, teacher, target, "torch", divergence="jsd")
    mean = gkd.generalized_jsd_loss(student, teacher, target, 0.5, reduction="mean")
    torch.testing.assert_close(mean * VOCABULARY, ours, **CLOSE)
    none = torch.full_like(target, -100)
    assert gkd.generalized_jsd_loss(student, teacher, none, 0.5, reduction="mean").isnan()
    assert kd(student, teacher, none, "torch", divergence="jsd") == 0


# DistillKit (arcee-ai/DistillKit, its losses of dense and of sparse logits): probabilities of both
# sides by log_softmax at one temperature, for lists gathered at the teacher's ids.


def distillkit(log_p, log_q, form):
    """Σ over the last dimension of its kl_div, jsd and tvd."""
    p, q = log_p.exp(), log_q.exp()
    middle = (0.5 * (p + q)).log()
    return {
        "kl": lambda: F.kl_div(log_p, q, reduction="none"),
        "reverse_kl": lambda: F.kl_div(log_q, p, reduction="none"),
        "jsd": lambda: 0.5 * (q * (log_q - middle) + p * (log_p - middle)),
        "tvd": lambda: 0.5 * (p - q).abs(),
    }[form]().sum(-1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["kl", "reverse_kl", "jsd", "tvd"])
def test_distillkit(backend, form):
    student, teacher, target = pair(ROWS)
    options = {"divergence": form, "student_temperature": 2.0, "teacher_temperature": 2.0}
    log_p, log_q = (each.div(2).log_softmax(-1) for each in (student, teacher))
    theirs = distillkit(log_p, log_q, form)[target != -100].mean()
    assert_same(kd(student, teacher, target, backend, **options), theirs, student)


@pytest.mark.parametrize("backend", BACKENDS)
def test_distillkit_lists(backend):
    """Missing mass left out of KL, as `drop` has it. Of JSD and TVD that leaves p unlisted out of
    the sum too, which is no divergence: 0 for a student that puts its mass anywhere else."""
    student, teacher, target = pair(ROWS)
    values, ids = teacher.log_softmax(-1).topk(5)
    listed = student.log_softmax(-1).gather(-1, ids)
    counted = target != -100
    theirs = distillkit(listed, values, "kl")[counted].mean()
    given = SparseTeacher(ids, values, "drop")
    assert_same(kd(student, given, target, backend, divergence="kl"), theirs, student)
    for form in ("jsd", "tvd"):
        with pytest.raises(InputError, match="needs rest="):
            kd(student, given, target, backend, divergence=form)
        tail = kd(student, SparseTeacher(ids, values, "tail"), target, backend, divergence=form)
        whole = kd(student, teacher, target, backend, divergence=form)
        part = distillkit(listed, values, form)[counted].mean()
        assert part < whole and tail <= whole
