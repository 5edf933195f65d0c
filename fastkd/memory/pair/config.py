"""A Transformers pair as `fastkd memory` is told of it: a YAML file, or a model's folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass
from torch import nn

from fastkd.config.load import find_config, overridden, read_tree, validate_as
from fastkd.config.losses import LossConfig
from fastkd.config.types import STRICT, AboveZero, Flag, PathText, Positive, Size
from fastkd.errors import InputError
from fastkd.memory.pair.models import FILE, MakesModel, maker_of
from fastkd.memory.pair.pair import Pair, usual_losses


@dataclass(frozen=True, config=STRICT, kw_only=True)
class LoraConfig:
    """Adapters of the student, as PEFT adds them."""

    rank: Size = 8
    modules: tuple[str, ...] = ("q_proj", "v_proj")  # names or ends of names of what they adapt


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PairConfig:
    """A student, its teacher and a batch; see `fastkd.memory.Pair`."""

    student: PathText  # folder with config.json, or such a file
    teacher: PathText | None = None
    losses: tuple[LossConfig, ...] | None = None  # default: cross-entropy, with a teacher word KD
    batch: Positive = 8
    length: Positive = 128
    target_length: Positive | None = None
    accumulation: Positive = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    optim: str = "adamw_torch"
    clip: AboveZero = 1.0
    backend: Literal["auto", "reference", "torch", "triton"] = "auto"
    gradient_checkpointing: Flag = False
    lora: LoraConfig | None = None
    processes: Positive = 1
    sharding: Literal["none", "fully_shard"] = "none"

    def pair(self) -> Pair:
        """Raises InputError for a model that Transformers does not know."""
        return Pair(
            _maker("student", self.student, self.gradient_checkpointing, self.lora),
            self.losses,
            _maker("teacher", self.teacher) if self.teacher else None,
            **{name: getattr(self, name) for name in _SAME},
            optimizer=self.optim,
        )


_SAME = [
    *("batch", "length", "target_length", "accumulation", "precision", "clip", "backend"),
    *("processes", "sharding"),
]


def pair_config(path: str, overrides: Sequence[str]) -> PairConfig | None:
    """What `path` describes: a student's folder or `config.json`, or YAML with a key `student`.

    None where it is another file, or none.
    """
    if Path(path).suffix == ".json" or (Path(path) / FILE).is_file():
        tree: dict[str, Any] = {"student": path}
    elif "student" not in (tree := read_tree(find_config(path))):
        return None
    losses = [given for given in overrides if given.startswith("losses.")]
    tree = overridden(tree, [given for given in overrides if given not in losses])
    usual = [
        {"name": loss.name, "weight": loss.weight} for loss in usual_losses(tree.get("teacher"))
    ]
    return validate_as(PairConfig, overridden(tree, losses, usual), path)


def _maker(
    key: str, path: str, checkpointing: bool = False, lora: LoraConfig | None = None
) -> MakesModel:
    plain = maker_of(key, path)

    def make() -> nn.Module:
        model = plain()
        if checkpointing:
            # The former name warns in the Transformers that have the other one.
            names = "activation_checkpointing_enable", "gradient_checkpointing_enable"
            name = next(name for name in names if hasattr(model, name))
            getattr(model, name)({"use_reentrant": False})
        return _adapted(model, lora) if lora else model

    return make


def _adapted(model: nn.Module, lora: LoraConfig) -> nn.Module:
    try:
        import peft
    except ImportError:
        raise InputError("lora: needs PEFT; expected: pip install peft") from None
    settings = peft.LoraConfig(r=lora.rank, target_modules=list(lora.modules))
    try:
        adapted: nn.Module = peft.get_peft_model(model, settings)
    except ValueError as error:
        raise InputError(f"lora.modules: {error}") from None
    return adapted
