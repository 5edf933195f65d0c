"""The training loop."""

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fastkd.config.tree import Config
from fastkd.data.batches import BatchPlan, collate, split
from fastkd.data.prepare import Prepared
from fastkd.errors import RunFailed
from fastkd.methods.objective import Objective
from fastkd.nn.build import build_model
from fastkd.nn.transformer import Transformer
from fastkd.runs.device import autocast
from fastkd.runs.folder import MODEL, OBJECTIVE, STATE, RunFolder, Saved
from fastkd.runs.weights import load_weights, weights_of
from fastkd.terms.passes import Components, Counts
from fastkd.train.ema import MovingAverage
from fastkd.train.heap import give_back
from fastkd.train.interrupt import StopRequest
from fastkd.train.learner import Learner
from fastkd.train.log import RunLog
from fastkd.train.meter import Meter
from fastkd.train.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from fastkd.train.position import Position
from fastkd.train.ranks import Ranks
from fastkd.train.schedule import learning_rate
from fastkd.train.sharding import whole
from fastkd.train.validation import bleu_tokenizer, validate

LOGGER = logging.getLogger(__name__)


class Trainer:
    """Trains `model` by `objective` on `prepared.train`, in the run folder `run`."""

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        model: Transformer,
        objective: Objective,
        run: RunFolder,
        device: torch.device,
        ranks: Ranks,
    ):
        self.config, self.prepared, self.run = config, prepared, run
        self.device, self.ranks = device, ranks
        self.model, self.objective = model.to(self.device), objective.to(self.device)
        if isinstance(objective.teacher, Transformer):
            objective.teacher.to(self.device)
        self.objective.begin(self.model)
        saved = run.newest_whole((MODEL, OBJECTIVE, STATE))
        if saved:
            self._take_weights(saved)
        learner = Learner(self.model, self.objective)
        self.learner = ranks.parallel(learner, config.training.sharding, device)
        self.parameters = [*self.model.parameters(), *self.objective.parameters()]
        self.optimizer = build_optimizer(config.training.optimizer, self.parameters)
        decay = config.training.ema
        self.average = MovingAverage(self.model, decay) if decay else None
        corpus = prepared.train
        self.plan = BatchPlan(
            corpus.source_lengths,
            corpus.target_lengths,
            config.training.batch_tokens,
            config.training.seed,
        )
        self.position = self._take_state(saved) if saved else Position()

    def train(self) -> Position:
        """Trains until the budget is spent, patience ends, or a signal asks to stop.

        The run folder is free for another writer then.
        """
        training, total = self.config.training, self.planned_updates()
        if self.finished:
            return self.position
        if self.ranks.first:
            self.run.record(self.config)
        meter = Meter()
        with contextlib.closing(self.run), self._opened_log(total) as log, StopRequest() as signal:
            for epoch, batch, ids in self._updates(total):
                counts = self.objective.counts(self.prepared.train, ids, self.position.update + 1)
                meter.add(self._update(ids, counts, epoch), counts)
                self.position = self.position.after(
                    epoch, batch, self.plan.batches, meter.seconds_since_last()
                )
                log.advance(self.position.update)
                last = self.position.update >= total
                if self.position.update % training.log_every == 0 or last:
                    self._log(log, meter)
                validated = last or self._validation_due()
                if validated:
                    self._validate(log)
                    give_back()
                    meter.restart()
                stop = self.ranks.any(bool(signal), self.device)
                if validated or stop or self.position.update % training.save_every == 0:
                    self.save()
                if self.finished or stop:
                    break
        return self.position

    @property
    def finished(self) -> bool:
        """Whether the budget is spent or patience has ended."""
        patience = self.config.training.patience
        impatient = patience is not None and self.position.stale >= patience
        return impatient or self.position.update >= self.planned_updates()

    def planned_updates(self) -> int:
        training = self.config.training
        if training.epochs is None:
            return training.updates
        return min(training.updates, training.epochs * self.plan.batches)

    def save(self) -> None:
        """Writes a checkpoint; its model weights are the moving average where there is one."""
        state = _under("optimizer.", optimizer_tensors(self.optimizer))
        model = weights_of(self.model)
        if self.average:
            state |= _under("model.", model)
            model = self.average.tensors()
        state |= _under("objective.", self.objective.moving_tensors())
        groups = {MODEL: model, OBJECTIVE: weights_of(self.objective), STATE: state}
        if self._sharded:
            groups = {name: self._gathered(tensors) for name, tensors in groups.items()}
        if self.ranks.first:
            keep = self.config.training.keep_last
            self.run.save(self.position.update, groups, asdict(self.position), keep)
        self.ranks.wait()

    @property
    def _sharded(self) -> bool:
        return self.ranks.size > 1 and self.config.training.sharding != "none"

    def _gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors in the first process's memory, one after another; none in the others'."""
        gathered = {}
        for name, tensor in tensors.items():
            tensor = whole(tensor)
            if self.ranks.first:
                gathered[name] = tensor.cpu()
        return gathered

    def _updates(self, total: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """(epoch, batch of the epoch, sentence ids) of each update still to do."""
        update, epoch, start = self.position.update, self.position.epoch, self.position.batch
        while update < total:
            batches = self.plan.epoch(epoch)
            for batch in range(start, min(len(batches), start + total - update)):
                yield epoch, batch, batches[batch]
                update += 1
            epoch, start = epoch + 1, 0

    def _update(self, ids: np.ndarray, counts: Counts, epoch: int) -> Components:
        """One optimizer step over the sentences `ids`; their loss components."""
        training = self.config.training
        update = self.position.update + 1
        self.objective.before_update(self.model)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        components: Components = {}
        parts = split(self.prepared.train, ids, training.accumulation * self.ranks.size)
        pieces = self.ranks.share(list(enumerate(parts)))
        for piece, part in pieces:
            # Random state is a function of the place, so resuming needs none of it.
            torch.manual_seed(_seed(training.seed, update, piece))
            with self._gradients_exchanged(last=piece == pieces[-1][0]):
                loss, values = self._piece(part, ids, counts, epoch)
                loss.backward()
            for name, value in {"loss": loss.detach() / self.ranks.size, **values}.items():
                components[name] = components[name] + value if name in components else value
        clip = training.optimizer.clip or math.inf
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, clip))
        components["grad_norm"] = norm / self.ranks.size  # the same in each, and summed
        if not torch.isfinite(norm):
            self._skip(self.ranks.total(components), ids)
            return {}
        self.position = replace(self.position, skipped=0)
        rate = learning_rate(training.optimizer, update, self.planned_updates())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.average:
            self.average.update()
        return components

    def _skip(self, components: Components, ids: np.ndarray) -> None:
        """Leaves the weights as they are; ends the run after too many such updates in a row."""
        broken = [name for name, value in components.items() if not torch.isfinite(value)]
        update, skipped = self.position.update + 1, self.position.skipped + 1
        self.position = replace(self.position, skipped=skipped)
        found = f"update {update}: {', '.join(broken)} not finite, over sentences {_listed(ids)}"
        if skipped >= self.config.training.max_skipped:
            raise RunFailed(f"{found}; {skipped} such updates in a row")
        LOGGER.warning("%s; the update is skipped", found)

    def _piece(
        self, part: np.ndarray, ids: np.ndarray, counts: Counts, epoch: int
    ) -> tuple[Tensor, Components]:
        """The loss of a part of an update, times the number of processes that are averaged over.

        An empty part, of an update with fewer sentences than parts, counts for nothing.
        """
        share = self.ranks.size if len(part) else 0
        rows = part if len(part) else ids[:1]
        tokenizers, start = self.prepared.tokenizers, self.config.model.decoder_start
        batch = collate(self.prepared.train, rows, tokenizers, start).to(self.device)
        with autocast(self.device, self.config.training.precision):
            loss, components = self.learner(batch, counts, epoch)
        if not len(part):
            components = {name: torch.zeros_like(value) for name, value in components.items()}
        return loss * share, components

    def _gradients_exchanged(self, last: bool) -> contextlib.AbstractContextManager:
        """Processes exchange gradients in the backward of their last part.

        Where they are divided they do so in each part's: none is ever held whole.
        """
        if last or not isinstance(self.learner, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.learner.no_sync()

    @contextlib.contextmanager
    def _evaluated(self) -> Iterator[Transformer]:
        """The model as a checkpoint has it, whole, and in evaluation mode."""
        if self._sharded:
            weights = self.average.tensors() if self.average else weights_of(self.model)
            model = build_model(self.config.model, self.prepared.tokenizers).to(self.device)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(whole(weights[name]))
            yield model.eval()
            return
        self.model.eval()
        if self.average:
            self.average.swap()
        yield self.model
        if self.average:
            self.average.swap()

    def _opened_log(self, total: int) -> RunLog:
        path = self.run.log_file if self.ranks.first else None
        return RunLog(path, self.position.update, total, self.config.training.tensorboard)

    def _validation_due(self) -> bool:
        every = self.config.training.validate_every
        return self.position.batch == 0 if every is None else self.position.update % every == 0

    def _validate(self, log: RunLog) -> None:
        training = self.config.training
        tokenizer = bleu_tokenizer(self.config, self.position)
        with self._evaluated() as model, autocast(self.device, training.precision):
            where = self.prepared, self.config, self.device, self.ranks
            found = validate(self.objective, model, *where, tokenizer)
        self.position = self.position.measured_by(tokenizer).with_result(
            found.result(training.early_metric), found.loss
        )
        log.write({"step": self.position.update, **found.record()})
        log.say(f"update {self.position.update}: {found}")

    def _log(self, log: RunLog, meter: Meter) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        figures = meter.figures(self.ranks)
        epoch = self.position.epoch if self.position.batch else self.position.epoch - 1
        log.write({"step": self.position.update, "epoch": epoch, "lr": rate, **figures})
        log.figures(
            f"loss {figures.get('loss', math.nan):.3f}  {figures['tokens_per_second']:.0f} tokens/s"
        )

    def _take_weights(self, saved: Saved) -> None:
        """Continues with a checkpoint's weights; they are not divided yet."""
        state = saved.groups[STATE]
        model = _below("model.", state) if self.config.training.ema else saved.groups[MODEL]
        load_weights(self.model, model, saved.folder)
        load_weights(self.objective, saved.groups[OBJECTIVE], saved.folder)
        moving = _below("objective.", state)
        for name, tensor in self.objective.moving_tensors().items():
            tensor.copy_(moving[name])

    def _take_state(self, saved: Saved) -> Position:
        """Continues with the rest of a checkpoint, from the position that it gives."""
        if self.average:
            self.average.load(saved.groups[MODEL])
        load_optimizer_tensors(self.optimizer, _below("optimizer.", saved.groups[STATE]))
        known = Position.__dataclass_fields__
        return Position(**{k: v for k, v in saved.meta.items() if k in known})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _listed(ids: np.ndarray) -> str:
    shown = ", ".join(str(i) for i in ids[:10])
    return shown if len(ids) <= 10 else f"{shown}, ... ({len(ids)} in all)"


def _seed(seed: int, update: int, piece: int) -> int:
    return int(np.random.SeedSequence([seed, update, piece]).generate_state(1, np.uint64)[0] >> 1)
