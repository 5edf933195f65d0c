"""Accelerated knowledge distillation for Transformer translation models."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from fastkd import integrations, memory
    from fastkd import losses as losses  # no name of `*`, as it needs pydantic
    from fastkd.errors import BackendUnavailable, InputError
    from fastkd.functional import (
        SparseTeacher,
        TokenLosses,
        alignment_loss_from_maps,
        attention_alignment_loss,
        linear_token_distillation_loss,
        token_distillation_loss,
    )
    from fastkd.modules import (
        AlignmentLosses,
        AlignToDistill,
        AttentionAlignment,
        TokenDistillation,
    )
    from fastkd.taps import AttentionTap, AttentionTaps

# Where each public name lives; imported when first asked for.
_MODULES = {
    "alignment_loss_from_maps": "fastkd.functional",
    "attention_alignment_loss": "fastkd.functional",
    "linear_token_distillation_loss": "fastkd.functional",
    "token_distillation_loss": "fastkd.functional",
    "SparseTeacher": "fastkd.functional",
    "TokenLosses": "fastkd.functional",
    "AlignToDistill": "fastkd.modules",
    "AlignmentLosses": "fastkd.modules",
    "AttentionAlignment": "fastkd.modules",
    "TokenDistillation": "fastkd.modules",
    "AttentionTap": "fastkd.taps",
    "AttentionTaps": "fastkd.taps",
    "BackendUnavailable": "fastkd.errors",
    "InputError": "fastkd.errors",
}
_SUBMODULES = ("errors", "functional", "integrations", "losses", "memory", "modules", "taps")

__all__ = [
    "AlignToDistill",
    "AlignmentLosses",
    "AttentionAlignment",
    "AttentionTap",
    "AttentionTaps",
    "BackendUnavailable",
    "InputError",
    "SparseTeacher",
    "TokenDistillation",
    "TokenLosses",
    "__version__",
    "alignment_loss_from_maps",
    "attention_alignment_loss",
    "integrations",
    "linear_token_distillation_loss",
    "memory",
    "token_distillation_loss",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"fastkd.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'fastkd' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_SUBMODULES})
