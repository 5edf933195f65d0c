"""The walk that the compiled kernel does, on a CPU in float32.

It takes maps from attention whose exponents are known to be small. Short sentences are computed
whole, one to a thread; long ones in blocks of query rows, by all threads.
"""

import ctypes
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastkd import watching
from fastkd.backends.attention.torch import native
from fastkd.backends.attention.torch.batch import Real
from fastkd.backends.attention.torch.engine import Problem, Walk
from fastkd.backends.attention.torch.plan import Unit, most
from fastkd.backends.attention.torch.sources import Attention, LearnedAttention, pick, put

Layers = Sequence[Tensor]


def serves(problem: Problem) -> bool:
    """Whether the kernel takes a problem, and is there."""
    fits = (
        problem.even
        and isinstance(problem.student, Attention)
        and problem.batch.device.type == "cpu"
        and problem.workspace.dtype == torch.float32
    )
    return fits and native.wanted(problem.batch.cells)


class NativeWalk(Walk):
    student: LearnedAttention
    teacher: Attention

    def __init__(
        self, problem: Problem, upstream: Tensor | None, maps_learn: bool, weight_learns: bool
    ) -> None:
        super().__init__(problem, upstream, maps_learn, weight_learns)
        self.threads = torch.get_num_threads()
        self.scale = 1.0
        if self.options.normalization != "mixture":
            self.scale = 1 / self.options.temperature
        row_sum = torch.ones(self.batch.teacher_maps)
        self.scaled_weight = None
        if self.weight is not None:
            row_sum = self.weight.sum(1)
            self.scaled_weight = (self.weight * self.scale).contiguous()
        self.surplus = (row_sum - 1) * self.scale

    def run(self) -> None:
        real = self.batch.real()[::-1]
        if self.maps_learn:
            self.student.start_gradients()
        if real and self._as_they_lie():
            self._unchanged(real)
        else:
            for group in self._groups(real):
                self._copied(group)
        if self.weight_gradient is not None:
            self.weight_gradient *= self.scale

    def _as_they_lie(self) -> bool:
        """Whether the kernel can read queries and keys, and write gradients, where they are."""
        layers = [*self.student.query, *self.student.key, *self.teacher.query, *self.teacher.key]
        if self.maps_learn:
            layers += [*self.student.query_gradients, *self.student.key_gradients]
        return self.student.autocast in (None, torch.bfloat16) and all(
            layer.dtype == torch.float32
            and layer.stride(3) == 1
            and layer.shape[3] % native.HEAD == 0
            for layer in layers
        )

    def _unchanged(self, real: list[Real]) -> None:
        upstream = torch.ones_like(self.loss) if self.upstream is None else self.upstream
        sides = [(self.student.query, self.student.key), (self.teacher.query, self.teacher.key)]
        gradients = None
        if self.maps_learn:
            gradients = self.student.query_gradients, self.student.key_gradients
        places = [each.sentence for each in real]
        rounds = self.student.autocast is not None
        self._call(sides, gradients, places, real, upstream, self.loss, rounds)

    def _groups(self, real: list[Real]) -> Iterator[list[Real]]:
        """Sentences whose copies fit the budget together."""
        maps = self.batch.student_maps + self.batch.teacher_maps
        size = max(self.student.query[0].shape[3], self.teacher.query[0].shape[3])
        group: list[Real] = []
        rows = keys = 0
        for each in real:
            rows, keys = max(rows, each.rows), max(keys, each.keys)
            if group and (len(group) + 1) * (rows + keys) * maps * size > self.problem.numbers:
                yield group
                group, rows, keys = [], each.rows, each.keys
            group.append(each)
        if group:
            yield group

    def _copied(self, group: list[Real]) -> None:
        """With copies in the kernel's dtype, and heads of a size it takes."""
        sentences = tuple(sorted(each.sentence for each in group))  # often a range: no gathering
        unit = Unit(sentences, *most(group))
        for side in (self.student, self.teacher):
            side.copy(unit, native.HEAD)
        sides = [
            ([part for _, part in side.queries], [part for _, part in side.keys])
            for side in (self.student, self.teacher)
        ]
        gradients = None
        if self.maps_learn:
            self.student.open_gradients(unit)
            gradients = self.student.unit_query, self.student.unit_key
        upstream = torch.ones_like(self.loss) if self.upstream is None else self.upstream
        loss = torch.zeros(len(group), self.batch.teacher_maps, dtype=torch.float64)
        place = {sentence: n for n, sentence in enumerate(sentences)}
        places = [place[each.sentence] for each in group]
        self._call(sides, gradients, places, group, pick(upstream, unit), loss, rounds=False)
        put(self.loss, unit, loss)
        if self.maps_learn:
            self.student.close_gradients(unit)

    def _call(
        self,
        sides: Sequence[tuple[Layers, Layers]],
        gradients: tuple[Layers, Layers] | None,
        places: list[int],
        real: list[Real],
        upstream: Tensor,
        loss: Tensor,
        rounds: bool,
    ) -> None:
        """sides: queries and keys of student and teacher; rounds: the kernel rounds to bfloat16.
        Sentence n of `real` stands at places[n] there, and in `gradients`, `upstream` and `loss`.
        """
        library, idle = native.library(), watching.pretended().compiled == "idle"
        assert library is not None
        batch, options = self.batch, self.options
        maps = batch.student_maps, batch.teacher_maps
        heads = [
            [native.heads(layers, count) for layers in side]
            for side, count in zip(sides, maps, strict=True)
        ]
        out: list[Tensor | None] = [None, None]
        if gradients is not None:
            out = [native.heads(layers, maps[0]) for layers in gradients]
        numbers = [(place, *each) for place, each in zip(places, _counts(real), strict=True)]
        order, rows, keys = torch.tensor(numbers).T.contiguous()
        upstream = upstream.float().contiguous()
        scales = self.student.scale, self.teacher.scale
        student, teacher = (
            native.Side(side[0][0].shape[3], scale, rounds, *map(native.address, described))
            for side, scale, described in zip(sides, scales, heads, strict=True)
        )
        call = native.Call(
            mix=native.Mix(
                loss=native.LOSSES[options.normalization],
                students=maps[0],
                teachers=maps[1],
                learn_maps=self.maps_learn,
                learn_weight=self.weight_gradient is not None,
                row_cells=batch.keys if batch.include else 0,
                sharp=not self.mild,
                inverse_temperature=1 / options.temperature,
                weight=native.address(self.scaled_weight),
                surplus=self.surplus.data_ptr(),
            ),
            student=student,
            teacher=teacher,
            query_gradient=native.address(out[0]),
            key_gradient=native.address(out[1]),
            causal=options.causal,
            map_cells=batch.queries * batch.keys if batch.include else 0,
            upstream=upstream.data_ptr(),
            loss=loss.data_ptr(),
            weight_gradient=native.address(self.weight_gradient),
            count=len(real),
            order=order.data_ptr(),
            rows=rows.data_ptr(),
            keys=keys.data_ptr(),
            workspace=self.problem.numbers,
            threads=self.threads,
        )
        size = library.fastkd_memory(ctypes.byref(call))
        memory = self.problem.workspace.take("memory", size)
        call.memory = memory.data_ptr()
        if not idle:
            library.fastkd_alignment(ctypes.byref(call))


def _counts(real: list[Real]) -> Iterator[tuple[int, int]]:
    return ((each.rows, each.keys) for each in real)
