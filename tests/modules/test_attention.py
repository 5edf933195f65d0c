"""The modules add weights, and nothing else, to the functional losses."""

import pytest
import torch

from fastkd import (
    AlignToDistill,
    AttentionAlignment,
    AttentionTap,
    AttentionTaps,
    InputError,
    alignment_loss_from_maps,
    attention_alignment_loss,
)


def tap(layers, heads, queries, keys, size, causal=False, grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def per_layer(length):
        return [
            torch.randn(2, heads, length, size, generator=generator).requires_grad_(grad)
            for _ in range(layers)
        ]

    lengths = torch.tensor([queries, 2]), torch.tensor([keys, 3])
    return AttentionTap(per_layer(queries), per_layer(keys), None, causal, *lengths)


def student_taps():
    return AttentionTaps(
        tap(2, 2, 5, 5, 4, grad=True, seed=1),
        tap(2, 2, 4, 4, 4, True, grad=True, seed=2),
        tap(2, 2, 4, 5, 4, grad=True, seed=3),
    )


def teacher_taps():
    return AttentionTaps(
        tap(3, 2, 5, 5, 8, seed=4), tap(3, 2, 4, 4, 8, True, seed=5), tap(3, 2, 4, 5, 8, seed=6)
    )


def test_kinds_are_weighted_as_published():
    student, teacher = student_taps(), teacher_taps()
    method = AlignToDistill(student, teacher, normalization="row", reduction="sum")
    losses = method(student, teacher)
    torch.testing.assert_close(losses.loss, losses.encoder + losses.decoder / 2 + losses.cross / 2)
    for kind in ("encoder", "decoder", "cross"):
        ours, theirs = getattr(student, kind), getattr(teacher, kind)
        expected = attention_alignment_loss(
            ours.query,
            ours.key,
            theirs.query,
            theirs.key,
            method.kinds[kind].weight,
            query_lengths=ours.query_lengths,
            key_lengths=ours.key_lengths,
            causal=kind == "decoder",
            normalization="row",
        )
        torch.testing.assert_close(getattr(losses, kind), expected)
    losses.loss.backward()
    for parameter in method.parameters():
        assert parameter.shape == (6, 4)
        assert parameter.grad.abs().sum() > 0
    assert student.cross.key[1].grad.abs().sum() > 0


def test_kinds_carry_their_own_gradients():
    student, teacher = student_taps(), teacher_taps()
    method = AlignToDistill(student, teacher, normalization="map", reduction="sum")
    method(student, teacher).cross.backward()
    assert method.kinds["cross"].weight.grad is not None
    assert method.kinds["encoder"].weight.grad is None


def test_built_from_numbers_of_maps():
    counts = {"encoder": 4, "cross": 4}, {"encoder": 6, "decoder": 6, "cross": 6}
    method = AlignToDistill(
        *counts, weights={"cross": 0.0, "encoder": 2.0}, padding="include", normalization="map"
    )
    assert set(method.kinds) == {"encoder"}
    assert method.kinds["encoder"].options["padding"] == "include"
    losses = method(student_taps(), teacher_taps())
    torch.testing.assert_close(losses.loss, 2 * losses.encoder)
    assert losses.decoder == 0
    assert losses.cross == 0


def test_missing_taps_are_skipped():
    student, teacher = student_taps(), teacher_taps()
    method = AlignToDistill(student, teacher, normalization="map", reduction="sum")
    losses = method(AttentionTaps(encoder=student.encoder), teacher)
    torch.testing.assert_close(losses.loss, losses.encoder)
    assert losses.decoder == 0
    with pytest.raises(InputError, match="no kind of attention"):
        method(AttentionTaps(), teacher)


def test_unreduced_losses():
    student, teacher = student_taps(), teacher_taps()
    method = AlignToDistill(student, teacher, normalization="map", reduction="none")
    losses = method(student, teacher)
    assert losses.encoder.shape == (2, 6)
    expected = losses.encoder.sum(1) + losses.decoder.sum(1) / 2 + losses.cross.sum(1) / 2
    torch.testing.assert_close(losses.loss, expected)


def test_lengths_may_come_with_either_model():
    student, teacher = student_taps(), teacher_taps()
    bare = AttentionTaps(AttentionTap(student.encoder.query, student.encoder.key))
    method = AlignToDistill(student, teacher, normalization="map", reduction="sum")
    assert method(bare, teacher).encoder == method(student, teacher).encoder


def test_taps_must_agree_in_causality():
    student, teacher = student_taps(), teacher_taps()
    mixed = AttentionTaps(encoder=tap(2, 2, 5, 5, 4, causal=True))
    with pytest.raises(InputError, match="causal: the student's tap has True, the teacher's False"):
        AlignToDistill(student, teacher)(mixed, teacher)


def test_initial_weight_is_that_of_a_1x1_convolution():
    torch.manual_seed(3)
    ours = AttentionAlignment(4, 6, "map", bias=True)
    torch.manual_seed(3)
    theirs = torch.nn.Conv2d(4, 6, 1)
    torch.testing.assert_close(ours.weight, theirs.weight[:, :, 0, 0])
    torch.testing.assert_close(ours.bias, theirs.bias)


@pytest.mark.parametrize("normalization", ["map", "row", "mixture"])
def test_training_the_weight_alone_lowers_the_loss(normalization):
    student, teacher = student_taps(), teacher_taps()
    alignment = AttentionAlignment(4, 6, normalization, reduction="sum")
    optimizer = torch.optim.Adam(alignment.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = alignment(student.encoder, teacher.encoder)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_tensors_maps_and_no_mixing():
    student, teacher = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    alignment = AttentionAlignment(3, 3, "row", mix=False, temperature=0.5, reduction="mean")
    assert not list(alignment.parameters())
    expected = alignment_loss_from_maps(
        student, teacher, normalization="row", temperature=0.5, reduction="mean"
    )
    assert alignment.from_maps(student, teacher) == expected
    attention = [torch.randn(2, 3, 4, 5) for _ in range(4)]
    value = alignment(*attention, causal=True)
    expected = attention_alignment_loss(
        *attention, normalization="row", temperature=0.5, reduction="mean", causal=True
    )
    assert value == expected


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: AttentionAlignment(0, 3), "at least 1"),
        (
            lambda: AttentionAlignment(2, 3, "rows"),
            "normalization must be one of map, row, mixture",
        ),
        (lambda: AttentionAlignment(2, 3, padding="none"), "padding must be one of"),
        (
            lambda: AlignToDistill.from_taps(AttentionTaps(), AttentionTaps()),
            "no kind of attention",
        ),
        (lambda: AttentionAlignment(2, 3, "mixture", bias=True), "bias: normalization 'mixture'"),
        (lambda: AttentionAlignment(2, 3, mix=False), "mix=False needs as many"),
        (lambda: AlignToDistill({"self": 2}, {"encoder": 2}), "'self' is none of encoder"),
        (lambda: AlignToDistill({}, {}, weights={"self": 2}), "'self' is none of encoder"),
    ],
)
def test_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()


def test_defaults_are_the_mixture_by_rows():
    student, teacher = student_taps().encoder, teacher_taps().encoder
    align = AttentionAlignment(4, 6)
    given = AttentionAlignment(4, 6, "mixture", reduction="sum")
    given.load_state_dict(align.state_dict())
    lengths = student.query_lengths
    rows = int(lengths.sum()) if lengths is not None else student.query[0].shape[0] * 5
    expected = given(student, teacher) / (rows * 6)
    torch.testing.assert_close(align(student, teacher), expected)


@pytest.mark.parametrize("option", [{"bias": True}, {"temperature": 0.5}])
def test_what_the_mixture_has_no_use_for_takes_rows_and_warns(option):
    with pytest.warns(FutureWarning, match="belongs to normalization 'row' or 'map'; 'row' is"):
        align = AttentionAlignment(4, 6, **option)
    assert align.options["normalization"] == "row"
