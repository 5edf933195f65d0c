"""Every attention kernel in every configuration that the table can choose."""

from collections.abc import Iterator

import torch
import triton.language as tl

from fastkd_kernels.attention_config import (
    HEADS,
    KEYS,
    SIZES,
    mix_tile,
    probability_tile,
    product_tile,
)
from fastkd_kernels.attention_mix import mix_statistics_fwd
from fastkd_kernels.attention_mix_gradient import mix_gradient_bwd
from fastkd_kernels.attention_probabilities import probabilities_fwd
from fastkd_kernels.attention_score_gradient import score_gradient_bwd
from fastkd_kernels.offline import Case

# The compilers' view of a dtype: pointer, operand of the scores, scratch, operand, precision.
DTYPES = {
    "bf16": ("*bf16", tl.bfloat16, "*bf16", tl.bfloat16, "ieee"),
    "fp16": ("*fp16", tl.float16, "*fp32", tl.float32, "tf32"),
    "fp32": ("*fp32", tl.float32, "*fp32", tl.float32, "ieee"),
}
TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LENGTHS = ("query_lengths", "key_lengths")
FLOATS = ("scale", "inverse_temperature", "student_scale", "teacher_scale")


def _case(kernel, label: str, pointers: dict[str, object], tile, **constants) -> Case:
    """Arguments that are not named are sizes and strides."""
    arguments: dict[str, object] = {}
    for parameter in kernel.params:
        name = parameter.name
        if name in pointers:
            arguments[name] = pointers[name]
        elif name in constants:
            arguments[name] = constants[name]
        elif parameter.is_constexpr:
            raise KeyError(f"{kernel.__name__} needs {name}")
        elif name in LENGTHS:
            arguments[name] = "*i64"
        else:
            arguments[name] = "fp32" if name in FLOATS else "i32"
    representative = constants.get("representative", False)
    return Case(
        kernel, label, arguments, tile.num_warps, tile.num_stages, representative=representative
    )


def probabilities() -> Iterator[Case]:
    for name, (tensor, operand, scratch, *_) in DTYPES.items():
        for rows in (16, 32, 64):
            for keys in KEYS:
                for size in SIZES[:3]:
                    tile = probability_tile(rows, keys, size, TORCH[name])
                    block = "*fp32" if keys == KEYS[-1] else None
                    yield _case(
                        probabilities_fwd,
                        f"{name} {tile.rows}x{tile.keys} D{tile.size}",
                        {
                            "query": tensor,
                            "key": tensor,
                            "maps": scratch,
                            "factors": block,
                            "block_sum": block,
                        },
                        tile,
                        CAUSAL=True,
                        CONTIGUOUS=True,
                        UNIT=16,
                        OPERAND=operand,
                        PRECISION="ieee",
                        BLOCK_Q=tile.rows,
                        BLOCK_K=tile.keys,
                        BLOCK_D=tile.size,
                    )


def products() -> Iterator[Case]:
    for name, (tensor, _, scratch, operand, precision) in DTYPES.items():
        gradient = "*fp32" if name == "fp16" else tensor
        for rows in (16, 32, 64):
            for keys in KEYS:
                for size in SIZES[:4]:
                    tile = product_tile(rows, keys, size, TORCH[name])
                    block = "*fp32" if keys == KEYS[-1] else None
                    for long in (False, True):
                        block = "*fp32" if long else None
                        yield _case(
                            score_gradient_bwd,
                            f"{name} {tile.rows}x{tile.keys} D{tile.size}{' long' if long else ''}",
                            {
                                "query": tensor,
                                "key": tensor,
                                "scores": scratch,
                                "maps": scratch if long else None,
                                "factors": block,
                                "delta": block,
                                "query_gradient": gradient,
                                "key_gradient": gradient,
                                "key_sum": block,
                            },
                            tile,
                            CAUSAL=True,
                            CONTIGUOUS=True,
                            UNIT=16,
                            OPERAND=operand,
                            PRECISION=precision,
                            KEY_BLOCK=128,
                            BLOCK_Q=tile.rows,
                            BLOCK_K=tile.keys,
                            BLOCK_D=tile.size,
                        )


def mixing() -> Iterator[Case]:
    for name, (_, _, scratch, operand, precision) in DTYPES.items():
        wide = TORCH[name] if name == "bf16" else torch.float32
        for heads in HEADS:
            for teachers in (16, 32, 64):
                for keys in KEYS:
                    tile = mix_tile(heads, teachers, keys, wide)
                    common = {
                        "CAUSAL": True,
                        "INCLUDE": False,
                        "STUDENT_UNIT": 16,
                        "TEACHER_UNIT": 16,
                        "CONTIGUOUS": True,
                        "OPERAND": operand,
                        "PRECISION": precision,
                        "KEY_BLOCK": 128,
                        "BLOCK_H": tile.students,
                        "BLOCK_J": tile.teachers,
                        "BLOCK_K": tile.keys,
                    }
                    label = f"{name} {tile.students}→{tile.teachers} {tile.keys}"
                    for long in (False, True):
                        if long and keys != KEYS[-1]:
                            continue
                        block = "*fp32" if long else None
                        maps = {
                            "student": scratch,
                            "teacher": scratch,
                            "weight": "*fp32",
                            "student_max": block,
                            "student_sum": block,
                            "teacher_max": block,
                            "teacher_sum": block,
                        }
                        suffix = " long" if long else ""
                        yield _case(
                            mix_statistics_fwd,
                            label + suffix,
                            maps | {"partials": "*fp32", "statistics": None, "loss": None},
                            tile,
                            PER_ROW=True,
                            **common,
                        )
                        for mixture in (False, True):
                            for one in (
                                (True, False)
                                if tile.teachers == 32
                                else (teachers <= tile.teachers,)
                            ):
                                here = not long
                                yield _case(
                                    mix_gradient_bwd,
                                    label
                                    + (" mixture" if mixture else "")
                                    + ("" if one else " many")
                                    + suffix,
                                    maps
                                    | {
                                        "statistics": None if here or mixture else "*fp32",
                                        "upstream": "*fp32",
                                        "loss": "*fp32" if here or mixture else None,
                                        "out": scratch,
                                        "delta": block,
                                        "weight_slots": "*fp32",
                                    },
                                    tile,
                                    MIXTURE=mixture,
                                    TO_MAPS=False,
                                    ONE_J=one,
                                    **common,
                                )


def offline_cases() -> Iterator[Case]:
    seen = set()
    for cases in (probabilities, products, mixing):
        for case in cases():
            if case.name not in seen:
                seen.add(case.name)
                yield case
