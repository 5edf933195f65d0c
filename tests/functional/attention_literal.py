"""The alignment losses written as the formulas stand, cell by cell, and inputs to try them on."""

import itertools
import math
from dataclasses import dataclass, field

import torch


def literal_maps(query, key, scale, key_lengths, causal):
    batch, heads, queries, _ = query.shape
    keys, group = key.shape[2], heads // key.shape[1]
    maps = torch.zeros(batch, heads, queries, keys, dtype=query.dtype)
    for b, h, i in itertools.product(range(batch), range(heads), range(queries)):
        seen = [j for j in range(int(key_lengths[b])) if not causal or j <= i]
        if seen:
            scores = torch.stack([scale * query[b, h, i] @ key[b, h // group, j] for j in seen])
            maps[b, h, i, seen] = scores.exp() / scores.exp().sum()
    return maps


def literal_loss(
    student, teacher, weight, bias, query_lengths, key_lengths, causal, normalization, tau, padding
):
    """(B, Nt), from maps that are zero where a query may not attend."""
    batch, maps, queries, keys = teacher.shape
    loss = torch.zeros(batch, maps, dtype=teacher.dtype)
    for b, n in itertools.product(range(batch), range(maps)):
        groups = []
        for i in range(queries):
            seen = [j for j in range(int(key_lengths[b])) if not causal or j <= i]
            if padding == "include":
                seen = list(range(keys))
            elif i >= int(query_lengths[b]):
                seen = []
            groups.append([(i, j) for j in seen])
        if normalization == "map":
            groups = [list(itertools.chain(*groups))]
        for cells in filter(None, groups):
            q = torch.stack([teacher[b, n, i, j] for i, j in cells])
            if weight is None:
                mixed = torch.stack([student[b, n, i, j] for i, j in cells])
            else:
                row = weight[n].softmax(0) if normalization == "mixture" else weight[n]
                mixed = torch.stack([row @ student[b, :, i, j] for i, j in cells])
            if normalization == "mixture":
                real = q > 0
                ratio = q[real].log() - mixed[real].clamp(min=2.0**-126).log()
                loss[b, n] += (q[real] * ratio).sum()
                continue
            if bias is not None:
                mixed = mixed + bias[n]
            p = (q / tau).softmax(0)
            loss[b, n] += (p * (p.log() - (mixed / tau).log_softmax(0))).sum()
    return loss


@dataclass
class Case:
    """Arguments of one call of `attention_alignment_loss`."""

    student_query: torch.Tensor
    student_key: torch.Tensor
    teacher_query: torch.Tensor
    teacher_key: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    options: dict = field(default_factory=dict)

    @property
    def attention(self):
        return self.student_query, self.student_key, self.teacher_query, self.teacher_key

    def learned(self):
        tensors = (self.student_query, self.student_key, self.weight, self.bias)
        return [tensor for tensor in tensors if tensor is not None]

    def to(self, dtype):
        tensors = [None if t is None else t.detach().to(dtype) for t in self.tensors()]
        return Case(*tensors, dict(self.options))

    def tensors(self):
        return (*self.attention, self.weight, self.bias)


def case(
    batch=3,
    student=(4, 2),
    teacher=(3, 3),
    queries=5,
    keys=6,
    size=3,
    teacher_size=4,
    *,
    mix=True,
    bias=False,
    lengths=True,
    causal=False,
    normalization="map",
    padding="exclude",
    temperature=1.0,
    sharpness=2.0,
    dtype=torch.float64,
    seed=0,
):
    """student, teacher: (heads, key heads). Lengths include a full and an empty sentence."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    if causal:
        keys = queries
    options = {
        "causal": causal,
        "normalization": normalization,
        "padding": padding,
        "temperature": temperature,
    }
    if lengths:
        options["query_lengths"] = torch.tensor([queries, 2, 3, 1, 4][:batch]).clamp(max=queries)
        options["key_lengths"] = torch.tensor([keys, 3, 0, 1, 2][:batch]).clamp(max=keys)
    return Case(
        sharpness * normal(batch, student[0], queries, size),
        normal(batch, student[1], keys, size),
        sharpness * normal(batch, teacher[0], queries, teacher_size),
        normal(batch, teacher[1], keys, teacher_size),
        normal(teacher[0], student[0]) if mix else None,
        normal(teacher[0]) if bias else None,
        options,
    )


def literal(case):
    """(B, Nt) of a case."""
    options = case.options
    student_query, student_key, teacher_query, teacher_key = case.attention
    batch, _, queries, size = student_query.shape
    keys = student_key.shape[2]
    query_lengths = options.get("query_lengths", torch.full((batch,), queries))
    key_lengths = options.get("key_lengths", torch.full((batch,), keys))
    scales = 1 / math.sqrt(size), 1 / math.sqrt(teacher_query.shape[3])
    student = literal_maps(student_query, student_key, scales[0], key_lengths, options["causal"])
    teacher = literal_maps(teacher_query, teacher_key, scales[1], key_lengths, options["causal"])
    return literal_loss(
        student,
        teacher,
        case.weight,
        case.bias,
        query_lengths,
        key_lengths,
        options["causal"],
        options["normalization"],
        options["temperature"],
        options["padding"],
    )


def maps(case):
    """The student's and the teacher's maps of a case."""
    options = case.options
    keys = case.student_key.shape[2]
    lengths = options.get("key_lengths", torch.full((case.student_key.shape[0],), keys))
    scales = case.student_key.shape[3] ** -0.5, case.teacher_key.shape[3] ** -0.5
    causal = options["causal"]
    return (
        literal_maps(case.student_query, case.student_key, scales[0], lengths, causal),
        literal_maps(case.teacher_query, case.teacher_key, scales[1], lengths, causal),
    )
