"""The configurations of the row kernel that are compiled for chips that are not there."""

from collections.abc import Iterator

import triton

from fastkd_kernels.tokens_rows import DENSE, LISTED, NO_TEACHER, token_losses_fwd
from fastkd_kernels.tokens_settings import RESTS, listed_block, row_blocks

_VOCABULARIES = (1024, 8192, 32768)  # one for each block size


def row_case(
    vocabulary: int,
    dtype: str = "bf16",
    teacher: int = DENSE.value,
    ce: bool = True,
    kd: bool = True,
    rank: bool = False,
    top_k: int = 5,
    smooth: bool = True,
    tempered: bool = False,
    predict: bool = False,
    gradient: bool = True,
    masked: bool = True,
    rest: str = "drop",
    listed: int = 64,
    representative: bool = False,
    step: object = 1,
    unit: int = 16,
):
    from fastkd_kernels.offline import Case

    block_v, warps = row_blocks(vocabulary)
    top_k = top_k if rank else 1
    has_list = teacher == LISTED.value
    sizes = ("student_outer", "student_inner", "teacher_outer", "teacher_inner")
    floats = ("gain", "ce_weight", "kd_weight", "rank_weight", "smoothing")
    arguments = {
        **dict.fromkeys((*sizes, "listed", "scale_step", "inner", "vocabulary_units"), "i32"),
        **dict.fromkeys((*floats, "student_scale", "teacher_scale"), "fp32"),
        **dict.fromkeys(("losses", "ces", "kds", "ranks"), "*fp32"),
        "student": f"*{dtype}",
        "student_step": step,
        "teacher": f"*{dtype}" if teacher == DENSE.value else None,
        "teacher_step": step,
        "ids": "*i64" if has_list else None,
        "log_probs": "*fp32" if has_list else None,
        "kept": "*fp32" if has_list and gradient else None,
        "target": "*i64" if ce else None,
        "counted": "*i1" if masked else None,
        "scale": "*fp32" if masked and gradient else None,
        "prediction": "*i64" if predict else None,
        "gradient": f"*{dtype}" if gradient else None,
        "UNIT": unit,
        "HAS_CE": ce,
        "HAS_KD": kd,
        "HAS_RANK": rank,
        "SMOOTH": ce and smooth,
        "TEMPERED": tempered,
        "TEACHER": teacher,
        "REST": RESTS.index(rest),
        "PREDICT": predict,
        "GRADIENT": gradient,
        "TOP_K": top_k,
        "TOP_K_PAD": max(triton.next_power_of_2(top_k), 2),
        "BLOCK_V": block_v,
        "BLOCK_K": listed_block(listed if has_list else 0),
    }
    parts = [name for name, on in (("ce", ce), ("kd", kd), ("rank", rank)) if on]
    label = f"{'+'.join(parts)}, {dtype}, V {vocabulary}"
    flags = {
        f"k {top_k}": rank,
        f"{rest} {listed}": has_list,
        "tempered": tempered,
        "not smoothed": ce and not smooth,
        "prediction": predict,
        "no gradient": not gradient,
        "not masked": not masked,
        "strided": step != 1,
        f"unit {unit}": unit != 16,
    }
    label = ", ".join([label, *(name for name, on in flags.items() if on)])
    return Case(token_losses_fwd, label, arguments, warps, 3, representative=representative)


def offline_cases() -> Iterator:
    none, dense, listed = NO_TEACHER.value, DENSE.value, LISTED.value
    for vocabulary in _VOCABULARIES:
        large = vocabulary == _VOCABULARIES[-1]
        for dtype in ("bf16", "fp16", "fp32"):
            main = large and dtype == "bf16"
            yield row_case(vocabulary, dtype, none, kd=False, representative=main)
            yield row_case(vocabulary, dtype, tempered=True, predict=True, representative=main)
            yield row_case(
                vocabulary, dtype, rank=True, top_k=32, tempered=True, predict=True,
                representative=main,
            )  # fmt: skip
        for ce, kd, rank in ((False, True, False), (False, False, True), (False, True, True)):
            for tempered in (False, True):
                yield row_case(vocabulary, ce=ce, kd=kd, rank=rank, tempered=tempered)
        yield row_case(vocabulary, kd=False, rank=True)
        for top_k in (1, 3, 5, 8, 16, 32):
            yield row_case(vocabulary, rank=True, top_k=top_k, smooth=False)
        for gradient in (False, True):
            yield row_case(
                vocabulary, rank=True, tempered=True, gradient=gradient, masked=False, predict=True
            )
            yield row_case(vocabulary, teacher=none, kd=False, gradient=gradient, predict=True)
        for rest in RESTS:
            for amount in (16, 512):
                for rank in (False, True):
                    yield row_case(
                        vocabulary, teacher=listed, rank=rank, top_k=16, tempered=True, rest=rest,
                        listed=amount, representative=large and rank and amount == 512,
                    )  # fmt: skip
        yield row_case(vocabulary, teacher=dense, rank=True, step="i64", unit=1, top_k=16)
        yield row_case(vocabulary, "fp32", teacher=dense, rank=True, step="i32", unit=1, top_k=32)
