"""Who computes a loss: our backends, PyTorch's compiler, and other people's fused losses."""

import importlib
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd import watching
from fastkd.bench.operation import Inputs, Loss, Operation


class Absent(Exception):
    """Not to be had here, or not for this operation; the message says which."""


def build(name: str, operation: Operation, device: torch.device) -> Loss:
    """The loss as provider `name` computes it; raises `Absent`."""
    return _PROVIDERS[name](operation, device)


def version(name: str) -> str:
    package = {"liger": "liger-kernel", "cce": "cut-cross-entropy"}.get(name)
    if package is None:
        return ""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _backend(name: str) -> Callable[[Operation, torch.device], Loss]:
    def provider(operation: Operation, device: torch.device) -> Loss:
        if name == "triton" and device.type == "cpu" and not _interpreted():
            raise Absent("needs a GPU")
        return operation.loss(name)

    return provider


def _interpreted() -> bool:
    """Whether kernels run on a CPU: slowly, to try out what runs on a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _compiled(operation: Operation, device: torch.device) -> Loss:
    # A fresh function a case: one shape each, never a recompilation for another.
    return torch.compile(operation.definition(), dynamic=False, fullgraph=True)


def _uncompiled(operation: Operation, device: torch.device) -> Loss:
    """As the torch backend runs where no C++ compiler is found."""
    if device.type != "cpu" or not operation.name.startswith("alignment"):
        raise Absent("has no compiled kernel")
    loss = operation.loss("torch")

    def without_kernel(inputs: Inputs) -> Tensor:
        with watching.pretending(watching.Pretence(compiled="never")):
            return loss(inputs)

    return without_kernel


def _plain(operation: Operation, device: torch.device) -> Loss:
    return operation.plain()


def _cross_entropy(chunked: bool) -> Loss:
    if not hasattr(F, "linear_cross_entropy"):
        raise Absent("PyTorch before 2.13 has none")
    options = torch.nn.LinearCrossEntropyOptions() if chunked else None
    return lambda inputs: F.linear_cross_entropy(
        inputs["student_hidden"], inputs["student_weight"], inputs["target"], options=options
    )


def _pytorch_chunked(operation: Operation, device: torch.device) -> Loss:
    return _only(operation, {"linear-ce": _cross_entropy(chunked=True)})


def _pytorch(operation: Operation, device: torch.device) -> Loss:
    cross_entropy = _cross_entropy(chunked=False)

    def distillation(inputs: Inputs) -> Tensor:
        """Class probabilities as targets, for which it has no chunks.

        What the teacher's entropy adds is a constant.
        """
        with torch.no_grad():
            logits = F.linear(inputs["teacher_hidden"], inputs["teacher_weight"])
            log_q = logits.float().log_softmax(-1)
            q = log_q.exp()
            constant = 0.5 * (q * log_q).sum(-1).mean()
            target = q.mul_(0.5)
            half = torch.full_like(target[:, :1], 0.5)
            target.scatter_add_(1, inputs["target"].unsqueeze(1), half)
        loss = F.linear_cross_entropy(
            inputs["student_hidden"],
            inputs["student_weight"],
            target.to(inputs["student_hidden"].dtype),
        )
        return loss + constant

    return _only(operation, {"linear-ce": cross_entropy, "linear-kd": distillation})


def _liger(operation: Operation, device: torch.device) -> Loss:
    if device.type == "cpu" and operation.name == "linear-ce":
        raise Absent("needs a GPU")
    losses = _imported("liger_kernel.chunked_loss", "liger-kernel")
    transformers = _imported("liger_kernel.transformers.fused_linear_cross_entropy", "liger-kernel")

    def cross_entropy(inputs: Inputs) -> Tensor:
        loss = transformers.LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)
        value: Tensor = loss(inputs["student_weight"], inputs["student_hidden"], inputs["target"])
        return value

    def distillation(inputs: Inputs) -> Tensor:
        loss = losses.LigerFusedLinearJSDLoss(
            weight_hard_loss=0.5, weight_soft_loss=0.5, beta=0.0, compiled=device.type == "cuda"
        )
        names = ("student_hidden", "student_weight", "teacher_hidden", "teacher_weight", "target")
        value: Tensor = loss(*(inputs[name] for name in names))
        return value

    return _only(operation, {"linear-ce": cross_entropy, "linear-kd": distillation})


def _cce(operation: Operation, device: torch.device) -> Loss:
    module = _imported("cut_cross_entropy", "cut-cross-entropy")
    if device.type == "cpu":
        raise Absent("needs a GPU")

    def cross_entropy(inputs: Inputs) -> Tensor:
        loss: Tensor = module.linear_cross_entropy(
            inputs["student_hidden"], inputs["student_weight"], inputs["target"]
        )
        return loss

    return _only(operation, {"linear-ce": cross_entropy})


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise Absent(f"{package} is not installed") from None
    except ImportError as error:
        raise Absent(f"{package} cannot be imported: {error}") from None


def _only(operation: Operation, losses: dict[str, Loss]) -> Loss:
    if operation.name not in losses:
        raise Absent("has no such loss")
    return losses[operation.name]


_PROVIDERS: dict[str, Callable[[Operation, torch.device], Loss]] = {
    "reference": _backend("reference"),
    "compile": _compiled,
    "plain": _plain,
    "torch": _backend("torch"),
    "torch-uncompiled": _uncompiled,
    "triton": _backend("triton"),
    "liger": _liger,
    "cce": _cce,
    "pytorch": _pytorch,
    "pytorch-chunked": _pytorch_chunked,
}
NAMES = tuple(_PROVIDERS)
