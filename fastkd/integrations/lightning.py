"""Distillation in Lightning, of Transformers models.

    module = DistillationModule(student, [CrossEntropy(weight=0.5), A2D()], teacher, optimizer=adam)
    lightning.Trainer().fit(module, loader)

With accumulate_grad_batches=4 the batches have to know their update:

    loader = CountedLoader(dataset, counts=module.distillation.counts, accumulation=4, ...)
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from fastkd.errors import InputError
from fastkd.integrations.distillation import Distillation
from fastkd.integrations.models import COLUMNS
from fastkd.integrations.sharded import divide, divide_like, is_sharded

SUPPORTED = "2.4 to 2.x"

try:
    import lightning
    from lightning.pytorch.strategies import (
        DDPStrategy,
        ModelParallelStrategy,
        SingleDeviceStrategy,
    )
except ImportError as error:
    raise ImportError(
        f"fastkd.integrations.lightning needs Lightning {SUPPORTED}: "
        "pip install 'fastkd[lightning]'"
    ) from error
if not (2, 4) <= tuple(map(int, lightning.__version__.split(".")[:2])) < (3, 0):
    raise ImportError(
        f"fastkd.integrations.lightning needs Lightning {SUPPORTED}, not {lightning.__version__}"
    )

_COUNTS = "update_counts"  # key of a batch: the counts of the update that it belongs to


class DistillationModule(lightning.LightningModule):
    """A student and its losses.

    student, losses, teacher, rest, backend, verify: as those of
        `fastkd.integrations.distillation.Distillation`
    optimizer: called with the parameters; returns what `configure_optimizers` may return

    With `ModelParallelStrategy` FSDP2 divides student, teacher and what is learned beside them over
    all devices; models that are divided already stay as they are.

    The teacher is no part of checkpoints. Components are logged by name, each as an estimate of
    its value for the whole update; their means over an epoch are exact. Validation logs the loss
    that the model itself computes, as `val_loss`.

    Raises InputError where losses would not be divided by the counts of whole updates.
    """

    def __init__(
        self,
        student: nn.Module,
        losses: Sequence[Any],
        teacher: nn.Module | None = None,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Any],
        rest: str = "renormalize",
        backend: str = "auto",
        verify: bool = True,
    ) -> None:
        super().__init__()
        self.student = student
        self.distillation = Distillation(
            student, losses, teacher, rest=rest, backend=backend, verify=verify
        )
        self.optimizer = optimizer

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if not isinstance(strategy, ModelParallelStrategy) or is_sharded(self.distillation):
            return
        if strategy.device_mesh["tensor_parallel"].size() > 1:
            raise InputError(
                "tensor_parallel_size: expected 1 with fastkd's losses, and data_parallel_size as "
                "many as there are devices"
            )
        mesh = strategy.device_mesh["data_parallel"]
        if not is_sharded(self.student):
            divide(self.student, mesh)
        if self.distillation.teacher is not None:
            divide_like(self.distillation.teacher, self.student)
        if any(True for _ in self.distillation.parameters()):
            fully_shard(self.distillation, mesh=mesh)

    def on_fit_start(self) -> None:
        served = SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy
        if not isinstance(self.trainer.strategy, served):
            raise InputError(
                "strategy: expected one device, ddp or ModelParallelStrategy with fastkd's losses, "
                f"not {type(self.trainer.strategy).__name__}"
            )
        teacher = self.distillation.teacher
        if teacher is not None and not is_sharded(teacher):
            teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        loader = self.trainer.train_dataloader
        if isinstance(loader, CountedLoader) and self.trainer.num_training_batches != inf:
            loader.limit = int(self.trainer.num_training_batches)
        counted = getattr(loader, "accumulation", 1)
        if counted != self.trainer.accumulate_grad_batches:
            raise InputError(
                f"accumulate_grad_batches: {self.trainer.accumulate_grad_batches}, but batches "
                f"are counted by {counted}; expected a CountedLoader of the same accumulation"
            )

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != _COUNTS}
        counts = batch[_COUNTS] if _COUNTS in batch else self.distillation.counts([inputs])
        # In place, and the batches of an update hold one tensor.
        counts = self.trainer.strategy.reduce(counts.clone(), reduce_op="sum")
        loss, components = self.distillation(
            self.student, inputs, counts, self.current_epoch + 1, self.trainer.global_step + 1
        )
        shares = {"loss": loss.detach(), **components}
        batches = counts[0]  # of the update, in all processes
        self.log_dict(
            {name: share * batches for name, share in shares.items()},
            on_step=True,
            on_epoch=True,
            sync_dist=True,
            batch_size=1,
        )
        # Lightning divides by the one, and averages gradients over the other.
        scaled: Tensor = loss * self.trainer.accumulate_grad_batches * self.trainer.world_size
        return scaled

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        inputs = {name: value for name, value in batch.items() if name not in COLUMNS}
        loss = self.student(**inputs).loss
        self.log("val_loss", loss, sync_dist=True, batch_size=len(inputs["labels"]))


class CountedLoader(DataLoader[Any]):
    """A DataLoader whose batches know the size of the update they belong to.

    counts: `distillation.counts` of the module that trains on them
    accumulation: batches an update, as the Trainer's `accumulate_grad_batches`

    The remaining arguments are those of `DataLoader`.
    """

    def __init__(
        self,
        dataset: Any,
        *arguments: Any,
        counts: Callable[[Iterable[Any]], Tensor],
        accumulation: int,
        **keywords: Any,
    ) -> None:
        super().__init__(dataset, *arguments, **keywords)
        self.counts, self.accumulation = counts, accumulation
        self.limit: int | None = None  # batches an epoch, where the Trainer takes no more

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Iterator[Any] = super().__iter__()
        if self.limit is not None:
            # An epoch that is cut short ends with a smaller update.
            batches = itertools.islice(batches, self.limit)
        while update := list(itertools.islice(batches, self.accumulation)):
            counts = self.counts(update)
            for batch in update:
                yield {**batch, _COUNTS: counts}
