"""The losses on the vocabulary, from logits and from hidden states."""

from typing import Any, ClassVar

import torch

from fastkd.backends.tokens import reference
from fastkd.bench import plain
from fastkd.bench.operation import Inputs, Loss, Operation, Shape, Work, random_tensor
from fastkd.functional import linear_token_distillation_loss, token_distillation_loss
from fastkd.functional.calls import Projected, TokenCall, TokenOptions

LOSSES: dict[str, dict[str, Any]] = {
    "ce": {"ce_weight": 1.0, "kd_weight": 0.0},
    "kd": {"ce_weight": 0.5, "kd_weight": 0.5},
    "tie": {"ce_weight": 0.5, "kd_weight": 0.5, "rank_weight": 0.5, "top_k": 5},
}


class Tokens(Operation):
    """`token_distillation_loss` of N rows of V logits, or, linear, of hidden states.

    loss: cross-entropy alone, with word-level distillation, or with TIE-KD's ranking too; the
    mean over rows, without label smoothing.
    """

    axis = "N"
    sizes: ClassVar = {"N": 1024, "V": 32000, "Ds": 512, "Dt": 1024}
    sweeps: ClassVar = {
        "smoke": ({"N": 16, "V": 64, "Ds": 8, "Dt": 16}, {"N": 32, "V": 64, "Ds": 8, "Dt": 16}),
        "cpu": tuple({"N": n, "V": 16000, "Ds": 256, "Dt": 256} for n in (32, 256, 1024, 3072)),
        "cuda": (
            *({"N": n} for n in (256, 1024, 4096, 16384)),
            {"N": 8192, "V": 128256, "Ds": 2048, "Dt": 4096},
        ),
    }

    def __init__(self, loss: str, linear: bool) -> None:
        self.name = f"{'linear' if linear else 'logits'}-{loss}"
        self.options = LOSSES[loss]
        self.taught = loss != "ce"
        self.linear = linear
        if not linear:
            self.sizes = {letter: Tokens.sizes[letter] for letter in "NV"}  # type: ignore[misc]
            self.sweeps = {  # type: ignore[misc]
                name: tuple(
                    {letter: size for letter, size in changes.items() if letter in "NV"}
                    for changes in sweep
                )
                for name, sweep in Tokens.sweeps.items()
            }

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)

        def tensor(*size: int, learned: bool = False) -> torch.Tensor:
            return random_tensor(*size, generator=generator, dtype=dtype, learned=learned)

        rows, vocabulary = shape["N"], shape["V"]
        inputs: Inputs = {}
        if self.linear:
            inputs["student_hidden"] = tensor(rows, shape["Ds"], learned=True)
            inputs["student_weight"] = self._weight(tensor(vocabulary, shape["Ds"]), True)
            if self.taught:
                inputs["teacher_hidden"] = tensor(rows, shape["Dt"])
                inputs["teacher_weight"] = self._weight(tensor(vocabulary, shape["Dt"]), False)
        else:
            inputs["student_logits"] = tensor(rows, vocabulary, learned=True)
            inputs["teacher_logits"] = tensor(rows, vocabulary) if self.taught else None
        inputs["target"] = torch.randint(vocabulary, (rows,), generator=generator, device=device)
        return inputs

    @staticmethod
    def _weight(weight: torch.Tensor, learned: bool) -> torch.Tensor:
        """Logits of about unit variance."""
        scaled: torch.Tensor = weight * weight.shape[1] ** -0.5
        return scaled.requires_grad_(learned)

    def loss(self, backend: str) -> Loss:
        return self._function(backend, "mean")

    def losses(self, backend: str) -> Loss:
        return self._function(backend, "none")

    def _function(self, backend: str, reduction: str) -> Loss:
        function = linear_token_distillation_loss if self.linear else token_distillation_loss
        return lambda inputs: (
            function(**inputs, **self.options, reduction=reduction, backend=backend).loss
        )

    def plain(self) -> Loss:
        return lambda inputs: plain.token_losses(inputs, self.options)

    def definition(self) -> Loss:
        options = TokenOptions(**self.options, reduction="mean")

        def linear(inputs: Inputs) -> torch.Tensor:
            teacher = None
            if self.taught:
                teacher = Projected(inputs["teacher_hidden"], inputs["teacher_weight"], None)
            student = Projected(inputs["student_hidden"], inputs["student_weight"], None)
            call = TokenCall(student, teacher, inputs["target"], None, options)
            return reference.linear_losses(call).loss

        def dense(inputs: Inputs) -> torch.Tensor:
            student, teacher, target = (
                inputs[name] for name in ("student_logits", "teacher_logits", "target")
            )
            return reference.dense_losses(TokenCall(student, teacher, target, None, options)).loss

        return linear if self.linear else dense

    def tiny(self) -> dict[str, int]:
        return {letter: {"N": 8, "V": 64}.get(letter, 16) for letter in self.sizes}

    def further_launches(self, shape: Shape) -> int:
        if not self.linear:
            return 0
        from fastkd_kernels.tokens.linear import chunk_rows

        models = 1 + self.taught
        rows = chunk_rows(shape["N"], models * shape["V"] * torch.bfloat16.itemsize)
        # Logits of each model, the kernel, states that count, gradients of states and weight.
        return (-(-shape["N"] // rows) - 1) * (models + 4)

    def units(self, shape: Shape) -> dict[str, float]:
        names = {"ce": "CE", "kd": "CE + KD", "tie": "CE + KD + rank"}
        loss = self.name.partition("-")[2]
        return {f"dense V 32768, {names[loss]}": shape["N"] * shape["V"]}

    def moved(self, shape: Shape, element: int) -> float:
        rows, vocabulary = shape["N"], shape["V"]
        kernel = element * rows * vocabulary * (2 + self.taught)  # logits, and their gradient
        if not self.linear:
            return kernel

        def product(width: int) -> float:
            return element * (rows * vocabulary + (rows + vocabulary) * width)

        taught = product(shape["Dt"]) if self.taught else 0.0
        return kernel + 3 * product(shape["Ds"]) + taught

    def forward_work(self, shape: Shape, element: int) -> Work:
        rows, vocabulary = shape["N"], shape["V"]
        models = 1 + self.taught
        exponentials = rows * vocabulary * models
        if not self.linear:
            logits = models * rows * vocabulary * element
            return Work(bytes=logits, exponentials=exponentials)
        width = shape["Ds"] + (shape["Dt"] if self.taught else 0)
        return Work(
            flops=2 * rows * vocabulary * width,
            bytes=(rows + vocabulary) * width * element,
            exponentials=exponentials,
        )

    def backward_work(self, shape: Shape, element: int) -> Work:
        rows, vocabulary = shape["N"], shape["V"]
        if not self.linear:
            return Work(bytes=rows * vocabulary * element)
        return Work(
            flops=4 * rows * vocabulary * shape["Ds"],
            bytes=(rows + vocabulary) * shape["Ds"] * element,
        )
