"""The configurations of the row kernel that are compiled for chips that are not there."""

from collections.abc import Iterator

import triton

from fastkd_kernels.tokens.row.kernel import DENSE, LISTED, NO_TEACHER, token_losses_fwd
from fastkd_kernels.tokens.settings import (
    KERNEL_FORMS,
    RESTS,
    SCORES,
    fuses,
    listed_block,
    row_shape,
)

_VOCABULARIES = (1024, 32768)  # one for each block size; ranking has but one


def row_case(
    vocabulary: int,
    dtype: str = "bf16",
    teacher: int = DENSE.value,
    ce: bool = True,
    kd: bool = True,
    rank: bool = False,
    entropy: bool = False,
    top_k: int = 5,
    smooth: bool = True,
    tempered: bool = False,
    predict: bool = False,
    gradient: bool = True,
    masked: bool = True,
    rest: str = "drop",
    form: str = "kl",
    listed: int = 64,
    scores: tuple[str, str] = ("plain", "plain"),
    cut: int | None = None,  # what divides the ids that are compared
    representative: bool = False,
    step: object = 1,
    unit: int = 16,
):
    from fastkd_kernels.offline import Case

    has_list = teacher == LISTED.value
    light = fuses(form, *scores) and cut is None and not (rank and has_list)
    block_v, warps, registers = row_shape(vocabulary, rank, 1 if step == 1 else 2, unit, light)
    top_k = top_k if rank else 1
    written = has_list and kd and (form != "kl" or rest == "tail")
    theirs = dtype if teacher == DENSE.value else "fp32" if written else None
    strides = ("student_outer", "student_inner", "teacher_outer", "teacher_inner")
    sizes = (
        *strides,
        "rows",
        "listed",
        "scale_step",
        "inner",
        "vocabulary_units",
        "compared_units",
    )
    floats = (
        "gain",
        "ce_weight",
        "kd_weight",
        "rank_weight",
        "smoothing",
        "beta",
        "entropy_weight",
        "student_factor",
        "student_cap",
        "teacher_factor",
        "teacher_cap",
    )
    arguments = {
        **dict.fromkeys(sizes, "i32"),
        **dict.fromkeys((*floats, "student_scale", "teacher_scale"), "fp32"),
        **dict.fromkeys(("losses", "parts"), "*fp32"),
        "student": f"*{dtype}",
        "student_step": step,
        "teacher": theirs and f"*{theirs}",
        "teacher_step": 1 if written else step,
        "ids": "*i64" if has_list else None,
        "log_probs": "*fp32" if has_list else None,
        "kept": "*fp32" if has_list and gradient else None,
        "target": "*i64" if ce else None,
        "counted": "*u1" if masked else None,
        "scale": "*fp32" if masked and gradient else None,
        "prediction": "*i64" if predict else None,
        "gradient": f"*{dtype}" if gradient else None,
        "UNIT": unit,
        "COMPARED_UNIT": cut or 1,
        "HAS_CE": ce,
        "HAS_KD": kd,
        "HAS_RANK": rank,
        "HAS_ENTROPY": entropy,
        "FORM": KERNEL_FORMS.index(form),
        "NVIDIA": True,
        "SMOOTH": ce and smooth,
        "TEMPERED": tempered,
        "TEACHER": teacher,
        "REST": RESTS.index(rest),
        "STUDENT_SCORES": SCORES.index(scores[0]),
        "TEACHER_SCORES": SCORES.index(scores[1]),
        "CUT": cut is not None,
        "TOP_K": top_k,
        "TOP_K_PAD": max(triton.next_power_of_2(top_k), 2),
        "BLOCK_V": block_v,
        "BLOCK_K": listed_block(listed if has_list else 0),
        "VECTOR": 4 if dtype == "fp32" else 8,
    }
    parts = [
        name for name, on in (("ce", ce), ("kd", kd), ("rank", rank), ("entropy", entropy)) if on
    ]
    label = f"{'+'.join(parts)}, {dtype}, V {vocabulary}"
    flags = {
        f"k {top_k}": rank,
        f"{rest} {listed}": has_list,
        form: form != "kl",
        "tempered": tempered,
        "not smoothed": ce and not smooth,
        "prediction": predict,
        "no gradient": not gradient,
        "not masked": not masked,
        "strided": step != 1,
        f"unit {unit}": unit != 16,
        f"{scores[0]}, {scores[1]}": scores != ("plain", "plain"),
        f"compared {cut}": cut is not None,
    }
    label = ", ".join([label, *(name for name, on in flags.items() if on)])
    return Case(
        token_losses_fwd,
        label,
        arguments,
        num_warps=warps,
        max_registers=registers,
        fp_fusion=fuses(form if kd else "kl", *scores),
        representative=representative,
    )


def offline_cases() -> Iterator:
    """Every block shape, type, component, list size and rest; flags where they cost registers."""
    none, listed = NO_TEACHER.value, LISTED.value
    large = _VOCABULARIES[-1]
    for dtype in ("bf16", "fp16", "fp32"):
        main = dtype == "bf16"
        for vocabulary in _VOCABULARIES:
            yield row_case(
                vocabulary, dtype, none, kd=False, representative=main and vocabulary == large
            )
            yield row_case(vocabulary, dtype, tempered=True, predict=True)
        yield row_case(
            large, dtype, rank=True, top_k=32, tempered=True, predict=True, representative=main
        )
    for vocabulary in _VOCABULARIES:
        for tempered in (False, True):
            yield row_case(vocabulary, ce=False, tempered=tempered)
        yield row_case(vocabulary, representative=vocabulary == large)
        yield row_case(vocabulary, teacher=none, kd=False, smooth=False, masked=False)
        yield row_case(vocabulary, teacher=none, kd=False, predict=True, gradient=False)
        yield row_case(vocabulary, gradient=False, masked=False, smooth=False)
        yield row_case(vocabulary, step="i64", unit=1)
        for entropy_of in (none, DENSE.value):
            yield row_case(
                vocabulary, teacher=entropy_of, kd=entropy_of != none, entropy=True, tempered=True
            )
        for rest in RESTS:
            yield row_case(vocabulary, teacher=listed, rest=rest, listed=16)
            yield row_case(vocabulary, teacher=listed, rest=rest, listed=512, tempered=True)
    for form in KERNEL_FORMS[1:]:
        for dtype in ("bf16", "fp32"):
            yield row_case(
                large, dtype, form=form,
                representative=form in ("jsd", "jsd_low") and dtype == "bf16",
            )  # fmt: skip
        for vocabulary in _VOCABULARIES:
            yield row_case(vocabulary, ce=False, form=form, tempered=True)
        yield row_case(large, form=form, rank=True, top_k=32, tempered=True, predict=True)
        yield row_case(large, form=form, gradient=False)
        for rest in RESTS[1:]:
            if (form, rest) != ("reverse_kl", "renormalize"):
                yield row_case(large, teacher=listed, rest=rest, form=form)
        yield row_case(
            large, teacher=listed, rest="tail", form=form, rank=True, entropy=True, tempered=True,
            top_k=32, listed=512, predict=True,
        )  # fmt: skip
    yield from _scored()
    for ce, kd in ((False, False), (False, True), (True, False), (True, True)):
        for top_k in (1, 5, 32):
            yield row_case(large, ce=ce, kd=kd, rank=True, top_k=top_k)
    for top_k in (3, 8, 16):
        yield row_case(large, rank=True, top_k=top_k, smooth=False, gradient=top_k == 16)
    for rest in RESTS:
        for amount, top_k in ((16, 5), (512, 32)):
            yield row_case(
                large, teacher=listed, rank=True, top_k=top_k, tempered=True, rest=rest,
                listed=amount, representative=rest == "spread" and amount == 512,
            )  # fmt: skip
    yield row_case(large, rank=True, step="i64", unit=1, top_k=32)
    for unit in (1, 2, 4, 8):
        yield row_case(large, rank=True, unit=unit, top_k=32, tempered=True, predict=True)
        yield row_case(large, tempered=True, unit=unit, predict=True)
    yield row_case(large, "fp32", rank=True, step="i32", unit=1, top_k=32)


def _scored() -> Iterator:
    """Scales, caps and fewer ids compared: beside everything, and in each place where scores are
    read."""
    none, listed = NO_TEACHER.value, LISTED.value
    large = _VOCABULARIES[-1]
    capped, plain = ("capped", "capped"), ("plain", "plain")
    for scores in (("scaled", "plain"), ("capped", "plain"), capped):
        for dtype in ("bf16", "fp32"):
            yield row_case(large, dtype, scores=scores)
    for vocabulary in _VOCABULARIES:
        yield row_case(vocabulary, teacher=none, kd=False, scores=("capped", "plain"))
        yield row_case(vocabulary, scores=("scaled", "scaled"), tempered=True, predict=True)
        for scores in (plain, capped):
            yield row_case(vocabulary, scores=scores, cut=16, tempered=True, predict=True)
    for form in KERNEL_FORMS:
        yield row_case(large, form=form, scores=capped, tempered=True)
        yield row_case(
            large, form=form, scores=capped, cut=1, tempered=True, rank=True, top_k=32,
            entropy=True, predict=True, representative=form == "jsd",
        )  # fmt: skip
    for form, rest in (("kl", "drop"), ("kl", "spread"), ("jsd", "tail"), ("tvd", "spread")):
        yield row_case(
            large, teacher=listed, rest=rest, form=form, scores=("capped", "plain"), cut=1,
            rank=True, top_k=32, entropy=True, tempered=True, listed=512, predict=True,
        )  # fmt: skip
    yield row_case(large, ce=False, scores=capped, cut=16)
    yield row_case(large, gradient=False, scores=capped, cut=16, predict=True)
