"""Head against head from queries and keys: a flash-style walk that never holds a map."""

import torch
from torch import Tensor

from fastkd_kernels import common
from fastkd_kernels.attention.config import Launch, pair_tile, precision, score_operand
from fastkd_kernels.attention.mixing.launch import Settings
from fastkd_kernels.attention.mixing.merge import merge_statistics_fwd
from fastkd_kernels.attention.numerics import STATISTICS
from fastkd_kernels.attention.pairs.forward import pair_fwd
from fastkd_kernels.attention.pairs.key_gradient import pair_key_bwd
from fastkd_kernels.attention.pairs.query_gradient import pair_query_bwd
from fastkd_kernels.common import ceil_div, stride_unit


class PairAlignment:
    """One call: student (B, N, T, Ds) against teacher (B, N, T, Dt), head n with head n."""

    def __init__(
        self,
        student: tuple[Tensor, Tensor],
        teacher: tuple[Tensor, Tensor],
        query_lengths: Tensor | None,
        key_lengths: Tensor | None,
        settings: Settings,
    ) -> None:
        self.tensors = (*student, *teacher)
        self.lengths = query_lengths, key_lengths
        self.settings = settings
        self.batch, self.heads, self.queries, size = student[0].shape
        self.keys = student[1].shape[2]
        dtypes = student[0].dtype, teacher[0].dtype
        self.precision = precision(dtypes[0])
        sizes = size, teacher[0].shape[3]
        self.tile = pair_tile(max(self.queries, self.keys), max(sizes), dtypes)
        unit = stride_unit(*(s for tensor in self.tensors for s in tensor.stride()[:3]), *sizes)
        self.scalars = (
            *(
                stride
                for tensor in self.tensors
                for stride in (*(s // unit for s in tensor.stride()[:3]), tensor.stride(3))
            ),
            settings.student_scale,
            settings.teacher_scale,
            self.heads,
            self.heads // student[1].shape[1],
            self.heads // teacher[1].shape[1],
            *(length // unit for length in sizes),
            self.queries,
            self.keys,
            1 / settings.temperature,
        )
        self.constants = {
            "MIXTURE": settings.normalization == "mixture",
            "CAUSAL": settings.causal,
            "INCLUDE": settings.include,
            "UNIT": unit,
            "CONTIGUOUS": all(tensor.stride(3) == 1 for tensor in self.tensors),
            "STUDENT_OPERAND": score_operand(dtypes[0]),
            "TEACHER_OPERAND": score_operand(dtypes[1]),
            "BLOCK_Q": self.tile.edge,
            "BLOCK_K": self.tile.edge,
            "SIZE": self.tile.size,
            "BLOCK_D": self.tile.part,
            **self.tile.launch.options,
        }

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return common.empty(shape, dtype, self.tensors[0].device)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """(loss (B, N, groups), logs (B, N, 5, Tq), statistics (B, STATISTICS, N, groups or 0))."""
        batch, heads, normalization = self.batch, self.heads, self.settings.normalization
        groups = 1 if normalization == "map" else self.queries
        loss = self._empty(batch, heads, groups)
        logs = self._empty(batch, heads, 5, self.queries)
        statistic_rows = 0 if normalization == "mixture" else groups
        statistics = self._empty(batch, STATISTICS.value, heads, statistic_rows)
        whole = normalization == "map"
        partials = self._empty(batch, self.queries, 8, heads) if whole else None
        pair_fwd[(batch * heads * ceil_div(self.queries, self.tile.edge),)](
            *self.tensors,
            *self.lengths,
            logs,
            None if whole else statistics,
            partials,
            None if whole else loss,
            *self.scalars,
            **self.constants,
        )
        if whole:
            merge_statistics_fwd[(batch * ceil_div(heads, 16),)](
                partials,
                statistics,
                loss,
                self.queries,
                heads,
                0,
                BLOCK_P=64,
                BLOCK_J=16,
                **Launch(4).options,
            )
        return loss, logs, statistics

    def backward(self, logs: Tensor, statistics: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the student's queries and keys, in their dtype."""
        mixture = self.settings.normalization == "mixture"
        query, key = self.tensors[:2]
        known = (logs, None if mixture else statistics, upstream)
        delta = None if mixture else self._empty(self.batch, self.heads, self.queries)
        query_gradient = self._empty(*query.shape, dtype=query.dtype)
        key_gradient = self._empty(*key.shape, dtype=key.dtype)
        row_blocks = ceil_div(self.queries, self.tile.edge)
        key_blocks = ceil_div(self.keys, self.tile.edge)
        scalars = (*self.scalars, statistics.shape[3])
        products = {
            "PRODUCT_OPERAND": self.precision.operand,
            "PRECISION": self.precision.dot,
        }
        pair_query_bwd[(self.batch * self.heads * row_blocks,)](
            *self.tensors, *self.lengths, *known, delta, query_gradient,
            *scalars, **self.constants | products | self.tile.query_launch.options,
        )  # fmt: skip
        pair_key_bwd[(self.batch * key.shape[1] * key_blocks,)](
            *self.tensors, *self.lengths, *known, delta, key_gradient,
            *scalars, **self.constants | products | {"BLOCK_Q": self.tile.key_rows},
        )  # fmt: skip
        return query_gradient, key_gradient
