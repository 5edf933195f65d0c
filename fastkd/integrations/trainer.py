"""Distillation in Hugging Face Transformers' `Trainer` and `Seq2SeqTrainer`.

trainer = DistillationSeq2SeqTrainer(
    model=student, teacher=teacher, losses=[CrossEntropy(weight=0.5), A2D()], args=arguments, ...
)
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DynamoBackend
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase, Seq2SeqTrainer, Trainer

from fastkd.errors import InputError
from fastkd.files import write_file
from fastkd.integrations.accelerate import divide_head
from fastkd.integrations.compiled import compile_layers
from fastkd.integrations.counts import LABELS
from fastkd.integrations.distillation import ATTRIBUTE, Distillation
from fastkd.integrations.models import COLUMNS
from fastkd.integrations.sharded import divide_like, shared_again
from fastkd.tensors import read_tensors

_FILE = f"{ATTRIBUTE}.safetensors"  # in a checkpoint, where something is learned beside the student

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object


class DistillationMixin(_Trainer):
    """Before a Trainer in a class's bases: trains by `losses` in place of the model's own loss.

    teacher, losses, rest, backend, verify: as `fastkd.integrations.distillation.Distillation` takes
        them; a teacher that was placed by a device map, or is quantised, stays where it is

    What A2D learns is part of the student while it trains, so that it is optimized, clipped,
    exchanged and resumed with it; saved models do not hold it. FSDP2 divides the teacher too.
    Components are logged beside the loss. Evaluation is the Trainer's own, by the loss that the
    model itself computes.

    Raises InputError for settings under which the losses would not be what they say.
    """

    model_accepts_loss_kwargs: bool
    _signature_columns: Any

    def __init__(
        self,
        *arguments: Any,
        losses: Sequence[Any],
        teacher: nn.Module | None = None,
        rest: str = "renormalize",
        backend: str = "auto",
        verify: bool = True,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._refuse_what_would_be_ignored()
        self._compiles_by: dict[str, Any] = {}
        self._distilled_by: dict[str, Any] = {"rest": rest, "backend": backend, "verify": verify}
        assert self.model is not None
        self.distillation = self._distilling(self.model, losses, teacher)
        # FSDP2 moves the parts of a teacher when it divides it.
        if teacher is not None and not _is_placed(teacher) and not self.is_fsdp_enabled:
            teacher.to(self.args.device)
        if teacher is not None and self.args.torch_compile:
            self._compile(teacher)
        self._is_part = False  # whether what is learned is a part of the student
        self._update_counts: Tensor | None = None
        self._components: dict[str, Tensor] = {}
        self._updates = 0  # since components were logged

    def _distilling(
        self, student: nn.Module, losses: Sequence[Any], teacher: nn.Module | None
    ) -> Distillation:
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = None
        made = Distillation(student, losses, teacher, **self._distilled_by, tokenizer=tokenizer)
        if self.args.torch_compile:
            self._compile(student)
        return made.to(self.args.device)

    def _compile(self, model: nn.Module) -> None:
        """Layer by layer, in place of the whole, within which the losses could not be computed."""
        plugin = self.accelerator.state.dynamo_plugin
        self._compiles_by = self._compiles_by or plugin.to_kwargs()
        plugin.backend = DynamoBackend.NO
        if not compile_layers(model, **self._compiles_by):
            raise InputError(
                f"torch_compile: found no stack of layers in {type(model).__name__}; expected one, "
                "or a student that was compiled in part"
            )

    def call_model_init(self, trial: Any = None) -> Any:
        """A new student, as `model_init` makes it for each training and trial, and its losses."""
        student = super().call_model_init(trial)
        before: Distillation | None = getattr(self, "distillation", None)
        if before is not None:
            wanted = self._is_part
            self._make_part(False)
            losses = list(before.losses.values())
            self.distillation = self._distilling(student, losses, before.teacher)
            self._is_part = wanted
            if wanted:
                setattr(student, ATTRIBUTE, self.distillation)
        return student

    def _refuse_what_would_be_ignored(self) -> None:
        refused = {
            "label_smoothing_factor": self.args.label_smoothing_factor,
            "compute_loss_func": self.compute_loss_func,
        }
        for name, value in refused.items():
            if value:
                raise InputError(f"{name}: expected none with fastkd's losses, not {value!r}")
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if self.is_deepspeed_enabled or getattr(plugin, "fsdp_version", 2) != 2:
            asked = "deepspeed" if plugin is None else "fsdp"
            raise InputError(
                f"{asked}: expected FSDP2 with fastkd's losses, as fsdp=True, "
                "fsdp_config={'version': 2} ask for it"
            )
        if plugin is not None and self.args.torch_compile:
            raise InputError("torch_compile: expected none where fsdp divides the student")
        if self.args.n_gpu > 1:
            raise InputError("several GPUs: expected one process each, as torchrun starts them")

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        self._components, self._updates = {}, 0
        with self._part_of_the_student(True):
            return super().train(*arguments, **keywords)

    @contextlib.contextmanager
    def _part_of_the_student(self, wanted: bool) -> Iterator[None]:
        """Within, what is learned is a part of the student, or is none."""
        before = self._is_part
        self._make_part(wanted)
        try:
            yield
        finally:
            self._make_part(before)

    def _make_part(self, wanted: bool) -> None:
        self._is_part = wanted
        if self.model is None:  # between the students of a hyperparameter search
            return
        if wanted:
            setattr(self.model, ATTRIBUTE, self.distillation)
        elif hasattr(self.model, ATTRIBUTE):
            delattr(self.model, ATTRIBUTE)

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> tuple[list[Any], Any]:
        batches, _ = super().get_batch_samples(*arguments, **keywords)
        self._divide_teacher()
        with self.accelerator.autocast():
            counts = self.distillation.counts(batches).to(self.args.device)
        self._update_counts = self.accelerator.reduce(counts, "sum")
        self._updates += 1
        return batches, self._update_counts[LABELS]

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> Any:
        self._divide_head()
        return super().create_optimizer(*arguments, **keywords)

    def _wrap_model(self, *arguments: Any, **keywords: Any) -> Any:
        self._divide_head()
        return super()._wrap_model(*arguments, **keywords)

    def _divide_head(self) -> None:
        """Before Accelerate divides the rest, and keeps the output projection whole."""
        # An optimizer that was given has the weight as it is.
        if self.optimizer is None and self.model is not None:
            divide_head(self.model, self.accelerator)

    def _divide_teacher(self) -> None:
        """As FSDP2 has divided the student by now."""
        teacher = self.distillation.teacher
        if self.is_fsdp_enabled and teacher is not None and not _is_placed(teacher):
            divide_like(teacher, self.distillation.student)

    def training_step(self, *arguments: Any, **keywords: Any) -> Tensor:
        # Tells the Trainer that the loss is divided by counts, not to be divided again.
        given, self.model_accepts_loss_kwargs = self.model_accepts_loss_kwargs, True
        try:
            return super().training_step(*arguments, **keywords)
        finally:
            self.model_accepts_loss_kwargs = given

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if not model.training:
            inputs = {name: value for name, value in inputs.items() if name not in COLUMNS}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        epoch = int(self.state.epoch or 0) + 1
        with self.accelerator.autocast():
            loss, components = self.distillation(
                model, inputs, self._update_counts, epoch, self.state.global_step + 1
            )
        for name, value in components.items():
            self._components[name] = self._components.get(name, 0.0) + value
        # Processes average their gradients.
        return loss * self.accelerator.num_processes

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        if "loss" in logs and self._components:
            sums = self.accelerator.reduce(torch.stack(list(self._components.values())), "sum")
            means = (sums / max(self._updates, 1)).tolist()
            logs |= dict(zip(self._components, means, strict=True))
            self._components, self._updates = {}, 0
        super().log(logs, *arguments, **keywords)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list({*(self._signature_columns or ()), *COLUMNS})

    def save_model(self, output_dir: str | None = None, *arguments: Any, **keywords: Any) -> None:
        # FSDP2's parts of what is learned are put together with those of the student.
        with self._part_of_the_student(self.is_fsdp_enabled or self._is_part):
            super().save_model(output_dir, *arguments, **keywords)
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is not None and "SHARDED" in str(plugin.state_dict_type):
            # Of which Transformers writes no whole tensors.
            learned = {name: _whole(t) for name, t in self.distillation.state_dict().items()}
            self._save_learned(output_dir, learned)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        if state_dict is not None and self.is_fsdp_enabled:
            assert self.model is not None
            learned, state_dict = _split(shared_again(self.model, state_dict))
        else:
            learned = self.distillation.state_dict()
        with self._part_of_the_student(False):
            super()._save(output_dir, state_dict)
        self._save_learned(output_dir, learned)

    def _save_learned(self, output_dir: str | None, learned: dict[str, Tensor]) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        if learned and self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / _FILE, save(learned))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *arguments: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *arguments)
        if self.is_fsdp_enabled:
            return  # what is learned has been loaded as a part of the student
        if (file := Path(resume_from_checkpoint) / _FILE).is_file():
            self.distillation.load_state_dict(read_tensors(file))


def _split(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is learned beside the student, by its own names; and the student."""
    prefix = f"{ATTRIBUTE}."
    learned = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    return learned, {name: t for name, t in state.items() if not name.startswith(prefix)}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def _is_placed(model: nn.Module) -> bool:
    """Whether it lies where someone has put it, part by part."""
    placed = getattr(model, "hf_device_map", None), getattr(model, "hf_quantizer", None)
    return any(placed) or any(hasattr(module, "_hf_hook") for module in model.modules())


class DistillationTrainer(DistillationMixin, Trainer):
    """`Trainer` with fastkd's losses."""


class DistillationSeq2SeqTrainer(DistillationMixin, Seq2SeqTrainer):
    """`Seq2SeqTrainer` with fastkd's losses."""
