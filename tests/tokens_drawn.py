"""Calls of the token losses with every option that they share, crossed, to be drawn."""

import math

import torch
from hypothesis import strategies as st

from fastkd import SparseTeacher, linear_token_distillation_loss, token_distillation_loss
from fastkd.functional.calls import BETAS, DIVERGENCES, SERVED
from tests.kernels.tokens_compare import DEVICE

INF = math.inf


def _random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator, device=DEVICE)).to(dtype)


def listed_of(logits: torch.Tensor, amount: int, rest: str) -> SparseTeacher:
    values, ids = logits.log_softmax(-1).topk(amount)
    return SparseTeacher(ids, values.float(), rest)


@st.composite
def calls(draw, smallest=6, largest=20):
    """Every option of a call that the backends share, crossed; of so many words."""
    rest = draw(st.sampled_from([None, None, "drop", "spread", "renormalize", "tail"]))
    form = draw(st.sampled_from(SERVED.get(rest, DIVERGENCES)))
    vocabulary = draw(st.integers(smallest, largest))
    compared = draw(st.sampled_from([None, vocabulary - 1, vocabulary // 2 + 2]))
    betas = [None, 1e-5, 0.01, 0.7, *([1 - 1e-5] if form == "jsd" and not rest else [])]
    beta = draw(st.sampled_from(betas)) if form in BETAS else None
    # Near its ends jsd is as small as their distance: weighed up, it is held to its own digits.
    least = min(beta, 1 - beta) if form == "jsd" and beta else 1.0
    return {
        "seed": draw(st.integers(0, 2**16)),
        "dtype": draw(st.sampled_from([torch.float32, torch.float32, torch.float16])),
        "rest": rest,
        "vocabulary": vocabulary,
        "banned": draw(st.sampled_from([0.0, 0.0, 0.2])),
        "masked": draw(st.sampled_from([0.0, 0.4, 1.0])),
        "linear": draw(st.booleans()),
        "options": {
            "divergence": form,
            "beta": beta,
            "ce_weight": draw(st.sampled_from([0.0, 0.6])),
            "kd_weight": draw(st.sampled_from([0.9, 0.9, 0.0])) / min(1.0, 20 * least),
            "rank_weight": draw(st.sampled_from([0.0, 0.5])),
            "entropy_weight": draw(st.sampled_from([0.0, 0.2, -0.3])),
            "top_k": 2,
            "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
            "student_temperature": draw(st.sampled_from([1.0, 2.0])),
            "teacher_temperature": draw(st.sampled_from([1.0, 0.7])),
            "student_soft_cap": draw(st.sampled_from([None, 4.0])),
            "teacher_soft_cap": draw(st.sampled_from([None, 3.0])),
            "student_logit_scale": draw(st.sampled_from([1.0, 0.5])),
            "teacher_logit_scale": draw(st.sampled_from([1.0, 1.5])),
            "vocabulary": compared,
            "reduction": draw(st.sampled_from(["sum", "mean", "none"])),
            "return_prediction": draw(st.booleans()),
        },
    }


def prepared(call):
    """(loss, learned tensors, constants, options) of a drawn call."""
    options, rows, width = dict(call["options"]), 6, 3
    size, dtype, seed = call["vocabulary"], call["dtype"], call["seed"]
    n = options["vocabulary"] or size
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=DEVICE)

    def banned(x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(uniform(*x.shape) < call["banned"], -INF)

    target = torch.randint(n, (rows,), generator=generator, device=DEVICE)
    options |= {"mask": uniform(rows) >= call["masked"]}
    logits = banned(_random(rows, n if call["rest"] else n + 2, seed=seed + 1, dtype=dtype))
    if options["vocabulary"] is None:
        logits = logits[:, :n]
    if call["rest"]:
        # So that what is not listed is some 1e-4 at least: float32 knows it as 1 − Σq.
        values = 4 * (logits.float().nan_to_num(neginf=-9.0) / 4).tanh()
        teacher = listed_of(values, 3, call["rest"])
    if not call["linear"]:
        student = banned(_random(rows, size, seed=seed + 2, dtype=dtype))
        given = teacher if call["rest"] else logits
        return token_distillation_loss, [student], (given, target), options
    hidden, weight = (_random(k, width, seed=seed + k, dtype=dtype) for k in (rows, size))
    bias = banned(_random(size, seed=seed + 3, dtype=dtype))

    def loss(hidden, weight, bias, *rest, **options):
        return linear_token_distillation_loss(hidden, weight, *rest, student_bias=bias, **options)

    if call["rest"]:
        theirs = (teacher, None)
    else:
        theirs = tuple(_random(k, width, seed=seed + 9 + k, dtype=dtype) for k in (rows, n))
    return loss, [hidden, weight, bias], (*theirs, target), options
