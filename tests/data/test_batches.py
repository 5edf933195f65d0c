import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd.data.batches import BatchPlan, collate, split
from fastkd.data.corpus import write_corpus
from fastkd.errors import InputError

lengths = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=120)


def plan_of(pairs, batch_tokens=64, seed=1):
    source, target = np.array(pairs, np.int32).reshape(-1, 2).T
    return BatchPlan(source, target, batch_tokens, seed)


def news_like(count, seed=0):
    """Lengths as in news: skewed, the sides correlated."""
    random = np.random.default_rng(seed)
    source = random.lognormal(3.0, 0.5, count).clip(1, 200)
    target = (source * random.normal(1.0, 0.15, count)).clip(1, 220)
    return source.astype(np.int32), target.astype(np.int32)


@settings(deadline=None)
@given(lengths, st.integers(31, 200), st.integers(-3, 2**70), st.integers(0, 5))
def test_every_sentence_once_within_the_budget(pairs, batch_tokens, seed, epoch):
    plan = plan_of(pairs, batch_tokens, seed)
    batches = plan.epoch(epoch)
    assert len(batches) == plan.batches
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(pairs)))
    for ids in batches:
        longest = max(max(pairs[i]) + 1 for i in ids)
        assert len(ids) * longest <= batch_tokens


@settings(deadline=None)
@given(lengths, st.integers(0, 3))
def test_epochs_are_a_function_of_seed_and_number(pairs, epoch):
    first, again = (plan_of(pairs, seed=5).epoch(epoch) for _ in range(2))
    assert [ids.tolist() for ids in first] == [ids.tolist() for ids in again]


def test_epochs_and_seeds_differ_in_order_and_in_company():
    source, target = news_like(20_000)

    def company(plan, epoch):
        batch_of = np.empty(len(source), int)
        for number, ids in enumerate(plan.epoch(epoch)):
            batch_of[ids] = number
        return batch_of

    def together_again(one, other):
        random = np.random.default_rng(0)
        left, right = random.integers(len(source), size=(2, 3_000_000))
        before = (one[left] == one[right]) & (left != right)
        return (other[left] == other[right])[before].mean()

    plan = BatchPlan(source, target, 1024, seed=1)
    first, second = company(plan, 1), company(plan, 2)
    other_seed = company(BatchPlan(source, target, 1024, seed=2), 1)
    assert (first != second).mean() > 0.9
    assert together_again(first, second) < 0.75
    assert together_again(first, other_seed) < 0.75


def test_batches_come_in_mixed_order():
    source, target = news_like(5000)
    batches = BatchPlan(source, target, 1024).epoch(1)
    longest = [int(max(source[ids].max(), target[ids].max())) for ids in batches]
    steps = np.abs(np.diff(longest))
    assert steps.mean() > 5 * np.abs(np.diff(sorted(longest))).mean()


def test_both_sides_have_little_padding():
    source, target = news_like(40_000)
    plan = BatchPlan(source, target, 4096)
    share = plan.padding_share()
    assert share < 0.05
    by_longest = np.lexsort((np.minimum(source, target), np.maximum(source, target)))
    real = padded = 0
    for ids in np.array_split(by_longest, plan.batches):
        for side in (source, target):
            real += int(side[ids].sum()) + len(ids)
            padded += len(ids) * (int(side[ids].max()) + 1)
    assert share < 0.6 * (1 - real / padded)


def test_padding_share_counts_both_sides():
    # One batch: 2 x (4 + 3) positions, 4 + 2 + 3 + 3 tokens.
    assert plan_of([(3, 2), (1, 2)]).padding_share() == pytest.approx(1 - 12 / 14)
    assert plan_of([]).padding_share() == 0


def test_batches_are_full():
    source, target = news_like(40_000)
    plan = BatchPlan(source, target, 4096)
    longest = [int(max(source[ids].max(), target[ids].max())) + 1 for ids in plan.epoch(1)]
    filled = [len(ids) * long for ids, long in zip(plan.epoch(1), longest, strict=True)]
    assert np.mean(filled) > 0.97 * 4096


def test_a_sentence_beyond_the_budget_names_both_numbers():
    with pytest.raises(InputError, match=r"batch_tokens = 64 is less .* at least 71 "):
        plan_of([(3, 4), (5, 70)])
    assert plan_of([(3, 4), (5, 63)]).batches == 2


def test_no_loop_over_sentences():
    """Counted are steps of Python, which no processor changes; by arrays they are a few hundred."""
    source, target = news_like(100_000)
    lines = 0

    def count(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        plan = BatchPlan(source, target, 25_000)
        batches = plan.epoch(1)
    finally:
        sys.settrace(before)
    assert sum(map(len, batches)) == 100_000
    assert 10 < lines < 10_000


@settings(deadline=None)
@given(lengths, st.integers(1, 9))
def test_split_keeps_every_sentence_in_order(pairs, parts):
    source, target = np.array(pairs, np.int32).reshape(-1, 2).T
    corpus = SimpleNamespace(source_lengths=source, target_lengths=target)
    ids = np.random.default_rng(0).permutation(len(pairs))
    pieces = split(corpus, ids, parts)
    assert len(pieces) == parts
    assert np.concatenate(pieces).tolist() == ids.tolist()
    if len(ids) >= parts:
        assert min(map(len, pieces)) > 0


def test_pieces_of_a_batch_are_about_equal():
    source, target = news_like(20_000)
    corpus = SimpleNamespace(source_lengths=source, target_lengths=target)
    plan = BatchPlan(source, target, 8192)
    tokens = source + target + 2
    for ids in plan.epoch(1):
        sizes = [int(tokens[piece].sum()) for piece in split(corpus, ids, 4)]
        # Each end of a piece is off by half a sentence at most.
        assert max(sizes) - min(sizes) <= 2 * tokens[ids].max()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, joint):
    pairs = [("bade figo", "lu"), ("ma", "neri sotu bade"), ("", "go"), ("debafi", "lumane")]
    return write_corpus(tmp_path_factory.mktemp("c") / "c", pairs, joint, ("aa", "bb"))


@pytest.mark.parametrize(("start", "start_id"), [("bos", 2), ("eos", 3), ("pad", 0)])
def test_a_batch_holds_padded_pairs(corpus, joint, start, start_id):
    ids = [3, 1, 2]
    batch = collate(corpus, ids, joint, start)
    assert len(batch) == 3
    assert batch.sentence_ids.tolist() == ids
    for row, i in enumerate(ids):
        source, target = corpus.source(i).tolist(), corpus.target(i).tolist()
        assert batch.source_lengths[row] == len(source) + 1
        assert batch.target_lengths[row] == len(target) + 1
        source_pads = [0] * (batch.source.shape[1] - len(source) - 1)
        target_pads = [0] * (batch.target.shape[1] - len(target) - 1)
        assert batch.source[row].tolist() == [*source, 3, *source_pads]
        assert batch.target[row].tolist() == [*target, 3, *target_pads]
        assert batch.decoder_input[row].tolist() == [start_id, *target, *target_pads]
    assert batch.source.shape[1] == batch.source_lengths.max()
    assert batch.target.shape[1] == batch.target_lengths.max()
    assert batch.target_tokens == int((batch.target != 0).sum())
    assert batch.positions == batch.source.numel() + batch.decoder_input.numel()
    assert {t.dtype for t in vars(batch).values()} == {torch.int64}


def test_an_empty_batch_has_no_rows(corpus, joint):
    batch = collate(corpus, [], joint)
    assert len(batch) == batch.target_tokens == batch.positions == 0


def test_lengths_stay_on_the_cpu(corpus, joint):
    batch = collate(corpus, [0, 1], joint)
    assert batch.to("cpu") is batch
    moved = batch.to("meta")
    assert {moved.source.device.type, moved.decoder_input.device.type} == {"meta"}
    assert moved.target.device.type == "meta"
    assert moved.source_lengths is batch.source_lengths
    assert moved.target_lengths is batch.target_lengths
    assert moved.sentence_ids is batch.sentence_ids
