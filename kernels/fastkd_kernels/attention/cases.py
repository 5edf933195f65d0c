"""Every attention kernel in every configuration that the table can choose."""

import itertools
from collections.abc import Iterator, Mapping

import torch

from fastkd_kernels.attention import config
from fastkd_kernels.attention.mixing.gradient import mix_gradient_bwd
from fastkd_kernels.attention.mixing.merge import LAUNCH, MERGED, merge_statistics_fwd
from fastkd_kernels.attention.mixing.statistics import mix_statistics_fwd
from fastkd_kernels.attention.pairs.forward import pair_fwd
from fastkd_kernels.attention.pairs.key_gradient import pair_key_bwd
from fastkd_kernels.attention.pairs.query_gradient import pair_query_bwd
from fastkd_kernels.attention.query_key.probabilities import probabilities_fwd
from fastkd_kernels.attention.query_key.score_gradient import score_gradient_bwd
from fastkd_kernels.attention.sums import sums_fwd
from fastkd_kernels.scaling import scale_gradients_bwd

LENGTHS = ("query_lengths", "key_lengths")
FLOATS = (
    "scale",
    "inverse_temperature",
    "student_scale",
    "teacher_scale",
    "loss_factor",
    "upstream_factor",
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _case(kernel, label: str, pointers: Mapping[str, object], launch: config.Launch, **constants):
    """Arguments that are not named are sizes and strides."""
    from fastkd_kernels.offline import Case

    representative = constants.pop("representative", False)
    known = {"CAUSAL": True, "INCLUDE": False, "CONTIGUOUS": True, "UNIT": 16, "FAR": False}
    known |= constants
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
        fp_fusion=launch.fp_fusion,
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
    sides = ("student_query", "student_key", "teacher_query", "teacher_key")
    edges = ((32, 32), (32, 64), (64, 32), (64, 64), (64, 65))
    for (name, dtype, tensor, _, scratch), causal in itertools.product(_kinds(), (True, False)):
        sizes = _sizes(dtype == torch.float32)
        for (edge, keys), size in itertools.product(edges, sizes):
            if causal and edge != min(keys, 64):
                continue  # there are as many queries as keys
            tile = config.probability_tile(edge, keys, size, dtype)
            long = keys > tile.keys
            # The larger size alone is a part of something.
            for one in (True, False) if size == max(sizes) else (True,):
                yield _case(
                    probabilities_fwd,
                    f"{name} {tile.rows}x{tile.keys} D{tile.size}"
                    f"{' long' * long}{' parts' * (not one)}{' causal' * causal}",
                    dict.fromkeys(sides, tensor)
                    | {"student_maps": scratch, "teacher_maps": scratch},
                    tile.launch,
                    CAUSAL=causal,
                    WHOLE=not long,
                    STUDENT_OPERAND=config.score_operand(dtype),
                    TEACHER_OPERAND=config.score_operand(dtype),
                    BLOCK_Q=tile.rows,
                    BLOCK_K=tile.keys,
                    STUDENT_D=tile.size,
                    TEACHER_D=tile.size,
                    ONE_D=one,
                    representative=(name, edge, size, one) == ("bf16", 64, 64, True) and keys >= 64,
                )


def products() -> Iterator:
    for name, _, tensor, chosen, scratch in _kinds():
        gradient = "*fp32" if name == "fp16" else tensor
        for edge in (*config.EDGES, config.EDGES[-1] + 1):
            for size in _sizes(chosen.exact):
                tile = config.product_tile(edge, edge, size, chosen)
                for long in (False, True):
                    sums = ("loss", "total", "weight_slots", "weight_gradient", "mixing")
                    yield _case(
                        score_gradient_bwd,
                        f"{name} {tile.rows}x{tile.keys} D{tile.size}"
                        f"{' loop' * (edge > tile.keys)}{' chunks' * long}",
                        {
                            "query": tensor,
                            "key": tensor,
                            "scores": scratch,
                            "query_gradient": gradient,
                            "key_gradient": gradient,
                            "key_sum": "*fp32" if long else None,
                            **dict.fromkeys(sums, "*fp32"),
                        },
                        tile.launch,
                        OPERAND=chosen.operand,
                        PRECISION=chosen.dot,
                        BLOCK_Q=tile.rows,
                        BLOCK_K=tile.keys,
                        BLOCK_D=tile.size,
                        representative=(name, edge, size) == ("bf16", 64, 64),
                    )


def mixing() -> Iterator:
    for name, _, _, chosen, scratch in _kinds():
        for one, keys in itertools.product((True, False), config.EDGES):
            tile = config.mix_tile(keys, chosen)
            constants = {
                "STUDENT_UNIT": 16,
                "TEACHER_UNIT": 16,
                "WIDE": False,
                "OPERAND": chosen.operand,
                "PRECISION": chosen.dot,
                "ONE_H": one,
                "BLOCK_H": tile.students,
                "BLOCK_J": tile.teachers,
                "BLOCK_K": tile.keys,
                "representative": (name, one, keys) == ("bf16", True, 64),
            }
            label = f"{name} {tile.students}{'+' * (not one)}→{tile.teachers} x{tile.keys}"
            # Whether the weight and its gradient are held.
            holds = (True, False) if one or not chosen.exact else (False,)
            lengths = (False, True) if keys == config.EDGES[-1] else (False,)
            # Of the scratch, and the caller's.
            for to_maps, pointer in ((False, scratch), (True, f"*{name}")):
                constants["SCRATCH"] = not to_maps
                yield from _mixing(label, pointer, chosen, holds, lengths, constants)


def _mixing(label, kind_of_maps, precision, holds, lengths, constants) -> Iterator:
    """kind_of_maps: their pointer; lengths: whether rows are of more blocks."""
    maps = {"student": kind_of_maps, "teacher": kind_of_maps, "weight": "*fp32"}
    to_maps = not constants["SCRATCH"]
    units = config.head_units(precision, not to_maps)
    for unit in units:
        short = constants["representative"] and unit == units[-1]
        given = constants | {"HEAD_UNIT": unit, "representative": short}
        for long, kind in itertools.product(lengths, ("statistics", "map", "row", "mixture")):
            keys = given["BLOCK_K"] + long
            name = f"{label}{' odd' * (unit != units[-1])}"
            name += f"{' maps' * to_maps} {kind}{' long' * long}"
            if kind == "statistics":
                launch = config.mix_tile(keys, precision, not to_maps).launch
                yield _case(mix_statistics_fwd, name, maps | {"partials": "*fp32"}, launch, **given)
            elif not (to_maps and long):
                known = kind == "map" or (kind == "row" and (long or to_maps))
                pointers = maps | {
                    "statistics": "*fp32" if known else None,
                    "upstream": "*fp32",
                    "loss": None if kind == "map" else "*fp32",
                    "out": kind_of_maps,
                    "weight_slots": "*fp32",
                }
                for one in holds:
                    crowded = config.is_crowded(kind, one, given["ONE_H"], unit == config.HEAD_UNIT)
                    tile = config.mix_tile(keys, precision, not to_maps, crowded)
                    yield _case(
                        mix_gradient_bwd,
                        f"{name}{' many' * (not one)}",
                        pointers,
                        tile.gradient_launch,
                        MIXTURE=kind == "mixture",
                        NVIDIA=True,
                        TO_MAPS=to_maps,
                        LONG=long,
                        ONE_J=one,
                        **given,
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
    parts = dict.fromkeys(("partials", "statistics", "loss"), "*fp32")
    label = f"{MERGED['BLOCK_P']} parts"
    yield _case(merge_statistics_fwd, label, parts, LAUNCH, **MERGED, representative=True)
    sums = dict.fromkeys(("loss", "total", "weight_slots", "weight_gradient", "mixing"), "*fp32")
    yield _case(sums_fwd, "", sums | {"mixing": None}, config.Launch(4))
    yield _case(sums_fwd, "softmax", sums, config.Launch(4))
    for name in DTYPES:
        kept = "*fp32" if name == "fp16" else f"*{name}"
        scaled = dict.fromkeys(("first", "second"), kept)
        scaled |= dict.fromkeys(("first_out", "second_out"), f"*{name}")
        scaled |= dict.fromkeys(("third", "third_out", "upstream"), "*fp32")
        for in_place in (False,) if name == "fp16" else (True, False):
            label = f"{name}{' in place' * in_place}"
            yield _case(scale_gradients_bwd, label, scaled, config.Launch(4), IN_PLACE=in_place)


def offline_cases() -> Iterator:
    seen = set()
    for cases in (reductions, probabilities, products, mixing, pairs):
        for case in cases():
            if case.name not in seen:
                seen.add(case.name)
                yield case
