"""Cases of the attention alignment losses."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.compiled.cases import plain
from tests.compiled.cases.case import DTYPES, INF, Case, Prepared
from tests.compiled.device import scratch_of, slots_of
from tests.kernels import attention_compare as compare

NORMALIZATIONS = ("map", "row", "mixture")
Inputs = list[Tensor | None]


def ratio(ours: list[Tensor], plain: list[Tensor], truth: list[Tensor]) -> float:
    worst = 0.0
    for mine, theirs, exact in zip(ours, plain, truth, strict=True):
        if not torch.isfinite(mine.double()).all():
            return INF
        bound = 3 * compare.distance(theirs, exact) + 8 * torch.finfo(mine.dtype).eps
        worst = max(worst, compare.distance(mine, exact) / bound)
    return worst


def prepared(
    inputs: Inputs,
    dtype: torch.dtype,
    options: dict[str, Any],
    around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Prepared:
    def run(way: str) -> list[Tensor]:
        if way == "truth":
            return compare.run(
                [None if x is None else x.double() for x in inputs], "reference", **options
            )
        if way == "plain" and dtype != torch.float32:
            return plain.alignment(inputs, dtype, compare.upstream_of, **options)
        return compare.run(inputs, "reference" if way == "plain" else way, **options)

    return Prepared(run, ratio, around)


def in_model_order(inputs: Inputs) -> Inputs:
    """(B, T, N, D) in memory, as models make them."""
    return [
        x if x is None or x.dim() != 4 else x.transpose(1, 2).contiguous().transpose(1, 2)
        for x in inputs
    ]


Made = tuple[str, Callable[[], Inputs], dict[str, Any]]


def _weighted(form: str, dtype: torch.dtype) -> Iterator[Made]:
    def attention(**shape: Any) -> Callable[[], Inputs]:
        return lambda: compare.attention(dtype=dtype, **shape)

    none = {"reduction": "none"}
    some = {"query_lengths": torch.tensor([3, 2]), "key_lengths": torch.tensor([5, 3])}
    yield form, attention(), none
    yield (
        f"{form} include",
        attention(queries=9),
        {
            "padding": "include",
            "query_lengths": torch.tensor([9, 3]),
            "key_lengths": torch.tensor([4, 9]),
        },
    )
    yield (
        f"{form} exclude causal gqa",
        attention(students=4, teachers=6, group=2, queries=9),
        none
        | {
            "causal": True,
            "query_lengths": torch.tensor([9, 3]),
            "key_lengths": torch.tensor([4, 0]),
        },
    )
    wide = attention(
        batch=1, students=8, teachers=12, queries=40, keys=40, student_size=64, teacher_size=64
    )
    yield f"{form} model order 40x40 D64", lambda: in_model_order(wide()), {"causal": True}
    yield f"{form} 18 maps", attention(students=18, teachers=5, queries=3, keys=5), none | some
    yield (
        f"{form} 18 maps, 70 keys, 17",
        attention(students=18, teachers=17, queries=3, keys=70),
        none | {"query_lengths": torch.tensor([3, 2]), "key_lengths": torch.tensor([70, 3])},
    )
    for keys in (40, 70):
        yield (
            f"{form} {keys} keys, 12 to 24",
            attention(batch=1, students=12, teachers=24, queries=2, keys=keys),
            none,
        )
    yield (
        f"{form} 150 keys, 33",
        attention(students=2, teachers=33, queries=2, keys=150, batch=1),
        none | {"key_lengths": torch.tensor([140])},
    )


def _pairs(form: str, dtype: torch.dtype) -> Iterator[Made]:
    def attention(**shape: Any) -> Callable[[], Inputs]:
        return lambda: compare.attention(dtype=dtype, weighted=False, **shape)

    lengths = {"query_lengths": torch.tensor([9, 3]), "key_lengths": torch.tensor([4, 0])}
    yield (
        f"{form} pairs gqa",
        attention(students=4, teachers=4, group=2, queries=9),
        {"causal": True, "reduction": "none"} | lengths,
    )
    yield (
        f"{form} pairs include",
        attention(teachers=3, queries=9),
        lengths | {"padding": "include", "key_lengths": torch.tensor([4, 9])},
    )
    sizes = {"queries": 70, "keys": 70, "student_size": 64, "teacher_size": 64}
    long = attention(batch=1, students=2, teachers=2, **sizes)
    yield (
        f"{form} pairs 70x70 D64",
        lambda: in_model_order(long()),
        {"causal": True, "key_lengths": torch.tensor([67])},
    )
    sizes = {"queries": 34, "keys": 34, "student_size": 130, "teacher_size": 80}
    large = attention(batch=1, students=2, teachers=2, group=2, **sizes)
    yield f"{form} pairs D130", large, {"causal": True}


def _sharp(form: str, dtype: torch.dtype) -> Iterator[Made]:
    def attention(**shape: Any) -> Callable[[], Inputs]:
        return lambda: compare.attention(dtype=dtype, batch=1, queries=4, **shape)

    if form != "mixture":
        yield f"{form} tau 0.13", attention(teachers=3, keys=20), {"temperature": 0.13}
        yield f"{form} tau 0.01", attention(), {"temperature": 0.01}


def _from_maps(form: str, dtype: torch.dtype) -> Iterator[Made]:
    options = {
        "causal": True,
        "reduction": "none",
        "query_lengths": torch.tensor([2, 9]),
        "key_lengths": torch.tensor([9, 5]),
    }
    for weighted in (True, False):

        def maps(weighted: bool = weighted) -> Inputs:
            teachers = 5 if weighted else 3
            return compare.maps(teachers=teachers, weighted=weighted, queries=9, dtype=dtype)

        yield f"{form} from maps{'' if weighted else ' pairs'}", maps, options


def _rows_together(form: str, dtype: torch.dtype) -> Iterator[Made]:
    """Calls of more rows than there are slots: a program walks several, and sums over them."""
    lengths = {"query_lengths": torch.tensor([9, 5]), "key_lengths": torch.tensor([7, 9])}
    short = {"students": 2, "teachers": 3, "queries": 9, "dtype": dtype}
    yield (
        f"{form} rows together",
        lambda: compare.attention(**short),
        {"causal": True, "reduction": "none"} | lengths,
    )
    yield f"{form} from maps, rows together", lambda: compare.maps(**short), lengths
    for teachers in (16, 33):
        yield (
            f"{form} long rows together, {teachers}",
            functools.partial(
                compare.attention,
                batch=1, students=2, teachers=teachers, queries=6, keys=70, dtype=dtype,
            ),
            {"query_lengths": torch.tensor([5])},
        )  # fmt: skip


# Of every test run: each kernel in some type, short rows and long.
QUICK = {
    "row exclude causal gqa bf16",
    "map 18 maps, 70 keys, 17 bf16",
    "mixture include fp16",
    "map 150 keys, 33 fp32",
    "row pairs 70x70 D64 bf16",
    "map from maps fp32",
}


def cases() -> Iterator[Case]:
    for name, dtype in DTYPES.items():
        for form in NORMALIZATIONS:
            for made in (_weighted, _pairs, _sharp, _from_maps):
                for label, inputs, options in made(form, dtype):
                    yield _case(label, name, inputs, options | {"normalization": form})
            for label, inputs, options in _rows_together(form, dtype):
                options |= {"normalization": form}
                yield _case(label, name, inputs, options, lambda: slots_of(2))
            shape = {"batch": 1, "students": 2, "teachers": 2, "group": 2}

            def inputs(dtype: torch.dtype = dtype, shape: dict[str, int] = shape) -> Inputs:
                return compare.attention(dtype=dtype, queries=20, keys=70, **shape)

            options = {"normalization": form, "query_lengths": torch.tensor([19])}
            label = f"{form} chunks of a sentence"
            yield _case(label, name, inputs, options, lambda: scratch_of(1))


def _case(
    label: str,
    dtype: str,
    inputs: Callable[[], Inputs],
    options: dict[str, Any],
    around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Case:
    quick = f"{label} {dtype}" in QUICK
    return Case(label, dtype, lambda: prepared(inputs(), DTYPES[dtype], options, around), quick)
