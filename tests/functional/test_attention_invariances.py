"""What an alignment loss must not depend on."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fastkd import attention_alignment_loss
from tests.functional.attention_backends import (
    PADDINGS,
    every_backend,
    every_normalization,
    gradients,
    loss,
    quick,
)
from tests.functional.attention_literal import case


@every_backend
@every_normalization
@quick
@given(seed=st.integers(0, 2**16), causal=st.booleans(), junk=st.sampled_from([1e4, -3.0]))
def test_padding_never_matters_where_excluded(backend, normalization, seed, causal, junk):
    plain = case(causal=causal, normalization=normalization, seed=seed)
    padded = plain.to(torch.float64)
    pad_queries = _pads(plain.options["query_lengths"], plain.student_query.shape[2])
    pad_keys = _pads(plain.options["key_lengths"], plain.student_key.shape[2])
    padded.student_query.masked_fill_(pad_queries, junk)
    padded.teacher_query.masked_fill_(pad_queries, -junk)
    padded.student_key.masked_fill_(pad_keys, junk)
    padded.teacher_key.masked_fill_(pad_keys, -junk)
    value, found = gradients(plain, backend)
    padded_value, padded_found = gradients(padded, backend)
    torch.testing.assert_close(padded_value, value)
    torch.testing.assert_close(padded_found, found)
    assert padded_found[0].masked_select(pad_queries).eq(0).all()
    assert padded_found[1].masked_select(pad_keys).eq(0).all()


def _pads(lengths, longest):
    return (torch.arange(longest) >= lengths[:, None])[:, None, :, None]


@every_backend
@every_normalization
def test_nan_in_padding_never_matters(backend, normalization):
    plain = case(normalization=normalization)
    padded = plain.to(torch.float64)
    pad_queries = _pads(plain.options["query_lengths"], plain.student_query.shape[2])
    pad_keys = _pads(plain.options["key_lengths"], plain.student_key.shape[2])
    for query in (padded.student_query, padded.teacher_query):
        query.masked_fill_(pad_queries, torch.nan)
    for key in (padded.student_key, padded.teacher_key):
        key.masked_fill_(pad_keys, torch.nan)
    torch.testing.assert_close(gradients(padded, backend), gradients(plain, backend))


@every_backend
@every_normalization
@quick
@given(seed=st.integers(0, 2**16), padding=st.sampled_from(PADDINGS))
def test_cutting_a_batch_changes_nothing(backend, normalization, seed, padding):
    tried = case(batch=5, normalization=normalization, padding=padding, seed=seed)
    whole = loss(tried, backend, reduction="none")
    for b in range(5):
        one = tried.to(torch.float64)
        attention = [tensor[b : b + 1] for tensor in one.attention]
        for name in ("query_lengths", "key_lengths"):
            one.options[name] = tried.options[name][b : b + 1]
        part = attention_alignment_loss(
            *attention, one.weight, reduction="none", backend=backend, **one.options
        )
        torch.testing.assert_close(part[0], whole[b])


@every_backend
@every_normalization
@quick
@given(seed=st.integers(0, 2**16), order=st.permutations(range(4)))
def test_order_of_student_heads_is_free(backend, normalization, seed, order):
    tried = case(student=(4, 4), normalization=normalization, seed=seed)
    order = list(order)
    shuffled = tried.to(torch.float64)
    shuffled.student_query = tried.student_query[:, order]
    shuffled.student_key = tried.student_key[:, order]
    shuffled.weight = tried.weight[:, order]
    value, found = gradients(tried, backend)
    other, shuffled_found = gradients(shuffled, backend)
    torch.testing.assert_close(other, value)
    torch.testing.assert_close(shuffled_found[0], found[0][:, order])
    torch.testing.assert_close(shuffled_found[2], found[2][:, order])


@every_backend
@every_normalization
@quick
@given(seed=st.integers(0, 2**16), order=st.permutations(range(5)))
def test_order_of_queries_is_free(backend, normalization, seed, order):
    tried = case(lengths=False, normalization=normalization, seed=seed)
    order = list(order)
    shuffled = tried.to(torch.float64)
    shuffled.student_query = tried.student_query[:, :, order]
    shuffled.teacher_query = tried.teacher_query[:, :, order]
    torch.testing.assert_close(loss(shuffled, backend), loss(tried, backend))


@every_backend
@every_normalization
def test_strides_are_free_and_inputs_unchanged(backend, normalization):
    tried = case(student=(4, 4), normalization=normalization)
    before = [tensor.clone() for tensor in (*tried.attention, tried.weight)]
    expected = gradients(tried, backend)
    for tensor, copy in zip((*tried.attention, tried.weight), before, strict=True):
        assert torch.equal(tensor, copy)
    strided = tried.to(torch.float64)
    for name in ("student_query", "student_key", "teacher_query", "teacher_key"):
        tensor = getattr(strided, name)
        setattr(strided, name, tensor.transpose(1, 2).contiguous().transpose(1, 2))
    strided.weight = strided.weight.T.contiguous().T
    torch.testing.assert_close(gradients(strided, backend), expected)


@every_backend
def test_expanded_inputs(backend):
    tried = case(batch=1, student=(1, 1), teacher=(1, 1), lengths=False)
    key = tried.student_key.expand(3, 2, -1, -1)
    query = tried.student_query.expand(3, 2, -1, -1)
    teacher = [tensor.expand(3, 2, -1, -1) for tensor in tried.attention[2:]]
    value = attention_alignment_loss(query, key, *teacher, reduction="none", backend=backend)
    one = attention_alignment_loss(*tried.attention, reduction="none", backend=backend)
    torch.testing.assert_close(value, one.expand(3, 2))


@every_backend
@every_normalization
def test_deterministic(backend, normalization):
    tried = case(dtype=torch.float32, normalization=normalization)
    first, second = gradients(tried, backend), gradients(tried, backend)
    assert torch.equal(first[0], second[0])
    assert all(map(torch.equal, first[1], second[1]))
