"""A Transformers model as distillation sees it: what it reads, and which label a state predicts."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import EncoderDecoderModel

from fastkd.errors import InputError
from fastkd.integrations.heads import Head
from fastkd.integrations.unwrapped import unwrapped

IGNORED = -100
TEACHER_IDS, TEACHER_LOG_PROBS = "teacher_ids", "teacher_log_probs"
COLUMNS = (TEACHER_IDS, TEACHER_LOG_PROBS)
_WITHHELD = ("labels", "num_items_in_batch", *COLUMNS)

_BESIDE = ("position_ids", "token_type_ids")  # what is read beside masks and something else

Inputs = Mapping[str, Any]


def is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def refuse_shared(student: nn.Module, teacher: nn.Module | None) -> None:
    """What is shared would be trained with the student, or frozen with the teacher."""
    trained = {id(p): name for name, p in student.named_parameters() if p.requires_grad}
    for parameter in () if teacher is None else teacher.parameters():
        if name := trained.get(id(parameter)):
            raise InputError(
                f"teacher: shares {name} with the student, which trains it; expected a copy, as "
                "copy.deepcopy makes it, or what is shared to be frozen"
            )


def refuse_frozen(student: nn.Module) -> None:
    """In training mode with gradients on; a frozen one can be evaluated, as with adapters off."""
    if not (student.training and torch.is_grad_enabled()):
        return
    if not any(p.requires_grad for p in student.parameters()):
        raise InputError(
            "student: none of its parameters requires grad, as those of a model that another "
            "Distillation has as its teacher; expected student.requires_grad_(True), or adapters"
        )


@dataclass(eq=False)
class LanguageModel:
    """A model with an output projection, and what its own loss tells of it.

    frozen: whether it never trains
    shifts: whether label i + 1 is what state i predicts, as in decoder-only models
    told: whether a batch with labels has told so
    cuts: whether states before those of the labels are left out, as the model's own loss has shown
    routed: whether the model's own loss adds its `router_losses`, as mixtures of experts do
    """

    model: nn.Module
    frozen: bool = False
    shifts: bool | None = field(default=None, init=False)  # None: not judged yet
    told: bool = field(default=False, init=False)
    cuts: bool = field(default=False, init=False)
    routed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.head = Head(self.model, self.frozen)
        self.name = type(self.model).__name__
        self.is_encoder_decoder = is_encoder_decoder(self.model)

    def predicted(self, labels: Tensor) -> Tensor:
        """The labels, or what lies beside them (B, T, *), at the positions that are predicted."""
        assert self.shifts is not None
        return labels[:, 1:] if self.shifts else labels

    def predicting(self, hidden: Tensor) -> Tensor:
        """The states (B, T, width) at the positions that predict a label."""
        assert self.shifts is not None
        return hidden[:, :-1] if self.shifts else hidden

    def read(self, inputs: Inputs) -> dict[str, Any]:
        """What it is called with: the labels' decoder input in place of the labels."""
        read = {name: value for name, value in inputs.items() if name not in _WITHHELD}
        if all(name in _BESIDE or name.endswith("_mask") for name in read):
            main = getattr(self.model, "main_input_name", "input_ids")
            raise InputError(
                f"{main}: expected in every batch of {self.name}, not only {', '.join(inputs)}"
            )
        given = {"decoder_input_ids", "decoder_inputs_embeds"} & read.keys()
        if self.is_encoder_decoder and not given:
            made = self.decoder_input(inputs["labels"])
            read["decoder_input_ids"] = made
            # Whose decoder may be any model.
            if isinstance(unwrapped(self.model), EncoderDecoderModel):
                read.setdefault("decoder_attention_mask", (made != self.pad_id).to(made.dtype))
        return self.without_cache(read)

    def refuse_packed(self, inputs: Inputs) -> None:
        """With keys in the cache Transformers does not tell apart rows that follow each other."""
        positions, tuned = inputs.get("position_ids"), self._prompts
        if tuned is None or positions is None or isinstance(positions, FakeTensor):
            return
        if _restart(positions, inputs.get("attention_mask")):
            raise InputError(
                f"position_ids: {self.name} with {tuned.peft_type.value} cannot tell the rows of a "
                "batch without padding apart; expected a padded batch, or LoRA"
            )

    def without_cache(self, inputs: Inputs) -> dict[str, Any]:
        """As training calls it: with a new cache Transformers lets packed rows see each other."""
        more = {"use_cache": False} if self._caches and "past_key_values" not in inputs else {}
        return {**inputs, **more}

    @property
    def _prompts(self) -> Any:
        """Of PEFT's, what puts keys or a prompt before what is read, by a cache of its own."""
        tuned = getattr(self.model, "active_peft_config", None)
        return tuned if getattr(tuned, "is_prompt_learning", False) else None

    @property
    def _caches(self) -> bool:
        """Whether it makes a cache of its own where it is not told otherwise."""
        if self._prompts is not None:
            return False
        read = inspect.signature(unwrapped(self.model).forward).parameters
        if "use_cache" in read:
            return True
        # Models of images and text hand it on unnamed.
        config: Any = self.model.config
        text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None
        return any(each.kind is each.VAR_KEYWORD for each in read.values()) and any(
            getattr(holder, "use_cache", False) for holder in (config, text)
        )

    def decoder_input(self, labels: Tensor) -> Tensor:
        """The labels (B, T) as the model itself shifts them."""
        for name in ("prepare_decoder_input_ids_from_labels", "_shift_right"):
            if shift := getattr(self.model, name, None):
                try:
                    shifted: Tensor = shift(labels.clone())
                except (AttributeError, TypeError, ValueError) as error:
                    raise InputError(self._untold(f" ({_in_one_line(error)})")) from None
                return shifted
        # Others do it within their pass: with the usual start, or the judge tells.
        if (first := self._special("decoder_start_token_id")) is None:
            raise InputError(self._untold())
        start = labels.new_full((len(labels), 1), first)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == IGNORED, self.pad_id)

    def _untold(self, reason: str = "") -> str:
        return (
            f"{self.name}: does not tell its decoder's input{reason}; expected decoder_input_ids "
            "in every batch, or config.decoder_start_token_id"
        )

    @property
    def pad_id(self) -> int:
        """What stands in the decoder's input where there is no label."""
        return self._special("pad_token_id") or 0

    def _special(self, name: str) -> int | None:
        config: Any = self.model.config
        for holder in (config, getattr(config, "decoder", None)):
            if isinstance(found := getattr(holder, name, None), int):
                return found
        return None

    @contextlib.contextmanager
    def reading(self, read: dict[str, Any]) -> Iterator[None]:
        """Within, calls of the model with labels read this instead."""

        def instead(
            model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            if "labels" not in keywords:
                return None
            # With labels the model would compute a loss of its own, of the logits that it lacks.
            return (), read

        # Before the hooks of FSDP2, which casts what is read.
        hook = self.model.register_forward_pre_hook(instead, prepend=True, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def behind_images(self, states: Tensor, labels: Tensor) -> Tensor:
        """The last states or logits (B, T, *), one a label, as GIT puts its images before them."""
        return states[:, max(states.shape[1] - labels.shape[1], 0) :]

    def hidden_of(self, labels: Tensor) -> Tensor:
        """What entered the head in the last pass, (B, T, width) for labels (B, T)."""
        hidden = self.head.taken
        # Learned prompts predict the first label too.
        if self.cuts and self._prompts is None and hidden.dim() == 3:
            hidden = self.behind_images(hidden, labels)
        if hidden.shape[:-1] != labels.shape:
            raise InputError(
                f"{self.name}: {tuple(hidden.shape[:-1])} states for labels "
                f"{tuple(labels.shape)}; expected one state a label: LoRA or prefix tuning in "
                "place of prompt tuning, and no model that predicts several labels at once"
            )
        return hidden


def _restart(positions: Tensor, mask: Any) -> bool:
    """Whether positions (B, T) or (T,) do not rise from one that `mask` (B, T) keeps to the next.

    Others, as those of images have an axis more, do not tell.
    """
    if positions.dim() not in (1, 2):
        return False
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[-1] == positions.shape[-1]:
        kept = mask.to(positions.device) != 0
    else:
        kept = torch.ones_like(positions, dtype=torch.bool)
    at = torch.where(kept, positions, -1)
    before = at.cummax(-1).values[..., :-1]
    return bool((kept[..., 1:] & (at[..., 1:] <= before)).any())


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
