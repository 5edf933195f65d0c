"""Which cells count, given as masks, and the reduction by counted rows."""

import pytest
import torch

from fastkd import (
    AttentionAlignment,
    BackendUnavailable,
    InputError,
    alignment_loss_from_maps,
    attention_alignment_loss,
)

BACKENDS = ("reference", "torch")
FORMS = ("map", "row", "mixture")


def maps(queries=5, keys=5, seed=0, batch=3):
    torch.manual_seed(seed)
    student, teacher = (torch.rand(batch, n, queries, keys, dtype=torch.float64) for n in (2, 3))
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    return student.requires_grad_(), teacher, weight


def value_and_gradients(student, teacher, weight, **options):
    loss = alignment_loss_from_maps(student, teacher, weight, **options)
    return loss, *torch.autograd.grad(loss.sum(), (student, weight))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padding", ["exclude", "include"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_of_lengths_are_lengths(backend, form, padding, causal):
    given, lengths = maps(), torch.tensor([5, 3, 0])
    options = {"normalization": form, "padding": padding, "causal": causal, "backend": backend}
    key_mask = torch.arange(5) < lengths[:, None]
    expected = value_and_gradients(*given, key_lengths=lengths, **options)
    found = value_and_gradients(*given, key_mask=key_mask, **options)
    cells = value_and_gradients(*given, mask=key_mask[:, None].expand(-1, 5, -1), **options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(cells, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_left_padding_is_the_loss_of_what_is_real(backend, form):
    student, teacher, weight = maps(batch=1)
    real = torch.tensor([[False, False, True, True, True]])
    mask = real[:, None] & real[:, :, None]
    options = {"normalization": form, "backend": backend}
    found = value_and_gradients(student, teacher, weight, mask=mask, **options)
    cut = student[..., 2:, 2:].detach().requires_grad_()
    expected = value_and_gradients(cut, teacher[..., 2:, 2:], weight, **options)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1][..., 2:, 2:], expected[1], rtol=1e-10, atol=1e-12)
    assert not found[1][..., :2].any() and not found[1][..., :2, :].any()
    torch.testing.assert_close(found[2], expected[2], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("padding", ["exclude", "include"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(4))
def test_backends_agree_on_any_mask(form, padding, seed):
    given = maps(4, 6, seed)
    mask = torch.rand(3, 4, 6) < 0.5
    mask[0, 1] = False  # a row without a key
    mask[1] = False
    results = [
        value_and_gradients(*given, mask=mask, normalization=form, padding=padding, backend=name)
        for name in BACKENDS
    ]
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)


def test_a_long_sentence_in_blocks(monkeypatch):
    import fastkd.backends.attention.torch as backend

    monkeypatch.setattr(backend, "CPU_WORKSPACE", 2000)
    given = maps(12, 12)
    mask = torch.rand(3, 12, 12) < 0.6
    for form in FORMS:
        for padding in ("exclude", "include"):
            results = [
                value_and_gradients(
                    *given, mask=mask, causal=True, normalization=form, padding=padding,
                    backend=name,
                )
                for name in BACKENDS
            ]  # fmt: skip
            torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows(backend, form):
    torch.manual_seed(0)
    query, key = torch.randn(3, 2, 6, 4), torch.randn(3, 2, 7, 4)
    teacher = torch.randn(3, 3, 6, 5), torch.randn(3, 3, 7, 5)
    weight = torch.randn(3, 2)
    lengths = {
        "query_lengths": torch.tensor([6, 4, 2]),
        "key_lengths": torch.tensor([7, 7, 0]),  # the third has nothing to compare with
    }
    call = {"normalization": form, "backend": backend}
    query.requires_grad_()
    for given, rows in (({}, 18), (lengths, 10), ({**lengths, "padding": "include"}, 18)):
        count = (3 if form == "map" else rows) * 3
        total, mean = (
            attention_alignment_loss(
                query, key, *teacher, weight, reduction=reduction, **given, **call
            )
            for reduction in ("sum", "rows")
        )
        torch.testing.assert_close(mean, total / count)
        gradients = [torch.autograd.grad(loss, query)[0] for loss in (total, mean)]
        torch.testing.assert_close(gradients[1], gradients[0] / count)


def test_rows_of_masks():
    student, teacher, weight = maps()
    mask = torch.zeros(3, 5, 5, dtype=torch.bool)
    mask[0, 1, 2] = mask[0, 3, 1] = mask[1, 4] = True  # under causality (1, 2) is no cell
    call = {"normalization": "row", "mask": mask}
    for causal, rows in ((False, 3), (True, 2)):
        total, mean = (
            alignment_loss_from_maps(
                student, teacher, weight, reduction=reduction, causal=causal, **call
            )
            for reduction in ("sum", "rows")
        )
        torch.testing.assert_close(mean, total / (rows * 3))


def test_rows_of_nothing_is_zero():
    student, teacher, weight = maps()
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    found = value_and_gradients(
        student, teacher, weight, key_mask=nothing, normalization="row", reduction="rows"
    )
    assert all(not part.any() for part in found)


def test_the_module_takes_rows():
    student, teacher, _ = maps()
    module = AttentionAlignment(2, 3, "mixture", reduction="rows")
    loss = module.from_maps(student.float(), teacher.float())
    total = alignment_loss_from_maps(
        student.float(), teacher.float(), module.weight, normalization="mixture"
    )
    torch.testing.assert_close(loss, total / (15 * 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key_mask": torch.ones(3, 5)}, "key_mask must be a bool tensor, not torch.float32"),
        ({"key_mask": torch.ones(3, 4).bool()}, r"key_mask must have shape \(3, 5\), not \(3, 4\)"),
        ({"mask": torch.ones(3, 5).bool()}, r"mask must have shape \(3, 5, 5\)"),
        (
            {"key_mask": torch.ones(3, 5).bool(), "key_lengths": torch.ones(3).long()},
            "key_mask is given in place of lengths",
        ),
        (
            {"mask": torch.ones(3, 5, 5).bool(), "query_lengths": torch.ones(3).long()},
            "mask is given in place of lengths",
        ),
        (
            {"mask": torch.ones(3, 5, 5).bool(), "key_mask": torch.ones(3, 5).bool()},
            "key_mask is given in place",
        ),
    ],
)
def test_refused(change, words):
    with pytest.raises(InputError, match=words):
        alignment_loss_from_maps(*maps(), **change)


def test_kernels_refuse_masks_by_name():
    pytest.importorskip("triton")
    given = [tensor.detach().float() for tensor in maps()]
    with pytest.raises(BackendUnavailable, match="lengths, not masks"):
        alignment_loss_from_maps(*given, key_mask=torch.ones(3, 5).bool(), backend="triton")
