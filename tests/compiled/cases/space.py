"""The calls from which cases are drawn: properties, their values, and the call of each point."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from fastkd.functional.calls import SERVED
from tests.compiled.cases import alignment, tokens
from tests.compiled.cases.case import DTYPES, Case, Prepared
from tests.compiled.device import scratch_of
from tests.kernels import attention_compare

Point = dict[str, Any]
# Divergences with a β that the kernels compute in another way.
EDGES = {
    "jsd near 0": ("jsd", 0.01),
    "jsd near 1": ("jsd", 0.99),
    "skew_kl near 1": ("skew_kl", 0.99),
    "skew_reverse_kl near 1": ("skew_reverse_kl", 0.99),
}
# The first value of each is where the search starts. Sizes are uneven on purpose.
PROPERTIES: dict[str, dict[str, tuple[object, ...]]] = {
    "attention": {
        "dtype": ("bf16", "fp16", "fp32"),
        "form": ("weighted", "pairs", "maps"),
        "normalization": ("row", "map", "mixture"),
        "queries": (9, 40, 70),
        "keys": (9, 40, 70, 150),
        "causal": (True, False),  # where there are as many queries as keys
        "size": (16, 64, 72, 136),
        "students": (2, 18, 4, 20),
        "teachers": (3, 17, 33),
        "order": ("heads", "model"),
        "reduction": ("none", "sum"),
        "scratch": (None, 1),
    },
    "tokens": {
        "dtype": ("bf16", "fp16", "fp32"),
        "vocabulary": (48, 208, 2064),
        "unit": (16, 8, 4, 2, 1),
        "step": (1, 2),
        "teacher": ("dense", "none", "listed"),
        "rest": (*tokens.RESTS, "tail"),
        "listed": (16, 40, 130),
        "ce_weight": (0.7, 0.0),
        "kd_weight": (1.5, 0.0),
        "rank_weight": (0.0, 0.4),
        "entropy_weight": (0.0, 0.2),
        "top_k": (5, 1, 3, 8, 16, 32),
        "label_smoothing": (0.1, 0.0),
        "divergence": ("kl", "reverse_kl", "jsd", *EDGES, "skew_kl", "skew_reverse_kl", "tvd"),
        "student_soft_cap": (None, 4.0),
        "teacher_soft_cap": (None, 4.0),
        "student_logit_scale": (1.0, 0.5),
        "teacher_logit_scale": (1.0, 0.5),
        "compared": (0, 16, 1),  # what the number of compared ids is divided by, if any
        "temperature": (1.0, 2.0),
        "predict": (False, True),
        "gradient": (True, False),
        "masked": (True, False),
        "reduction": ("mean", "none", "sum"),
    },
}


def starts(family: str) -> Iterator[Point]:
    if family == "tokens":
        yield {}
        yield {"teacher": "none", "kd_weight": 0.0}
        for vocabulary in (208, 2064):
            for weight in (0.0, 0.4):
                for kind in ("dense", "listed"):
                    start = {"teacher": kind, "vocabulary": vocabulary, "listed": 130}
                    yield start | {"rank_weight": weight}
        return
    for form in ("weighted", "pairs", "maps"):
        for normalization in alignment.NORMALIZATIONS:
            yield {"form": form, "normalization": normalization}
            yield {"form": form, "normalization": normalization, "keys": 150}


def case(family: str, point: Point) -> Case | None:
    """The case of a point, or None where no such call exists."""
    make = _alignment if family == "attention" else _tokens
    return make(point)


def _label(point: Point) -> str:
    return " ".join(f"{name}={value}" for name, value in point.items() if name != "dtype")


def _alignment(point: Point) -> Case:
    dtype = DTYPES[point["dtype"]]
    options = {
        "normalization": point["normalization"],
        "reduction": point["reduction"],
        "causal": point["causal"] and point["queries"] == point["keys"],
        "query_lengths": torch.tensor([point["queries"] - 1]),
        "key_lengths": torch.tensor([point["keys"] - 2]),
    }
    weighted = point["form"] != "pairs"
    students = point["students"]
    extents = {"batch": 1, "queries": point["queries"], "keys": point["keys"], "dtype": dtype}
    heads = {"students": students, "teachers": point["teachers"] if weighted else students}

    def prepare() -> Prepared:
        if point["form"] == "maps":
            inputs = attention_compare.maps(**extents, **heads)
        else:
            sizes = {"student_size": point["size"], "teacher_size": point["size"]}
            inputs = attention_compare.attention(**extents, **heads, **sizes, weighted=weighted)
            if point["order"] == "model":
                inputs = alignment.in_model_order(inputs)
        around = (lambda: scratch_of(1)) if point["scratch"] else contextlib.nullcontext
        return alignment.prepared(inputs, dtype, options, around)

    return Case(_label(point), point["dtype"], prepare)


def _tokens(point: Point) -> Case | None:
    taught = point["kd_weight"] or point["rank_weight"]
    if bool(taught) != (point["teacher"] != "none"):
        return None
    if not (taught or point["ce_weight"] or point["entropy_weight"]):
        return None
    compared = None
    if point["compared"]:
        if not (taught or point["entropy_weight"]):
            return None
        compared = point["vocabulary"] - 16 + (point["compared"] == 1)
    ids = compared or point["vocabulary"]
    most = point["listed"] if point["teacher"] == "listed" else ids
    if most > ids or (point["rank_weight"] and point["top_k"] > most):
        return None
    names = ("ce_weight", "kd_weight", "rank_weight", "entropy_weight", "top_k", "label_smoothing")
    options = {name: point[name] for name in (*names, "reduction")}
    if not options["ce_weight"]:
        options["label_smoothing"] = 0.0
    if (taught or point["entropy_weight"]) and point["temperature"] != 1:
        options |= {"student_temperature": point["temperature"], "teacher_temperature": 0.7}
    form, beta = EDGES.get(point["divergence"], (point["divergence"], None))
    if form != "kl":
        if not point["kd_weight"]:
            return None
        if point["teacher"] == "listed" and form not in SERVED[point["rest"]]:
            return None
        options |= {"divergence": form, "beta": beta}
    for side in ("student", "teacher"):
        scores = {name: point[name] for name in (f"{side}_logit_scale", f"{side}_soft_cap")}
        if side == "teacher" and point["teacher"] != "dense" and [*scores.values()] != [1.0, None]:
            return None
        options |= scores
    if point["predict"]:
        options["return_prediction"] = True
    shape = tokens.Shape(
        vocabulary=point["vocabulary"] + (0 if point["unit"] == 16 else point["unit"]),
        step=point["step"],
        listed=point["listed"] if point["teacher"] == "listed" else 0,
        rest=point["rest"],
        gradient=point["gradient"],
        masked=point["masked"],
        compared=compared,
    )
    dtype = DTYPES[point["dtype"]]
    return Case(_label(point), point["dtype"], lambda: tokens.shaped(dtype, shape, options))
