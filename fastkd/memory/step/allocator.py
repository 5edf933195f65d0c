"""PyTorch's CUDA caching allocator as arithmetic: what a sequence of tensors makes it reserve.

Default settings, one stream. Requests are rounded to 512 bytes; those up to 1 MiB come from
segments of 2 MiB, others below 10 MiB from segments of 20 MiB, larger ones from segments of
their own size in steps of 2 MiB. The smallest free block that fits is taken and split where the
rest is worth keeping; free neighbours merge. Where a new segment would pass the limit, segments
that are wholly free go back first.

Source: c10/cuda/CUDACachingAllocator.cpp of PyTorch.
"""

import bisect
from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20
ROUND = 512
SMALL, SMALL_SEGMENT = MIB, 2 * MIB
LARGE_SEGMENT, OWN_SEGMENT, ROUND_SEGMENT = 20 * MIB, 10 * MIB, 2 * MIB


class OutOfMemory(MemoryError):  # as PyTorch calls it
    """The limit is too small, even after every unused segment was given back."""


@dataclass(eq=False, slots=True)
class _Piece:
    """A part of a segment; the parts of one are linked in the order of addresses."""

    address: int
    size: int
    small: bool
    free: bool = False
    before: "_Piece | None" = None
    after: "_Piece | None" = None


class CachingAllocator:
    """allocate(bytes) gives a piece, free(piece) takes it back; the counters are in bytes."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.allocated = self.peak_allocated = 0
        self.reserved = self.peak_reserved = 0
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._pieces: dict[int, _Piece] = {}  # free ones, by address
        self._next_address = 0

    def allocate(self, size: int) -> _Piece:
        size = max(round_up(size, ROUND), ROUND)
        small = size <= SMALL
        piece = self._fitting(size, small) or self._segment(size, small)
        rest = piece.size - size
        if rest >= ROUND if small else rest > SMALL:
            self._split(piece, size)
        self.allocated += piece.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return piece

    def free(self, piece: _Piece) -> None:
        self.allocated -= piece.size
        before, after = piece.before, piece.after
        if after is not None and after.free:
            self._take(after)
            piece.size += after.size
            _link(piece, after.after)
        if before is not None and before.free:
            self._take(before)
            before.size += piece.size
            _link(before, piece.after)
            piece = before
        self._give(piece)

    def _fitting(self, size: int, small: bool) -> _Piece | None:
        free = self._free[small]
        place = bisect.bisect_left(free, (size, -1))
        if place == len(free):
            return None
        piece = self._pieces[free[place][1]]
        self._take(piece)
        return piece

    def _segment(self, size: int, small: bool) -> _Piece:
        length = segment_size(size)
        if self.limit is not None and self.reserved + length > self.limit:
            self._release()
            if self.reserved + length > self.limit:
                raise OutOfMemory(f"{self.reserved + length} bytes wanted of {self.limit}")
        self.reserved += length
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        piece = _Piece(self._next_address, length, small)
        self._next_address += length
        return piece

    def _split(self, piece: _Piece, size: int) -> None:
        rest = _Piece(piece.address + size, piece.size - size, piece.small)
        piece.size = size
        _link(rest, piece.after)
        _link(piece, rest)
        self._give(rest)

    def _release(self) -> None:
        for piece in list(self._pieces.values()):
            if piece.before is None and piece.after is None:
                self._take(piece)
                self.reserved -= piece.size

    def _give(self, piece: _Piece) -> None:
        piece.free = True
        self._pieces[piece.address] = piece
        bisect.insort(self._free[piece.small], (piece.size, piece.address))

    def _take(self, piece: _Piece) -> None:
        piece.free = False
        del self._pieces[piece.address]
        free = self._free[piece.small]
        del free[bisect.bisect_left(free, (piece.size, piece.address))]


def segment_size(size: int) -> int:
    """What is asked of the device for a rounded request that fits no free block."""
    if size <= SMALL:
        return SMALL_SEGMENT
    if size < OWN_SEGMENT:
        return LARGE_SEGMENT
    return round_up(size, ROUND_SEGMENT)


def round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _link(before: _Piece, after: _Piece | None) -> None:
    before.after = after
    if after is not None:
        after.before = before
