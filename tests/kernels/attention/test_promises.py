"""What users of such kernels were let down by, each held against the alignment kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton.language as tl
from fastkd_kernels.attention.config import (
    Precision,
    mix_tile,
    pair_tile,
    probability_tile,
    product_tile,
)
from fastkd_kernels.attention.query_key import alignment as attention_query_key
from torch.utils._python_dispatch import TorchDispatchMode

from fastkd import BackendUnavailable, attention_alignment_loss
from fastkd.backends.attention.triton import unavailable
from fastkd.functional.calls import AlignmentCall, AlignmentOptions, QueryKey
from tests.kernels.attention_compare import (
    DEVICE,
    assert_as_exact_as_reference,
    attention,
    learned,
    maps,
    random,
    run,
)

KERNELS = Path(__file__).parents[3] / "kernels" / "fastkd_kernels"
FORMS = {
    "weighted": attention,
    "pairs": lambda: attention(teachers=3, weighted=False),
    "maps": maps,
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]()


def without_interpreter(code: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join((str(KERNELS.parent), str(KERNELS.parents[1])))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("normalization", ["map", "row", "mixture"])
def test_the_same_bits_twice(form, normalization):
    for first, second in zip(
        run(form, "triton", normalization=normalization),
        run(form, "triton", normalization=normalization),
        strict=True,
    ):
        assert torch.equal(first, second)


def test_no_atomics():
    sources = list((KERNELS / "attention").rglob("*.py"))
    assert len(sources) > 5
    assert not [path.name for path in sources if "atomic" in path.read_text()]


@pytest.mark.parametrize("normalization", ["map", "row", "mixture"])
def test_nothing_to_compare_is_a_finite_zero(form, normalization):
    empty = torch.zeros(2, dtype=torch.int64)
    for found in run(form, "triton", normalization=normalization, key_lengths=empty):
        assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("normalization", ["map", "row", "mixture"])
def test_padding_may_hold_anything(form, normalization):
    options = {
        "normalization": normalization,
        "query_lengths": torch.tensor([3, 5]),
        "key_lengths": torch.tensor([4, 2]),
        "reduction": "none",
    }
    expected = run(form, "triton", **options)
    spoiled = [None if tensor is None else tensor.clone() for tensor in form]
    for sentence, (queries, keys) in enumerate(((3, 4), (5, 2))):
        if len(form) == 3:
            for tensor in spoiled[:2]:
                tensor[sentence, :, queries:] = torch.nan
                tensor[sentence, :, :, keys:] = torch.nan
        else:
            for place, length in enumerate((queries, keys, queries, keys)):
                spoiled[place][sentence, :, length:] = torch.nan
    for found, clean in zip(run(spoiled, "triton", **options), expected, strict=True):
        assert torch.equal(found, clean)


def test_probabilities_that_underflow_give_finite_mixtures():
    inputs = attention(sharpness=400.0)
    for found in run(inputs, "triton", normalization="mixture"):
        assert found.isfinite().all()


def test_strides_beyond_int32():
    """Sentences 2³¹ elements apart; only the pages of the two are ever touched."""
    inputs = attention(queries=3, keys=4, dtype=torch.float16)
    for place in (0, 1):
        small = inputs[place]
        shape, strides = small.shape, (1 << 31, *small.stride()[1:])
        memory = torch.empty((1 << 31) + small[0].numel(), dtype=small.dtype, device=DEVICE)
        inputs[place] = memory.as_strided(shape, strides).copy_(small)
    expected = run([tensor.contiguous() for tensor in inputs], "triton", normalization="row")
    for found, plain in zip(run(inputs, "triton", normalization="row"), expected, strict=True):
        assert torch.equal(found, plain)


def test_maps_beyond_int32():
    inputs = maps(students=2, teachers=2, queries=2, keys=3, dtype=torch.float16)
    small = inputs[1]
    memory = torch.empty((1 << 31) + 64, dtype=small.dtype, device=DEVICE)
    strides = (small.stride(1), 1 << 31, *small.stride()[2:])
    inputs[1] = memory.as_strided(small.shape, strides).copy_(small)
    expected = run([tensor.contiguous() for tensor in inputs], "triton", normalization="row")
    for found, plain in zip(run(inputs, "triton", normalization="row"), expected, strict=True):
        assert torch.equal(found, plain)


@pytest.mark.parametrize("normalization", ["map", "mixture"])
def test_strides_instead_of_copies(form, normalization):
    transposed = [
        tensor if tensor is None or tensor.dim() != 4
        else tensor.transpose(1, 2).contiguous().transpose(1, 2)
        for tensor in form
    ]  # fmt: skip
    spread = [
        tensor if tensor is None or tensor.dim() != 4
        else tensor.repeat_interleave(3, 3)[..., ::3]
        for tensor in form
    ]  # fmt: skip
    expected = run(form, "triton", normalization=normalization)
    for inputs in (transposed, spread):
        assert not all(tensor is None or tensor.is_contiguous() for tensor in inputs)
        for found, plain in zip(
            run(inputs, "triton", normalization=normalization), expected, strict=True
        ):
            torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-7)


def test_expanded_inputs(form):
    expanded = [
        None if tensor is None else tensor[:1].expand_as(tensor) if tensor.dim() == 4 else tensor
        for tensor in form
    ]
    assert_as_exact_as_reference(expanded, normalization="row")


def test_gradients_are_added_in_float32_over_chunks(monkeypatch):
    inputs = attention(batch=1, students=2, teachers=2, group=2, queries=48, keys=70)
    options = {"normalization": "row", "reduction": "sum"}
    whole = run([tensor.half() for tensor in inputs], "triton", **options)
    monkeypatch.setattr(attention_query_key, "scratch_bytes", lambda device: 1)
    parts = run([tensor.half() for tensor in inputs], "triton", **options)
    gradient, other = whole[2], parts[2]
    assert gradient.dtype == torch.float16
    # Half a unit in the last place each, had both been rounded once.
    torch.testing.assert_close(other, gradient, rtol=2**-10, atol=1e-7)


def test_small_float16_gradients_survive_until_they_are_scaled():
    """What follows the loss scales by 2²⁴; before that these gradients are below float16."""
    inputs = attention(dtype=torch.float16)
    leaf = inputs[0].requires_grad_()
    loss = attention_alignment_loss(
        *inputs, normalization="row", student_scale=1e-6, backend="triton"
    )
    (gradient,) = torch.autograd.grad(loss * 2.0**24, leaf)
    (plain,) = torch.autograd.grad(loss_in_float64(inputs, 1e-6) * 2.0**24, leaf)
    torch.testing.assert_close(gradient, plain, rtol=4e-3, atol=1e-6)


def loss_in_float64(inputs, scale):
    return attention_alignment_loss(
        *(tensor.double() for tensor in inputs),
        normalization="row",
        student_scale=scale,
        backend="reference",
    )


class NoSynchronisation(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "waits for the device"
        return function(*arguments, **(options or {}))


def test_no_host_synchronisation(form):
    with NoSynchronisation():
        run(form, "triton", normalization="map")


def test_sizes_are_no_constants_of_compilation():
    done = without_interpreter(
        "from fastkd_kernels.attention import cases\n"
        "kernels = {case.kernel for case in cases.offline_cases()}\n"
        "bad = [(k.__name__, p.name) for k in kernels for p in k.params\n"
        "       if not p.is_constexpr and not p.do_not_specialize\n"
        "       and any(isinstance(c.arguments[p.name], str) and c.arguments[p.name][0] != '*'\n"
        "               for c in cases.offline_cases() if c.kernel is k)]\n"
        "print(len(kernels), bad)"
    )
    assert done.stdout.strip() == "10 []", done.stdout + done.stderr


def test_configurations_are_bounded_and_change_with_powers_of_two_only():
    def chosen(length):
        dtype, half = torch.bfloat16, Precision(torch.bfloat16, tl.bfloat16, "ieee")
        return (
            probability_tile(length, length, 64, dtype),
            product_tile(length, length, 64, half),
            mix_tile(length, half),
            pair_tile(length, 64, (dtype, dtype)),
        )

    assert len({chosen(length) for length in range(1, 5000)}) == 3
    assert len({chosen(length) for length in range(65, 5000)}) == 1


def test_one_compilation_for_all_batches_and_lengths_of_a_class(monkeypatch):
    """Every launch of one class asks for the same constants, whatever B and T are."""

    def constants(batch, queries, keys):
        seen = []
        monkeypatch.setattr(
            attention_query_key,
            "play",
            lambda steps, _: seen.extend((step.kernel.__name__, step.constants) for step in steps),
        )
        run(attention(batch=batch, queries=queries, keys=keys), "triton", normalization="row")
        return seen

    found = constants(1, 33, 40)
    assert len(found) >= 3
    assert found == constants(3, 64, 57)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_a_second_order_gradient_is_refused(form, reduction):
    place = learned(form)[0]
    leaf = form[place].requires_grad_()
    loss = attention_alignment_loss if len(form) == 5 else None
    if loss is None:
        from fastkd import alignment_loss_from_maps as loss
    value = loss(*form, reduction=reduction, backend="triton").sum()
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="second-order"):
        gradient.square().sum().backward()


def test_float64_is_refused_by_name():
    with pytest.raises(BackendUnavailable, match="float64"):
        run([tensor.double() for tensor in attention()], "triton")
    inputs = attention()
    inputs[4] = inputs[4].double()
    with pytest.raises(BackendUnavailable, match="float64"):
        run(inputs, "triton")


def test_auto_can_know_that_a_weight_is_not_served():
    *tensors, weight = attention()
    query, key, teacher_query, teacher_key = ((tensor,) for tensor in tensors)
    sides = QueryKey(query, key, 1.0), QueryKey(teacher_query, teacher_key, 1.0)

    def reason(weight):
        return unavailable(
            AlignmentCall(*sides, weight, None, None, None, None, AlignmentOptions())
        )

    assert reason(weight) is None
    assert "float64" in reason(weight.double())


def test_larger_heads_than_served_are_refused():
    with pytest.raises(BackendUnavailable, match="256"):
        run(attention(student_size=257), "triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled where there is a GPU")
def test_a_cpu_without_the_interpreter_is_refused():
    done = without_interpreter(
        "import torch, fastkd\n"
        "x = torch.zeros(1, 1, 2, 16)\n"
        "try:\n"
        "    fastkd.attention_alignment_loss(x, x, x, x, backend='triton')\n"
        "except fastkd.BackendUnavailable as error:\n"
        "    print(error)"
    )
    assert "TRITON_INTERPRET" in done.stdout, done.stderr


def test_layers_are_read_as_their_concatenation():
    inputs = attention(students=4, teachers=4, group=2)
    layers = [list(tensor.split(tensor.shape[1] // 2, 1)) for tensor in inputs[:4]]
    options = {"normalization": "row", "backend": "triton"}
    whole = attention_alignment_loss(*inputs, **options)
    assert torch.equal(attention_alignment_loss(*layers, inputs[4], **options), whole)


def test_autocast_rounds_queries_and_keys_alone():
    inputs = attention()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = run(inputs, "triton", normalization="row")
        plain = run(inputs, "reference", normalization="row")
    for mine, theirs in zip(found, plain, strict=True):
        assert mine.dtype == theirs.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=1e-3)


def test_gradients_of_only_what_learns():
    inputs = attention()
    inputs[4].requires_grad_()
    loss = attention_alignment_loss(*inputs, normalization="row", backend="triton")
    loss.backward(retain_graph=True)
    first = inputs[4].grad.clone()
    loss.backward()
    assert torch.equal(inputs[4].grad, 2 * first)
    assert torch.equal(run(inputs, "triton", normalization="row")[3], first * 1.5)
    with torch.no_grad():
        again = attention_alignment_loss(*inputs, normalization="row", backend="triton")
    torch.testing.assert_close(again, loss.detach(), rtol=1e-6, atol=0)


def test_a_bias_has_no_effect_and_a_gradient_of_zeros():
    inputs = attention()
    bias = random(5, seed=9).requires_grad_()
    loss = attention_alignment_loss(*inputs, bias, backend="triton")
    loss.backward()
    assert torch.equal(bias.grad, torch.zeros_like(bias))
    assert torch.equal(loss.detach(), attention_alignment_loss(*inputs, backend="triton"))


def test_the_kernels_import_nothing_of_fastkd():
    for path in KERNELS.glob("*.py"):
        text = path.read_text()
        assert "import fastkd\n" not in text and "from fastkd " not in text, path.name
        assert "from fastkd." not in text, path.name
