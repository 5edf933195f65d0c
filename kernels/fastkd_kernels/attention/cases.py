"""Every attention kernel in every configuration that the table can choose."""

from collections.abc import Iterator

import torch

from fastkd_kernels.attention import config
from fastkd_kernels.attention.mixing.gradient import mix_gradient_bwd
from fastkd_kernels.attention.mixing.merge import merge_statistics_fwd
from fastkd_kernels.attention.mixing.statistics import mix_statistics_fwd
from fastkd_kernels.attention.pairs.forward import pair_fwd
from fastkd_kernels.attention.pairs.key_gradient import pair_key_bwd
from fastkd_kernels.attention.pairs.query_gradient import pair_query_bwd
from fastkd_kernels.attention.query_key.factors import factors_fwd
from fastkd_kernels.attention.query_key.probabilities import probabilities_fwd
from fastkd_kernels.attention.query_key.score_gradient import score_gradient_bwd

LENGTHS = ("query_lengths", "key_lengths")
FLOATS = ("scale", "inverse_temperature", "student_scale", "teacher_scale")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _case(kernel, label: str, pointers: dict[str, object], launch: config.Launch, **constants):
    """Arguments that are not named are sizes and strides."""
    from fastkd_kernels.offline import Case

    representative = constants.pop("representative", False)
    known = {"CAUSAL": True, "INCLUDE": False, "CONTIGUOUS": True, "UNIT": 16} | constants
    arguments: dict[str, object] = {}
    for parameter in kernel.params:
        name = parameter.name
        if parameter.is_constexpr:
            arguments[name] = known[name]
        elif name in pointers:
            arguments[name] = pointers[name]
        elif name in LENGTHS:
            arguments[name] = "*i64"
        else:
            arguments[name] = "fp32" if name in FLOATS else "i32"
    return Case(
        kernel,
        label,
        arguments,
        launch.num_warps,
        launch.num_stages,
        launch.max_registers,
        launch.waves,
        representative=representative,
    )


def _kinds() -> Iterator[tuple[str, torch.dtype, str, config.Precision, str]]:
    """(name, dtype, its pointer, precision, pointer of the scratch)"""
    for name, dtype in DTYPES.items():
        chosen = config.precision(dtype)
        scratch = "*bf16" if chosen.scratch == torch.bfloat16 else "*fp32"
        yield name, dtype, f"*{name}", chosen, scratch


def _sizes(exact: bool) -> tuple[int, ...]:
    return (config.EXACT_SIZE,) if exact else config.SIZES


def probabilities() -> Iterator:
    for name, dtype, tensor, _, scratch in _kinds():
        for rows in config.EDGES:
            for keys in (*config.EDGES, config.LONG_BLOCK):
                for size in _sizes(dtype == torch.float32):
                    tile = config.probability_tile(rows, keys, size, dtype)
                    blocks = "*fp32" if keys == config.LONG_BLOCK else None
                    yield _case(
                        probabilities_fwd,
                        f"{name} {tile.rows}x{tile.keys} D{tile.size}",
                        {
                            "query": tensor,
                            "key": tensor,
                            "maps": scratch,
                            "block_max": blocks,
                            "block_sum": blocks,
                        },
                        tile.launch,
                        OPERAND=config.score_operand(dtype),
                        PRECISION="ieee",
                        BLOCK_Q=tile.rows,
                        BLOCK_K=tile.keys,
                        BLOCK_D=tile.size,
                        representative=(name, rows, keys, size) == ("bf16", 64, 128, 64),
                    )


def products() -> Iterator:
    for name, _, tensor, chosen, scratch in _kinds():
        gradient = "*fp32" if name == "fp16" else tensor
        for edge in config.EDGES:
            for size in _sizes(chosen.exact):
                tile = config.product_tile(edge, edge, size, chosen)
                for long in (False, True):
                    blocks = "*fp32" if long else None
                    yield _case(
                        score_gradient_bwd,
                        f"{name} {tile.rows}x{tile.keys} D{tile.size}{' long' * long}",
                        {
                            "query": tensor,
                            "key": tensor,
                            "scores": scratch,
                            "maps": scratch if long else None,
                            "factors": blocks,
                            "delta": blocks,
                            "query_gradient": gradient,
                            "key_gradient": gradient,
                            "key_sum": blocks,
                        },
                        tile.launch,
                        OPERAND=chosen.operand,
                        PRECISION=chosen.dot,
                        KEY_BLOCK=config.LONG_BLOCK,
                        BLOCK_Q=tile.rows,
                        BLOCK_K=tile.keys,
                        BLOCK_D=tile.size,
                        representative=(name, edge, size) == ("bf16", 64, 64),
                    )


def mixing() -> Iterator:
    for name, _, _, chosen, scratch in _kinds():
        for one in (True, False):
            for keys in config.EDGES:
                tile = config.mix_tile(keys, chosen)
                constants = {
                    "STUDENT_UNIT": 16,
                    "TEACHER_UNIT": 16,
                    "WIDE": False,
                    "OPERAND": chosen.operand,
                    "PRECISION": chosen.dot,
                    "KEY_BLOCK": config.LONG_BLOCK,
                    "ONE_H": one,
                    "BLOCK_H": tile.students,
                    "BLOCK_J": tile.teachers,
                    "BLOCK_K": tile.keys,
                    "representative": (name, one, keys) == ("bf16", True, 64),
                }
                label = f"{name} {tile.students}{'+' * (not one)}→{tile.teachers} x{tile.keys}"
                for long in (False, True) if keys == config.EDGES[-1] else (False,):
                    yield from _mixing(
                        label, scratch, tile, long, one or not chosen.exact, constants
                    )


def _mixing(label, scratch, tile, long: bool, held: bool, constants) -> Iterator:
    blocks = "*fp32" if long else None
    maps = {"student": scratch, "teacher": scratch, "weight": "*fp32"}
    maps |= {"student_factors": blocks, "teacher_factors": blocks}
    label += " long" * long
    sums = maps | {"partials": "*fp32", "statistics": None, "loss": None}
    yield _case(mix_statistics_fwd, label, sums, tile.launch, PER_ROW=False, **constants)
    if long:
        yield _case(
            mix_statistics_fwd, f"{label} row", sums, tile.launch, PER_ROW=True, **constants
        )
    for kind in ("known", "mixture") if long else ("known", "mixture", "row", "maps"):
        known = kind in ("known", "maps")
        pointers = maps | {
            "statistics": "*fp32" if known else None,
            "upstream": "*fp32",
            "loss": None if known else "*fp32",
            "out": scratch,
            "delta": blocks,
            "weight_slots": "*fp32",
        }
        for one in (True, False) if held else (False,):
            yield _case(
                mix_gradient_bwd,
                f"{label} {kind}{' many' * (not one)}",
                pointers,
                tile.launch,
                MIXTURE=kind == "mixture",
                TO_MAPS=kind == "maps",
                ONE_J=one,
                **constants,
            )


def pairs() -> Iterator:
    for name, dtype, tensor, chosen, _ in _kinds():
        for size in config.PAIR_SIZES:
            for edge in config.EDGES:
                tile = config.pair_tile(edge, size, (dtype, dtype))
                for mixture in (False, True):
                    yield from _pairs(name, dtype, tensor, chosen, tile, mixture)


def _pairs(name, dtype, tensor, chosen, tile, mixture: bool) -> Iterator:
    sides = ("student_query", "student_key", "teacher_query", "teacher_key")
    pointers: dict[str, object] = dict.fromkeys(sides, tensor)
    known = None if mixture else "*fp32"
    constants = {
        "MIXTURE": mixture,
        "STUDENT_OPERAND": config.score_operand(dtype),
        "TEACHER_OPERAND": config.score_operand(dtype),
        "BLOCK_Q": tile.edge,
        "BLOCK_K": tile.edge,
        "SIZE": tile.size,
        "BLOCK_D": tile.part,
        "representative": (name, tile.edge)
        == ("bf16", config.pair_tile(64, tile.size, (dtype, dtype)).edge),
    }
    label = f"{name} {tile.edge}x{tile.edge} D{tile.size}"
    label += " mixture" * mixture
    forward = {"logs": "*fp32", "statistics": known, "partials": None, "loss": "*fp32"}
    yield _case(pair_fwd, label, pointers | forward, tile.launch, **constants)
    backward = {"logs": "*fp32", "statistics": known, "upstream": "*fp32", "delta": known}
    constants |= {"PRODUCT_OPERAND": chosen.operand, "PRECISION": chosen.dot}
    for kernel in (pair_query_bwd, pair_key_bwd):
        rows = tile.key_rows if kernel is pair_key_bwd else tile.edge
        pointers |= backward | {"gradient": tensor}
        launch = tile.query_launch if kernel is pair_query_bwd else tile.launch
        yield _case(kernel, label, pointers, launch, **constants | {"BLOCK_Q": rows})


def reductions() -> Iterator:
    for block_p, warps in ((16, 1), (64, 4)):
        sums = dict.fromkeys(("partials", "statistics", "loss"), "*fp32")
        yield _case(
            merge_statistics_fwd,
            f"{block_p} parts",
            sums,
            config.Launch(warps),
            BLOCK_P=block_p,
            BLOCK_J=16,
            representative=True,
        )
    blocks = dict.fromkeys(("student_max", "student_sum", "teacher_max", "teacher_sum"), "*fp32")
    yield _case(
        factors_fwd,
        "32 rows",
        blocks,
        config.Launch(1),
        BLOCK_R=32,
        BLOCK_B=16,
        representative=True,
    )


def offline_cases() -> Iterator:
    seen = set()
    for cases in (reductions, probabilities, products, mixing, pairs):
        for case in cases():
            if case.name not in seen:
                seen.add(case.name)
                yield case
