"""Cases of the token losses: dense, listed and linear."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastkd import SparseTeacher, linear_token_distillation_loss, token_distillation_loss
from tests.compiled.cases.case import DTYPES, INF, Case, Prepared
from tests.kernels import tokens_compare as compare

COMPONENTS: dict[str, dict[str, Any]] = {
    "CE": {"ce_weight": 0.7, "kd_weight": 0.0},
    "CE smoothed": {"ce_weight": 0.7, "kd_weight": 0.0, "label_smoothing": 0.1},
    "KD": {"ce_weight": 0.0, "kd_weight": 1.5},
    "KD tempered": {
        "ce_weight": 0.0,
        "kd_weight": 1.5,
        "student_temperature": 2.0,
        "teacher_temperature": 0.7,
    },
    "reverse KL": {"ce_weight": 0.7, "kd_weight": 1.5, "divergence": "reverse_kl"},
    "JSD": {"ce_weight": 0.7, "kd_weight": 1.5, "divergence": "jsd", "beta": 0.3},
    "entropy": {"ce_weight": 0.7, "kd_weight": 0.0, "entropy_weight": -0.3},
    "skewed KL and entropy tempered": {
        "ce_weight": 0.0,
        "kd_weight": 1.5,
        "entropy_weight": 0.2,
        "divergence": "skew_kl",
        "student_temperature": 2.0,
        "teacher_temperature": 0.7,
    },
    "rank": {"ce_weight": 0.0, "kd_weight": 0.0, "rank_weight": 0.4, "top_k": 5},
    "all": {
        "ce_weight": 0.7,
        "kd_weight": 1.5,
        "rank_weight": 0.4,
        "top_k": 3,
        "label_smoothing": 0.1,
    },
    "all tempered predict": {
        "ce_weight": 0.7,
        "kd_weight": 1.5,
        "rank_weight": 0.4,
        "top_k": 5,
        "label_smoothing": 0.1,
        "student_temperature": 2.0,
        "teacher_temperature": 0.7,
        "return_prediction": True,
    },
}
EVERYTHING = "everything capped, fewer compared"
# Of one vocabulary.
SCORED: dict[str, dict[str, Any]] = {
    "JSD near 0": {"ce_weight": 0.0, "kd_weight": 1.5, "divergence": "jsd", "beta": 1e-6},
    "JSD near 1": {"ce_weight": 0.0, "kd_weight": 1.5, "divergence": "jsd", "beta": 1 - 1e-6},
    "skewed KL near 1": {
        "ce_weight": 0.0,
        "kd_weight": 1.5,
        "divergence": "skew_kl",
        "beta": 0.999,
    },
    "skewed reverse KL near 1": {
        "ce_weight": 0.0,
        "kd_weight": 1.5,
        "divergence": "skew_reverse_kl",
        "beta": 0.999,
    },
    "capped KD": {
        "ce_weight": 0.7,
        "kd_weight": 1.5,
        "student_soft_cap": 4.0,
        "teacher_soft_cap": 6.0,
        "teacher_logit_scale": 1.5,
    },
    "scaled, fewer compared": {
        "ce_weight": 0.7,
        "kd_weight": 1.5,
        "label_smoothing": 0.1,
        "student_logit_scale": 0.5,
        "vocabulary": 32,
        "return_prediction": True,
    },
    EVERYTHING: {
        "ce_weight": 0.7,
        "kd_weight": 1.5,
        "rank_weight": 0.4,
        "top_k": 3,
        "entropy_weight": -0.2,
        "label_smoothing": 0.1,
        "student_temperature": 2.0,
        "student_soft_cap": 4.0,
        "teacher_soft_cap": 6.0,
        "vocabulary": 35,
        "divergence": "jsd",
    },
}
VOCABULARIES = (37, 1040, 2500)
RESTS = ("drop", "spread", "renormalize", "tail")
LISTED = (
    ("spread", {"divergence": "reverse_kl"}),
    ("renormalize", {"divergence": "jsd", "beta": 0.3}),
    ("tail", {"divergence": "reverse_kl", "entropy_weight": 0.2}),
    ("tail", {"divergence": "tvd", "rank_weight": 0.4, "top_k": 5}),
    ("drop", {"student_soft_cap": 4.0, "vocabulary": 1039}),
    (
        "tail",
        {
            "divergence": "skew_reverse_kl",
            "student_soft_cap": 4.0,
            "vocabulary": 1031,
            "rank_weight": 0.4,
            "top_k": 5,
        },
    ),
)
COLUMNS = 6  # results before the gradients: loss, ce, kd, rank, entropy, prediction


def ratio(ours: list[Tensor], plain: list[Tensor], truth: list[Tensor]) -> float:
    worst = 0.0
    for index, (mine, theirs, exact) in enumerate(zip(ours, plain, truth, strict=True)):
        if not mine.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(mine, theirs) else INF)
            continue
        special = ~torch.isfinite(exact)
        if not torch.equal(mine.double()[special], exact[special]):
            return INF
        units = 8 * torch.finfo(torch.float32).eps
        units += torch.finfo(mine.dtype).eps if index >= COLUMNS else 0
        finite, near, right = (x.double()[~special] for x in (mine, theirs, exact))
        if right.numel():
            bound = 2 * (near - right).abs().max() + units * (1 + right.abs().max())
            error = (finite - right).abs().max()
            worst = max(worst, INF if error.isnan() else float(error / bound))
    return worst


def prepared(
    loss: Callable[..., Any],
    trained: list[Tensor],
    *constants: Any,
    learned: bool = True,
    **options: Any,
) -> Prepared:
    def both(backend: str, leaves: list[Tensor], *constants: Any, **options: Any):
        if learned:
            return compare.run(loss, backend, leaves, *constants, **options)
        return loss(*leaves, *constants, backend=backend, **options), []

    def run(way: str) -> list[Tensor]:
        if way == "truth":
            doubled = {key: compare.doubled(value) for key, value in options.items()}
            leaves = [x.double() for x in trained]
            constant = map(compare.doubled, constants)
            found, gradients = both("reference", leaves, *constant, **doubled)
        else:
            backend = "reference" if way == "plain" else way
            found, gradients = both(backend, trained, *constants, **options)
        prediction = found.prediction
        if prediction is None:
            prediction = torch.zeros(1, dtype=torch.int64)
        columns = (*found[:4], found.entropy)
        return [*(column.detach() for column in columns), prediction, *gradients]

    return Prepared(run, ratio)


def drawn(*shape: int, seed: int, dtype: torch.dtype, scale: float = 3.0) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def dense(dtype: torch.dtype, vocabulary: int, options: dict[str, Any]) -> Prepared:
    student, teacher = (drawn(3, vocabulary, seed=seed, dtype=dtype) for seed in (1, 2))
    student[0, 5] = teacher[1, 7] = teacher[0, 5] = -INF
    target = torch.tensor([4, options.get("vocabulary", vocabulary) - 1, 2])
    mask = torch.tensor([True, True, False])
    taught = options["kd_weight"] or options.get("rank_weight")
    return prepared(
        token_distillation_loss,
        [student],
        teacher if taught else None,
        target if options["ce_weight"] else None,
        mask=mask,
        reduction="none",
        **options,
    )


def listed(dtype: torch.dtype, vocabulary: int, rest: str, options: dict[str, Any]) -> Prepared:
    student = drawn(3, vocabulary, seed=1, dtype=dtype)
    if rest != "spread":  # spread over a banned id is infinite
        student[0, 5] = -INF
    compared = options.get("vocabulary", vocabulary)
    orders = [
        torch.randperm(compared, generator=torch.Generator().manual_seed(9 + row))[:20]
        for row in range(3)
    ]
    log_probs = drawn(3, 20, seed=3, dtype=torch.float32).log_softmax(-1) - 0.2
    if rest != "spread":
        log_probs[1, 15:] = -INF
    teacher = SparseTeacher(torch.stack(orders), log_probs, rest=rest)
    return prepared(
        token_distillation_loss,
        [student],
        teacher,
        torch.tensor([4, compared - 1, 2]),
        mask=torch.tensor([True, True, False]),
        ce_weight=0.7,
        label_smoothing=0.1,
        reduction="none",
        **options,
    )


def linear(dtype: torch.dtype, reduction: str, options: dict[str, Any]) -> Prepared:
    def made(*shape: int, seed: int) -> Tensor:
        return drawn(*shape, seed=seed, dtype=dtype, scale=1)

    taught = options["kd_weight"] or options.get("rank_weight")
    given = (made(5, 24, seed=6), made(44, 24, seed=7)) if taught else (None, None)

    def loss(h: Tensor, w: Tensor, b: Tensor, th: Tensor, tw: Tensor, y: Tensor, **rest: Any):
        return linear_token_distillation_loss(h, w, th, tw, y, student_bias=b, **rest)

    return prepared(
        loss,
        [made(5, 16, seed=4), made(44, 16, seed=5), made(44, seed=8)],
        *given,
        torch.tensor([3, options.get("vocabulary", 44) - 1, 0, 7, 9]),
        mask=torch.tensor([True, False, True, True, True]),
        reduction=reduction,
        **options,
    )


@dataclass(frozen=True)
class Shape:
    """Of a call with logits. listed: ids of its teacher, 0: dense; step: from logit to logit."""

    vocabulary: int
    step: int
    listed: int
    rest: str
    gradient: bool
    masked: bool
    compared: int | None = None


def shaped(dtype: torch.dtype, shape: Shape, options: dict[str, Any]) -> Prepared:
    rows, size = 4, shape.vocabulary
    compared = shape.compared or size

    def logits(seed: int) -> Tensor:
        return drawn(rows, size, shape.step, seed=seed, dtype=dtype)

    def loss(student: Tensor, *rest: Any, **options: Any) -> Any:
        return token_distillation_loss(student[..., 0], *rest, **options)

    teacher: Tensor | SparseTeacher | None = None
    if shape.listed:
        orders = [
            torch.randperm(compared, generator=torch.Generator().manual_seed(9 + row))[
                : shape.listed
            ]
            for row in range(rows)
        ]
        scores = drawn(rows, shape.listed, seed=3, dtype=torch.float32).log_softmax(-1) - 0.2
        teacher = SparseTeacher(torch.stack(orders), scores, rest=shape.rest)
    elif options["kd_weight"] or options["rank_weight"]:
        teacher = logits(2)[..., 0]
    target = torch.tensor([4, compared - 1, 2, 0]) if options["ce_weight"] else None
    mask = torch.tensor([True, True, False, True]) if shape.masked else None
    return prepared(
        loss,
        [logits(1)],
        teacher,
        target,
        learned=shape.gradient,
        mask=mask,
        vocabulary=shape.compared,
        **options,
    )


QUICK = {
    "dense V 2500, all tempered predict bf16",
    "dense V 37, all fp32",
    f"dense V 1040, {EVERYTHING} bf16",
    "listed V 1040, spread rank fp16",
    "linear mean, KD bf16",
}


def cases() -> Iterator[Case]:
    for name in DTYPES:
        for vocabulary in VOCABULARIES:
            for label, options in COMPONENTS.items():
                yield _case(f"dense V {vocabulary}, {label}", name, dense, vocabulary, options)
        for label, options in SCORED.items():
            yield _case(f"dense V 1040, {label}", name, dense, 1040, options)
        yield _case(f"linear mean, {EVERYTHING}", name, linear, "mean", SCORED[EVERYTHING])
        for vocabulary in VOCABULARIES[:2]:
            for rest in RESTS:
                options = {"kd_weight": 1.5}
                label = f"listed V {vocabulary}, {rest}"
                yield _case(label, name, listed, vocabulary, rest, options)
                ranked = options | {"rank_weight": 0.4, "top_k": 5}
                yield _case(f"{label} rank", name, listed, vocabulary, rest, ranked)
        for rest, options in LISTED:
            label = f"listed V 1040, {rest} {options.get('divergence', 'kl')}"
            label += " capped, fewer compared" if "vocabulary" in options else ""
            yield _case(label, name, listed, 1040, rest, {"kd_weight": 1.5} | options)
        for label, options in COMPONENTS.items():
            for reduction in ("mean", "none"):
                yield _case(f"linear {reduction}, {label}", name, linear, reduction, options)


def _case(label: str, dtype: str, make: Callable[..., Prepared], *arguments: Any) -> Case:
    prepare = lambda: make(DTYPES[dtype], *arguments)  # noqa: E731
    return Case(label, dtype, prepare, f"{label} {dtype}" in QUICK)
