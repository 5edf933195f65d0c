"""The search for the largest batch that fits, and how few steps it predicts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkd.memory.step import fit
from fastkd.memory.step.fit import largest_batch, needed
from fastkd.memory.step.predict import predict_step
from fastkd.memory.step.search import ENOUGH, largest
from fastkd.memory.step.workload import workload


def searched(memory, smallest, guess, capacity):
    """What the search finds, and what it asked for on its way."""
    asked = []

    def taken(count):
        asked.append(count)
        return memory(count)

    found = largest(taken, smallest, guess, capacity, 0.02)
    assert len(set(asked)) == len(asked)
    assert all(smallest <= count for count in asked)
    return found, asked


def is_largest(memory, found, capacity):
    return memory(found) <= capacity < memory(found + max(int(0.02 * found), 1) + 1)


@pytest.mark.parametrize("capacity", [1_000, 5_500, 123_456, 10**8])
@pytest.mark.parametrize("guess", [8, 64, 4096])
def test_few_questions_where_memory_is_a_line(capacity, guess):
    def memory(count):
        return 500 + 3 * count

    found, asked = searched(memory, 8, guess, capacity)
    assert is_largest(memory, found, capacity)
    assert len(asked) <= 8


@pytest.mark.parametrize("capacity", [1_000, 5_500, 123_456])
def test_few_questions_where_memory_is_a_curve(capacity):
    def memory(count):
        return 100 + 3 * count + count**2 / 10_000

    found, asked = searched(memory, 1, 64, capacity)
    assert is_largest(memory, found, capacity)
    assert len(asked) <= 14


@given(
    st.lists(st.integers(2, 1 << 20), max_size=6, unique=True),
    st.lists(st.integers(1, 1 << 30), min_size=6, max_size=6),
    st.integers(1, 1000),
    st.integers(1, 1 << 20),
    st.integers(1, 1 << 32),
)
def test_memory_that_leaps(places, leaps, slope, guess, capacity):
    def memory(count):
        return slope * count + sum(
            leap for place, leap in zip(places, leaps, strict=False) if count >= place
        )

    found, asked = searched(memory, 1, guess, capacity)
    # A third of the calls: log₈ 2²⁶ times by 8, then log₂(log 2²⁰ / log 1.02) + 1 halves.
    assert len(asked) <= 3 * (9 + 11)
    if found is None:
        assert memory(1) > capacity
    elif found < ENOUGH / 1.02:
        assert is_largest(memory, found, capacity)


def test_nothing_fits():
    assert searched(lambda count: 100 + count, 16, 1024, 90)[0] is None


@pytest.mark.slow
def test_steps_predicted_for_the_largest_batch(make_config, teacher, monkeypatch):
    config = make_config(training={"backend": "torch", "batch_tokens": 512})
    work = workload(config)
    updates, seen = [], []

    def counted(config, vocabulary, taught, update, *rest):
        updates.append(update)
        return predict_step(config, vocabulary, taught, update, *rest)

    def known(batch_tokens):
        sized = fit.with_batch_tokens(config, batch_tokens)
        steps = [
            predict_step(sized, work.vocabulary, teacher, update, "cuda")
            for update in work.heaviest(batch_tokens)
        ]
        return max(needed(step) for step in steps)

    ours = known(512)
    monkeypatch.setattr(fit, "predict_step", counted)
    capacity = 2 * ours
    found = largest_batch(
        config, work, teacher, "cuda", capacity, {512: ours}, progress=seen.append
    )
    assert found is not None
    assert len(updates) == len(seen) <= 24
    assert known(found) <= capacity < known(int(1.05 * found) + 2)
    assert largest_batch(config, work, teacher, "cuda", ours // 100) is None
