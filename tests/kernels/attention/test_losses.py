"""The alignment kernels against the reference, under the interpreter or on a GPU."""

import pytest
import torch
from fastkd_kernels import common
from fastkd_kernels.attention.query_key import alignment as attention_query_key
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.attention_compare import (
    DEVICE,
    assert_as_exact_as_reference,
    attention,
    maps,
    run,
)

NORMALIZATIONS = ("map", "row", "mixture")
# The interpreter has no bfloat16; tests/compiled executes it.
ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")]


@pytest.fixture(scope="module", autouse=True)
def poisoned_workspaces():
    """Memory that no kernel wrote reads as NaN."""
    patch = pytest.MonkeyPatch()
    patch.setattr(
        common,
        "empty",
        lambda shape, dtype, device: torch.full(shape, torch.nan, dtype=dtype, device=device),
    )
    yield
    patch.undo()


def lengths(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("padding", ["exclude", "include"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_normalization_padding_and_reduction(normalization, padding, reduction):
    assert_as_exact_as_reference(
        attention(),
        normalization=normalization,
        padding=padding,
        reduction=reduction,
        query_lengths=lengths(7, 3),
        key_lengths=lengths(4, 9),
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_losses_of_one_teacher_map_stay_apart(normalization):
    options = {"normalization": normalization, "reduction": "none"}
    assert_as_exact_as_reference(attention(batch=3, teachers=1, queries=2), **options)
    assert_as_exact_as_reference(maps(batch=3, teachers=1, queries=2), **options)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_reduced_losses_of_maps_and_pairs(normalization, reduction):
    options = {"normalization": normalization, "reduction": reduction}
    pairs = attention(batch=3, teachers=3, queries=2, keys=5, weighted=False)
    assert_as_exact_as_reference(pairs, **options)
    assert_as_exact_as_reference(maps(batch=3, queries=2, keys=5), **options)


@pytest.mark.parametrize("students", [3, 40])
def test_gradient_through_the_softmax_of_a_weight(students):
    """Of rows of one block of columns and of two."""
    inputs = attention(students=students, teachers=2, queries=2, keys=5)
    assert_as_exact_as_reference(inputs, normalization="mixture")
    assert_as_exact_as_reference(maps(students=students, teachers=2), normalization="mixture")


@pytest.mark.parametrize("padding", ["exclude", "include"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_head_against_head(normalization, padding):
    inputs = attention(students=4, teachers=4, group=2, queries=9, weighted=False)
    assert_as_exact_as_reference(
        inputs,
        normalization=normalization,
        padding=padding,
        reduction="none",
        causal=True,
        query_lengths=lengths(9, 3),
        key_lengths=lengths(4, 0),
    )


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("padding", ["exclude", "include"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_maps(normalization, padding, weighted):
    inputs = maps(teachers=5 if weighted else 3, weighted=weighted, queries=9)
    assert_as_exact_as_reference(
        inputs,
        normalization=normalization,
        padding=padding,
        reduction="none",
        causal=True,
        query_lengths=lengths(2, 9),
        key_lengths=lengths(9, 5),
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_rows_longer_than_a_block_and_more_maps_than_one(normalization):
    inputs = attention(students=2, teachers=33, queries=2, keys=150, batch=1)
    assert_as_exact_as_reference(
        inputs, normalization=normalization, reduction="none", key_lengths=lengths(140)
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_long_maps(normalization):
    inputs = maps(batch=1, teachers=33, queries=2, keys=150)
    assert_as_exact_as_reference(inputs, normalization=normalization, key_lengths=lengths(140))


@pytest.mark.slow
@pytest.mark.parametrize("keys", [5, 70])
@pytest.mark.parametrize("teachers", [5, 17])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_more_student_maps_than_a_program_holds(normalization, teachers, keys):
    """Of float32; rows of 70 keys go over several blocks, some of them without a key."""
    options = {"normalization": normalization, "reduction": "none"}
    options |= {"query_lengths": lengths(3, 2), "key_lengths": lengths(keys, 3)}
    shape = {"students": 18, "teachers": teachers, "queries": 3, "keys": keys}
    assert_as_exact_as_reference(attention(**shape), **options)
    assert_as_exact_as_reference(maps(**shape), **options)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_long_rows_head_against_head(normalization):
    inputs = attention(batch=1, students=1, teachers=1, queries=34, keys=70, weighted=False)
    assert_as_exact_as_reference(inputs, normalization=normalization, key_lengths=lengths(67))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_long_heads_against_heads(normalization):
    """Heads read in parts, of which the teacher has one less."""
    inputs = attention(
        1, 2, 2, queries=34, keys=34, student_size=130, teacher_size=80, group=2, weighted=False
    )
    assert_as_exact_as_reference(inputs, normalization=normalization, causal=True)


@pytest.mark.parametrize("normalization", ["map", "row"])
@pytest.mark.parametrize("padding", ["exclude", "include"])
def test_chunks_of_part_of_a_sentence(normalization, padding, monkeypatch):
    monkeypatch.setattr(attention_query_key, "scratch_bytes", lambda device: 1)
    inputs = attention(batch=1, students=2, teachers=2, group=2, queries=20, keys=70)
    assert_as_exact_as_reference(
        inputs, normalization=normalization, padding=padding, query_lengths=lengths(19)
    )


@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("normalization", ["map", "row"])
def test_temperature_and_scales(normalization, temperature):
    assert_as_exact_as_reference(
        attention(),
        normalization=normalization,
        temperature=temperature,
        student_scale=0.7,
        teacher_scale=0.1,
        reduction="none",
    )


@pytest.mark.parametrize("keys", [5, 32, 70])
@pytest.mark.parametrize("scales", [(-0.7, 0.3), (0.0, -0.1), (1e-3, 0.0)])
def test_scales_of_any_sign(scales, keys):
    """Keys that are not attended to are told by a score of −∞ before the scale comes to it."""
    student, teacher = scales
    assert_as_exact_as_reference(
        attention(batch=2, students=2, teachers=2, queries=3, keys=keys),
        normalization="row",
        student_scale=student,
        teacher_scale=teacher,
        key_lengths=lengths(keys, keys - 3),
    )


@pytest.mark.parametrize("size", [3, 72])
def test_causal_rows_of_several_blocks(size):
    """Blocks that every row of a program attends to are taken without a mask."""
    inputs = attention(
        batch=1, students=1, teachers=2, queries=134, keys=134, student_size=size, teacher_size=size
    )
    assert_as_exact_as_reference(
        inputs, normalization="mixture", causal=True, key_lengths=lengths(133)
    )


@pytest.mark.parametrize("temperature", [0.3, 0.13, 0.05])
@pytest.mark.parametrize("form", ["row", "map", "row pairs", "map pairs"])
@pytest.mark.parametrize("seed", [0, 30])
def test_sharp_exponents(form, temperature, seed):
    """One cell decides Σexp(a), and student and teacher differ there: sums of d nearly cancel."""
    pairs = form.endswith("pairs")
    inputs = attention(teachers=3, queries=4, keys=20, batch=1, weighted=not pairs, seed=seed)
    inputs[0] *= 0.1
    inputs[2] *= 20
    if not pairs:
        inputs[4] = inputs[4].abs() / inputs[4].abs().sum(1, keepdim=True)
    assert_as_exact_as_reference(inputs, normalization=form[:3], temperature=temperature)


@pytest.mark.parametrize("causal", [True, False])
def test_few_cells_that_differ_much(causal):
    """Some m − a are above 2, in one row at most, and the loss of the map is small all the same."""
    sizes = {"queries": 40, "keys": 40} if causal else {"batch": 3, "queries": 12, "keys": 33}
    lengths = {} if causal else {"key_lengths": torch.tensor([0, 4, 0]), "padding": "include"}
    inputs = attention(**{"batch": 1, "students": 2, "teachers": 2, "teacher_size": 16} | sizes)
    if causal:  # the one cell of the first row has m = 3 and a = 1
        inputs[4] = torch.tensor([[1.0, 2.2], [-1.2, 0.1]])
    assert_as_exact_as_reference(
        inputs, normalization="map", causal=causal, reduction="none", **lengths
    )


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("normalization", ["map", "row"])
@pytest.mark.parametrize("seed", [0, 50])
def test_large_weights_and_small_temperatures(normalization, temperature, seed):
    inputs = attention(batch=1, queries=4, seed=seed)
    inputs[4] *= 100 / inputs[4].abs().sum(1).max()
    assert_as_exact_as_reference(inputs, normalization=normalization, temperature=temperature)


@pytest.mark.slow
def test_long_maps_keep_their_digits():
    """At τ = 1 the two softmaxes over a map are nearly uniform, and the loss about 1e-5."""
    inputs = maps(1, 1, 1, queries=64, keys=512)
    truth = run([tensor.double() for tensor in inputs], "reference", normalization="map")
    found = run(inputs, "triton", normalization="map")
    torch.testing.assert_close(found[0].double(), truth[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=ON_A_GPU)])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("weighted", [True, False])
def test_half_precision(normalization, weighted, dtype):
    inputs = attention(teachers=5 if weighted else 3, dtype=dtype, weighted=weighted)
    assert_as_exact_as_reference(inputs, normalization=normalization, reduction="none")


@st.composite
def drawn_calls(draw):
    """(arguments of `attention`, options)"""

    def some(least, most):
        return draw(st.integers(least, most))

    batch, group, students, queries = some(1, 3), some(1, 2), some(1, 3), some(1, 18)
    causal, weighted = draw(st.booleans()), draw(st.booleans())
    keys = queries if causal else some(1, 35)
    arguments = {
        "batch": batch,
        "students": students * group,
        "teachers": (some(1, 3) if weighted else students) * group,
        "queries": queries,
        "keys": keys,
        "student_size": draw(st.sampled_from([16, 20, 80])),
        "teacher_size": draw(st.sampled_from([16, 33])),
        "group": group,
        "weighted": weighted,
    }
    return arguments, {
        "normalization": draw(st.sampled_from(NORMALIZATIONS)),
        "padding": draw(st.sampled_from(["exclude", "include"])),
        "causal": causal,
        "query_lengths": lengths(*(some(0, queries) for _ in range(batch))),
        "key_lengths": lengths(*(some(0, keys) for _ in range(batch))),
        "reduction": draw(st.sampled_from(["none", "sum"])),
    }


@pytest.mark.slow
@given(drawn=drawn_calls())
@settings(max_examples=12, deadline=None)
def test_drawn_shapes(drawn):
    arguments, options = drawn
    assert_as_exact_as_reference(attention(**arguments), **options)
