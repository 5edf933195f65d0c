"""How a call is cut into chunks whose maps fit a scratch of bounded size."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from fastkd_kernels.attention.config import EDGES, LONG_BLOCK
from fastkd_kernels.common import block_size, ceil_div

SCRATCH_BYTES = 32 << 20  # where the device does not tell the size of its cache
ROW_STEP = 64  # chunks of part of a sentence start at multiples of it
SEGMENTS = 8  # a row's keys are shared among so many programs, at most
SLOTS = 1024  # programs that keep a weight gradient of their own, about


@dataclass(frozen=True)
class Chunk:
    """Query rows [first_row, first_row + rows) of consecutive sentences."""

    first_sentence: int
    sentences: int
    first_row: int
    rows: int
    first: bool  # of its sentences' chunks
    last: bool


@dataclass(frozen=True)
class Plan:
    pitch: int  # cells between two rows of the scratch
    key_block: int
    key_blocks: int
    segments: int
    segment_keys: int
    whole: bool  # a program of the mixing kernels holds whole rows, and the scratch final maps
    groups: tuple[tuple[Chunk, ...], ...]  # the chunks of one group hold the same sentences

    @property
    def sentences(self) -> int:
        return max(group[0].sentences for group in self.groups)

    @property
    def rows(self) -> int:
        return max(chunk.rows for group in self.groups for chunk in group)


@lru_cache(maxsize=64)
def scratch_bytes(device: torch.device) -> int:
    """Half of the device's last cache."""
    if device.type != "cuda":
        return SCRATCH_BYTES
    cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    return max(cache // 2, SCRATCH_BYTES // 4)


@lru_cache(maxsize=4096)
def make_plan(
    batch: int,
    student_maps: int,
    teacher_maps: int,
    queries: int,
    keys: int,
    whole: bool,
    in_place: bool,  # whether the gradient of the student's maps is written over them
    cell_bytes: int,
    budget: int,
) -> Plan:
    pitch = ceil_div(keys, 16) * 16
    key_block = block_size(keys, *EDGES) if whole else LONG_BLOCK
    key_blocks = ceil_div(keys, key_block)
    segments = min(SEGMENTS, ceil_div(key_blocks, 2))
    segment_keys = ceil_div(key_blocks, segments) * key_block
    segments = ceil_div(keys, segment_keys)
    maps = student_maps * (1 if in_place else 2) + teacher_maps
    fitting = max(budget // (maps * pitch * cell_bytes), 1)
    if fitting >= queries:
        together = min(batch, fitting // queries)
        groups = tuple(
            (Chunk(first, min(together, batch - first), 0, queries, True, True),)
            for first in range(0, batch, together)
        )
    else:
        step = fitting if fitting < 16 else fitting // 16 * 16
        step = step if fitting < ROW_STEP else fitting // ROW_STEP * ROW_STEP
        starts = range(0, queries, max(step, 16))
        groups = tuple(
            tuple(
                Chunk(
                    sentence, 1, row, min(starts.step, queries - row), row == 0, row == starts[-1]
                )
                for row in starts
            )
            for sentence in range(batch)
        )
    return Plan(pitch, key_block, key_blocks, segments, segment_keys, whole, groups)
