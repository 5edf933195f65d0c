"""How a call is cut into chunks whose maps fit a scratch of bounded size."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from fastkd_kernels.attention.config import EDGES
from fastkd_kernels.common import ceil_div

SCRATCH_BYTES = 1 << 30  # at most, and no more than a share of the device's memory
DEVICE_SHARE = 16
ROW_STEP = EDGES[-1]  # chunks of part of a sentence start at multiples of it
SLOTS = (
    1024  # programs that keep a weight gradient of their own, about: what a large chip runs at once
)
LEAST_ROWS = 4  # of a program that mixes maps: they share what it begins with


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
    groups: tuple[tuple[Chunk, ...], ...]  # the chunks of one group hold the same sentences

    @property
    def sentences(self) -> int:
        return max(group[0].sentences for group in self.groups)

    @property
    def rows(self) -> int:
        return max(chunk.rows for group in self.groups for chunk in group)


@lru_cache(maxsize=64)
def scratch_bytes(device: torch.device) -> int:
    """The most that the maps of a chunk may take: 1 GiB and a sixteenth of the device's memory.

    A scratch this full keeps the device busy for longer than its launches take.
    """
    if device.type != "cuda":
        return SCRATCH_BYTES
    memory = torch.cuda.get_device_properties(device).total_memory
    return min(SCRATCH_BYTES, memory // DEVICE_SHARE)


def row_pitch(keys: int) -> int:
    return ceil_div(keys, 16) * 16


def rows_of_program(rows: int) -> int:
    """Rows that a mixing program walks, of so many in all."""
    return max(LEAST_ROWS, ceil_div(rows, SLOTS))


def make_plan(
    batch: int,
    maps: int,  # the student's and the teacher's, the former twice where they are not overwritten
    queries: int,
    keys: int,
    cell_bytes: int,
    budget: int,
) -> Plan:
    pitch = row_pitch(keys)
    fitting = max(budget // (maps * pitch * cell_bytes), 1)
    groups: tuple[tuple[Chunk, ...], ...]
    if fitting >= queries:
        together = ceil_div(batch, ceil_div(batch, fitting // queries))  # all about as many
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
    return Plan(pitch, groups)
