"""The caching allocator's arithmetic, by hand-made cases from its rules."""

import pytest

from fastkd.memory.step.allocator import MIB, CachingAllocator, OutOfMemory


def test_small_requests_share_a_segment_of_two_mebibytes():
    allocator = CachingAllocator()
    for _ in range(3):
        allocator.allocate(1)
    assert allocator.allocated == 3 * 512
    assert allocator.reserved == 2 * MIB


@pytest.mark.parametrize(
    ("size", "reserved"),
    [(MIB, 2), (MIB + 1, 20), (9 * MIB, 20), (10 * MIB, 10), (11 * MIB, 12), (50 * MIB, 50)],
)
def test_segments(size, reserved):
    allocator = CachingAllocator()
    allocator.allocate(size)
    assert allocator.reserved == reserved * MIB


def test_a_large_block_is_not_split_for_less_than_a_mebibyte():
    allocator = CachingAllocator()
    allocator.allocate(11 * MIB + 1)  # from a segment of 12 MiB
    assert allocator.allocated == 12 * MIB


def test_freed_neighbours_merge_and_are_taken_again():
    allocator = CachingAllocator()
    pieces = [allocator.allocate(5 * MIB) for _ in range(4)]  # one segment of 20 MiB
    for piece in (pieces[1], pieces[3], pieces[2]):
        allocator.free(piece)
    allocator.allocate(15 * MIB)
    assert allocator.reserved == 20 * MIB
    assert allocator.allocated == 20 * MIB


def test_fragments_do_not_serve_a_larger_request():
    allocator = CachingAllocator()
    pieces = [allocator.allocate(5 * MIB) for _ in range(4)]
    allocator.free(pieces[0])
    allocator.free(pieces[2])
    allocator.allocate(9 * MIB)
    assert allocator.reserved == 40 * MIB


def test_the_best_fit_is_taken():
    allocator = CachingAllocator()
    large, small = allocator.allocate(40 * MIB), allocator.allocate(30 * MIB)
    allocator.free(large)
    allocator.free(small)
    allocator.allocate(30 * MIB)
    allocator.allocate(40 * MIB)
    assert allocator.reserved == 70 * MIB


def test_unused_segments_go_back_before_memory_is_out():
    allocator = CachingAllocator(limit=50 * MIB)
    allocator.free(allocator.allocate(30 * MIB))
    allocator.allocate(40 * MIB)
    assert allocator.reserved == 40 * MIB
    with pytest.raises(OutOfMemory):
        allocator.allocate(12 * MIB)
