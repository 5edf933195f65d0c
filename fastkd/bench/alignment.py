"""Attention alignment from queries and keys."""

from typing import ClassVar

import torch

from fastkd.backends.attention import reference
from fastkd.bench import plain
from fastkd.bench.operation import Inputs, Loss, Operation, Shape, Work, random_tensor
from fastkd.functional import attention_alignment_loss
from fastkd.functional.calls import AlignmentCall, AlignmentOptions, QueryKey

_TENSORS = ("student_query", "student_key", "teacher_query", "teacher_key")


class Alignment(Operation):
    """`attention_alignment_loss` with T queries and T keys; mix=False compares head n with head n.

    The sweeps hold the tokens B·T of a batch fixed: what grows with T is the maps alone.
    """

    axis = "T"
    sizes: ClassVar = {"B": 8, "Ns": 12, "Nt": 24, "T": 128, "D": 64}
    sweeps: ClassVar = {
        "smoke": ({"B": 4, "T": 16}, {"B": 2, "T": 32}),
        "cpu": tuple({"B": 2048 // t, "T": t} for t in (32, 64, 128, 256, 512, 1024)),
        "cuda": (
            {"B": 128, "T": 32},
            {"B": 64, "T": 64, "Ns": 32, "Nt": 96},
            *({"B": 16384 // t, "T": t} for t in (32, 64, 128, 256, 512, 1024, 2048, 4096)),
        ),
    }

    def __init__(self, normalization: str, mix: bool = True) -> None:
        self.name = f"alignment-{normalization}" if mix else "alignment-plain"
        self.normalization = normalization
        self.mix = mix
        if not mix:
            self.sizes = {**Alignment.sizes, "Nt": Alignment.sizes["Ns"]}  # type: ignore[misc]

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        maps = {"student": shape["Ns"], "teacher": shape["Nt"] if self.mix else shape["Ns"]}
        inputs: Inputs = {
            name: random_tensor(
                shape["B"], maps[name.split("_")[0]], shape["T"], shape["D"],
                generator=generator, dtype=dtype, learned=name.startswith("student"),
            )
            for name in _TENSORS
        }  # fmt: skip
        if self.mix:
            weight = random_tensor(
                shape["Nt"], shape["Ns"], generator=generator, dtype=torch.float32
            )
            inputs["weight"] = (weight / shape["Ns"] ** 0.5).requires_grad_()
        return inputs

    def loss(self, backend: str) -> Loss:
        return self._function(backend, "sum")

    def losses(self, backend: str) -> Loss:
        return self._function(backend, "none")

    def _function(self, backend: str, reduction: str) -> Loss:
        return lambda inputs: attention_alignment_loss(
            **inputs, normalization=self.normalization, reduction=reduction, backend=backend
        )

    def plain(self) -> Loss:
        return lambda inputs: plain.alignment(inputs, self.normalization)

    def definition(self) -> Loss:
        def loss(inputs: Inputs) -> torch.Tensor:
            scale = inputs["student_query"].shape[-1] ** -0.5
            query, key, teacher_query, teacher_key = ((inputs[name],) for name in _TENSORS)
            call = AlignmentCall(
                QueryKey(query, key, scale),
                QueryKey(teacher_query, teacher_key, scale),
                inputs.get("weight"),
                None,
                None,
                None,
                None,
                AlignmentOptions(normalization=self.normalization),
            )
            return reference.query_key_loss(call)

        return loss

    def forward_work(self, shape: Shape, element: int) -> Work:
        cells, student, teacher, size = self._counts(shape)
        mixing = 2 * student * teacher if self.mix else 0
        return Work(
            flops=cells * (2 * size * (student + teacher) + mixing),
            bytes=2 * shape["B"] * shape["T"] * size * (student + teacher) * element,
            exponentials=cells * (student + 3 * teacher),
        )

    def backward_work(self, shape: Shape, element: int) -> Work:
        cells, student, teacher, size = self._counts(shape)
        mixing = 4 * student * teacher if self.mix else 0
        return Work(
            flops=cells * (4 * size * student + mixing),
            bytes=2 * shape["B"] * shape["T"] * size * student * element,
        )

    def tiny(self) -> dict[str, int]:
        return {"B": 2, "Ns": 4, "Nt": 8 if self.mix else 4, "T": 8, "D": 16}

    def counted_shape(self, shape: Shape) -> Shape:
        if not self.mix:
            return self.tiny()
        from fastkd_kernels.attention.config import HEADS
        from fastkd_kernels.attention.plan import SCRATCH_BYTES, row_pitch

        # More student maps than a program holds are not overwritten by their gradient.
        maps = shape["Ns"] * (1 if shape["Ns"] <= HEADS else 2) + shape["Nt"]
        held = shape["B"] * maps * shape["T"] * row_pitch(shape["T"]) * torch.bfloat16.itemsize
        return self.tiny() if held <= SCRATCH_BYTES else shape

    def units(self, shape: Shape) -> dict[str, float]:
        cells, student, teacher, _ = self._counts(shape)
        keys = 64 if shape["T"] <= 64 else 192  # rows of one block, or of several
        call = f"{self.normalization} 12→{{}} 64x{keys} D64"
        if not self.mix:
            return {f"{call.format(12)}, head against head": cells * student}
        # Costs by a student map grow with the teacher maps beside it.
        more = teacher / student - 1
        return {
            call.format(12): cells * student * (1 - more),
            call.format(24): cells * student * more,
        }

    def moved(self, shape: Shape, element: int) -> float:
        cells, student, teacher, size = self._counts(shape)
        rows = 2 * shape["B"] * shape["T"] * size  # of queries and keys, by head
        learned = rows * student
        if not self.mix:  # three kernels read all, two write gradients
            return element * (3 * rows * (student + teacher) + learned)
        # Scores once, products once; maps are written, read (for "map" twice), written over with
        # the student's gradient, which the gradients of queries and of keys read.
        passes = 3 if self.normalization == "map" else 2
        maps = cells * (passes * (student + teacher) + 3 * student)
        return element * (rows * (student + teacher) + 2 * learned + maps)

    def _counts(self, shape: Shape) -> tuple[int, int, int, int]:
        teacher = shape["Nt"] if self.mix else shape["Ns"]
        return shape["B"] * shape["T"] ** 2, shape["Ns"], teacher, shape["D"]
