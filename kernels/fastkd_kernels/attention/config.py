"""Tile sizes by shape class: a bounded table, so that no new length is ever compiled anew."""

from dataclasses import dataclass

import torch
import triton.language as tl

from fastkd_kernels.common import INTERPRETED, TRITON_TYPES, block_size

EDGES = (32, 64)  # query rows, or keys, of a block
SIZES = (32, 64)  # of the head size, of a block; larger heads take several
EXACT_SIZE = 16  # the same for float32
PAIR_SIZES = (64, 128, 256)  # head sizes of the flash-style kernels
HEAD_UNIT = 4  # numbers of the weight that are read at once, where the student's maps divide
HEADS = 16  # maps of each side that a program holds; more are mixed one part after another


@dataclass(frozen=True)
class Precision:
    """How products are taken and what the scratch holds.

    bfloat16 inputs multiply as bfloat16. The maps of float16 inputs are kept and multiplied at
    float32's range (tf32, whose fraction is as long as float16's). float32 is never rounded: its
    products are exact ones, whose operands a thread holds in registers for as long as they are.
    """

    scratch: torch.dtype
    operand: tl.dtype
    dot: str

    @property
    def exact(self) -> bool:
        return self.scratch == torch.float32 and self.dot == "ieee"


def precision(dtype: torch.dtype) -> Precision:
    if dtype == torch.bfloat16 and not INTERPRETED:
        return Precision(torch.bfloat16, tl.bfloat16, "ieee")
    if dtype == torch.float32:
        return Precision(torch.float32, tl.float32, "ieee")
    return Precision(torch.float32, tl.float32, "tf32")


def score_operand(dtype: torch.dtype) -> tl.dtype:
    """What queries and keys are multiplied as; the interpreter cannot multiply bfloat16."""
    if dtype == torch.bfloat16 and INTERPRETED:
        return tl.float32
    return TRITON_TYPES[dtype]


@dataclass(frozen=True)
class Launch:
    """How a kernel is compiled, beside its tile.

    num_warps counts 32 threads each, of which AMD's have 64; there it is half as many, but no
    fewer than least_waves.
    max_registers keeps ptxas from spilling a few registers to reach the next higher occupancy.
    fp_fusion lets multiply and add round once. What subtracts a product from itself elsewhere
    must not: two places that round differently differ by what cancels.
    """

    num_warps: int
    num_stages: int = 1
    max_registers: int = 255
    fp_fusion: bool = True
    least_waves: int = 1

    @property
    def options(self) -> dict[str, int | bool]:
        every = {"num_stages": self.num_stages, "enable_fp_fusion": self.fp_fusion}
        if torch.version.hip:
            return {"num_warps": self.waves, **every}
        return {"num_warps": self.num_warps, "maxnreg": self.max_registers, **every}

    @property
    def waves(self) -> int:
        return max(self.num_warps // 2, self.least_waves)


@dataclass(frozen=True)
class Tile:
    rows: int
    keys: int
    size: int
    launch: Launch


def probability_tile(rows: int, keys: int, size: int, dtype: torch.dtype) -> Tile:
    block_q, block_k = _edge(rows), _edge(keys)
    block_d = EXACT_SIZE if dtype == torch.float32 else block_size(size, *SIZES)
    if dtype == torch.float32:
        return Tile(block_q, block_k, block_d, Launch(min(max(block_q * block_k // 512, 2), 8), 2))
    stages = 1 if keys <= block_k else 2  # one block has nothing to load ahead
    waves = 2 if block_q * block_d > 2048 else 1  # of a single one, 64 whole queries spill
    launch = Launch(block_q * block_k // 1024, stages, least_waves=waves)
    return Tile(block_q, block_k, block_d, launch)


def product_tile(rows: int, keys: int, size: int, precision: Precision) -> Tile:
    edge = 32 if precision.scratch == torch.float32 else _edge(max(rows, keys))
    block_d = EXACT_SIZE if precision.exact else block_size(size, *SIZES)
    if precision.scratch == torch.float32 or max(rows, keys) > edge:
        return Tile(edge, edge, block_d, Launch(4, 1 if max(rows, keys) <= edge else 2))
    # One block has nothing to load ahead, and registers for more cells of a thread.
    return Tile(edge, edge, block_d, Launch(max(edge * edge // 2048, 1)))


def _edge(extent: int) -> int:
    return block_size(extent, *EDGES)


@dataclass(frozen=True)
class MixTile:
    students: int  # all of them, or a part
    teachers: int  # likewise
    keys: int
    launch: Launch  # of the statistics
    gradient_launch: Launch


def mix_tile(
    keys: int, precision: Precision, scratch: bool = True, crowded: bool = False
) -> MixTile:
    """scratch: whether the maps are of `probabilities_fwd`, else the caller's.

    crowded: of the gradient, as `is_crowded` has it. Of rounded maps a single warp holds a block of
    keys by 16 teacher maps, and its sums meet without shared memory; what crowded rows or the
    caller's strides need beside it takes two.
    """
    block_k = _edge(keys)
    if precision.scratch == torch.float32:
        launch = Launch(block_k // 8, fp_fusion=False)
        return MixTile(HEADS, HEADS, block_k, launch, launch)
    gradient_launch = Launch(1 if scratch and not crowded else 2)
    return MixTile(HEADS, HEADS, block_k, Launch(1 if scratch else 2), gradient_launch)


def is_crowded(normalization: str, one_teacher: bool, one_student: bool, whole_units: bool) -> bool:
    """Whether a warp has no register for what the gradient needs beside a block of maps.

    That is the weight and its gradient, which `row` holds where one block has the teacher's maps
    (one_teacher), else the parts that they are taken by: where the student's maps are several
    blocks, too, or the weight is read number by number (not whole_units). `map`, which is measured
    before, has room for one of the two.
    """
    if one_teacher:
        return normalization == "row"
    if normalization == "map":
        return not one_student and not whole_units
    return not one_student or not whole_units


def head_units(precision: Precision, scratch: bool) -> tuple[int, ...]:
    """Numbers of a row of the weight that may be read at once, where the student's maps divide.

    What multiplies rounded maps of the scratch has no register left for an address each.
    """
    return (1, HEAD_UNIT) if scratch and not precision.exact and precision.dot == "ieee" else (1,)


@dataclass(frozen=True)
class PairTile:
    edge: int  # query rows and keys of a block
    key_rows: int  # query rows where the gradient of keys is added up
    size: int  # head size of both sides
    part: int  # of a head, which the scores of longer ones are added up from
    launch: Launch
    query_launch: Launch  # of the gradient of queries


def pair_tile(longest: int, size: int, dtypes: tuple[torch.dtype, torch.dtype]) -> PairTile:
    """longest: of queries and keys; size: the larger head; dtypes: the student's, the teacher's."""
    block_d = block_size(size, PAIR_SIZES[0], PAIR_SIZES[-1])
    wide = torch.float32 in (*dtypes, precision(dtypes[0]).scratch)
    edge = 32 if wide or block_d == PAIR_SIZES[-1] else _edge(longest)
    part = EXACT_SIZE if torch.float32 in dtypes else PAIR_SIZES[0]
    if torch.float32 in dtypes and block_d == PAIR_SIZES[-1]:
        return PairTile(edge, EXACT_SIZE, block_d, part, Launch(8), Launch(8))
    if block_d > PAIR_SIZES[0]:
        return PairTile(edge, edge, block_d, part, Launch(8), Launch(8))
    return PairTile(edge, 32, block_d, part, Launch(4), Launch(8 if edge == EDGES[-1] else 4))
