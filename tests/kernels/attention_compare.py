"""Runs an alignment loss on a backend and holds its errors against those of plain PyTorch.

Truth is the reference in float64 on the same numbers. The backend may be as far from it as plain
PyTorch at the same precision is, three times that (sums are taken in another order) plus a few
roundings of the result's type.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastkd import alignment_loss_from_maps, attention_alignment_loss
from tests.compiled.cases import plain

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (scale * drawn).to(device=DEVICE, dtype=dtype)


def attention(
    batch: int = 2,
    students: int = 3,
    teachers: int = 5,
    queries: int = 7,
    keys: int = 9,
    student_size: int = 16,
    teacher_size: int = 24,
    group: int = 1,
    dtype: torch.dtype = torch.float32,
    weighted: bool = True,
    sharpness: float = 1.0,
    seed: int = 0,
) -> list[Tensor | None]:
    """Queries and keys of student and teacher, and a weight."""
    return [
        random(batch, students, queries, student_size, seed=seed, dtype=dtype, scale=sharpness),
        random(batch, students // group, keys, student_size, seed=seed + 1, dtype=dtype),
        random(batch, teachers, queries, teacher_size, seed=seed + 2, dtype=dtype, scale=sharpness),
        random(batch, teachers // group, keys, teacher_size, seed=seed + 3, dtype=dtype),
        random(teachers, students, seed=seed + 4) if weighted else None,
    ]


def maps(
    batch: int = 2,
    students: int = 3,
    teachers: int = 5,
    queries: int = 5,
    keys: int = 9,
    weighted: bool = True,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor | None]:
    """The student's and the teacher's maps, and a weight."""
    return [
        random(batch, students, queries, keys, seed=1).softmax(-1).to(dtype),
        random(batch, teachers, queries, keys, seed=2).softmax(-1).to(dtype),
        random(teachers, students, seed=3) if weighted else None,
    ]


def learned(inputs: list[Tensor | None]) -> list[int]:
    """Where the student's tensors and the weight stand among the inputs."""
    places = (0, 2) if len(inputs) == 3 else (0, 1, 4)
    return [place for place in places if inputs[place] is not None]


def upstream_of(loss: Tensor) -> Tensor:
    """A gradient from above that differs from map to map."""
    each = 1.5 + torch.arange(loss.numel(), device=loss.device).reshape(loss.shape) % 3
    return each.to(loss.dtype)


def run(inputs: list[Tensor | None], backend: str, **options) -> list[Tensor]:
    """The loss, and its gradients for an upstream gradient that differs from map to map."""
    loss = alignment_loss_from_maps if len(inputs) == 3 else attention_alignment_loss
    leaves = list(inputs)
    for place in learned(inputs):
        leaves[place] = inputs[place].detach().requires_grad_()
    value = loss(*leaves, backend=backend, **options)
    wanted = [leaves[place] for place in learned(inputs)]
    return [value.detach(), *torch.autograd.grad(value, wanted, upstream_of(value))]


def at_the_same_precision(inputs: list[Tensor | None], backend: str, **options) -> list[Tensor]:
    """`run`, of half types rounded where compiled kernels may round.

    Interpreted kernels multiply all types in float32.
    """
    first = inputs[0]
    if first.dtype == torch.float32 or DEVICE == "cpu":
        return run(inputs, backend, **options)
    return plain.alignment(inputs, first.dtype, upstream_of, **options)


NOTHING = 1e-12  # what float64 makes of a zero that is a sum of terms around 1


def distance(found: Tensor, truth: Tensor) -> float:
    """Relative to the truth; to 1 where that is 0 but for the rounding of float64."""
    norm = truth.double().norm()
    return float((found.double() - truth.double()).norm() / (norm if norm > NOTHING else 1))


def assert_as_exact_as_reference(
    inputs: list[Tensor | None],
    ratio: float = 3,
    beside: Callable = at_the_same_precision,
    backend: str = "triton",
    **options,
) -> list[Tensor]:
    """The backend's results, once they are as close to the truth as plain PyTorch's."""
    double = [None if tensor is None else tensor.double() for tensor in inputs]
    before = [None if tensor is None else tensor.clone() for tensor in inputs]
    truth = run(double, "reference", **options)
    near = beside(inputs, "reference", **options)
    ours = run(inputs, backend, **options)
    for mine, theirs, exact in zip(ours, near, truth, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        bound = ratio * distance(theirs, exact) + 8 * torch.finfo(mine.dtype).eps
        assert distance(mine, exact) <= bound
    for tensor, copy in zip(inputs, before, strict=True):
        assert tensor is None or torch.equal(tensor, copy)
    return ours
