"""The training loop."""

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from signal import SIGTERM

import numpy as np
import torch

from fastkd.config.tree import Config
from fastkd.data.batches import BatchPlan, collate, split
from fastkd.data.prepare import Prepared
from fastkd.errors import RunFailed
from fastkd.methods.objective import Objective
from fastkd.nn.build import build_model
from fastkd.nn.transformer import Transformer
from fastkd.runs.device import autocast
from fastkd.runs.folder import MODEL, OBJECTIVE, STATE, RunFolder
from fastkd.train.heads import listed
from fastkd.train.heap import give_back
from fastkd.train.interrupt import StopRequest
from fastkd.train.log import RunLog
from fastkd.train.meter import Meter
from fastkd.train.position import Position
from fastkd.train.ranks import Ranks
from fastkd.train.schedule import learning_rate
from fastkd.train.state import evaluated, save, take_meter, take_state, take_weights
from fastkd.train.update import Made, Piece, Updater
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
        model, objective = model.to(device), objective.to(device)
        if isinstance(objective.teacher, Transformer):
            objective.teacher.to(device)
        objective.begin(model)
        saved = run.newest_whole((MODEL, OBJECTIVE, STATE))
        ranks.check_same({"checkpoint": saved.meta["sha256"] if saved else None})
        if saved:
            take_weights(model, objective, saved, averaged=bool(config.training.ema))
        self.updater = Updater(config.training, model, objective, device, ranks)
        corpus = prepared.train
        self.plan = BatchPlan(
            corpus.source_lengths,
            corpus.target_lengths,
            config.training.batch_tokens,
            config.training.seed,
        )
        self.position = take_state(self.updater, saved) if saved else Position()
        self.meter = Meter()
        if saved:
            take_meter(self.meter, saved, ranks, device)
        self.stopped_by: int | None = None  # the signal that ended `train` before the budget did

    def train(self) -> Position:
        """Trains until the budget is spent, patience ends, or a signal asks to stop.

        The run folder is free for another writer then.
        """
        with contextlib.closing(self.run):
            if not self.finished:
                if self.ranks.first:
                    self.run.record(self.config)
                self._train()
        return self.position

    def _train(self) -> None:
        training, total = self.config.training, self.planned_updates()
        with self._opened_log(total) as log, StopRequest() as signal:
            stop = False
            if self.position.unvalidated:
                self._validate(log, signal)
                stop = self._to_stop(signal)
            for epoch, batch, ids in self._updates(total):
                if stop or self.finished:
                    break
                self._update(ids, epoch)
                self.position = self.position.after(
                    epoch, batch, self.plan.batches, self.meter.seconds_since_last()
                )
                log.advance(self.position.update)
                last = self.position.update >= total
                if self.position.update % training.log_every == 0 or last:
                    self._log(log)
                due = last or self._validation_due()
                self.position = replace(self.position, unvalidated=due)
                stop = self._to_stop(signal)
                if due or stop or self.position.update % training.save_every == 0:
                    self.save()
                if due and not stop:
                    self._validate(log, signal)
                    stop = self._to_stop(signal)

    @property
    def finished(self) -> bool:
        """Whether the budget is spent or patience has ended, and all is validated."""
        if self.position.unvalidated:
            return False
        patience = self.config.training.patience
        impatient = patience is not None and self.position.stale >= patience
        return impatient or self.position.update >= self.planned_updates()

    def planned_updates(self) -> int:
        training = self.config.training
        if training.epochs is None:
            return training.updates
        return min(training.updates, training.epochs * self.plan.batches)

    def save(self) -> None:
        """Writes a checkpoint."""
        save(self.updater, self.run, self.position, self.meter, self._kept)

    @property
    def _kept(self) -> int | None:
        """How many checkpoints; None: all, while updates are skipped, as weights may be bad."""
        return None if self.position.skipped else self.config.training.keep_last

    def _to_stop(self, signal: StopRequest) -> bool:
        """Whether a signal has come, to any of the processes."""
        if not self.ranks.any(bool(signal), self.device):
            return False
        self.stopped_by = signal.number or SIGTERM
        return True

    def _updates(self, total: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """(epoch, batch of the epoch, sentence ids) of each update still to do."""
        update, epoch, start = self.position.update, self.position.epoch, self.position.batch
        while update < total:
            batches = self.plan.epoch(epoch)
            for batch in range(start, min(len(batches), start + total - update)):
                yield epoch, batch, batches[batch]
                update += 1
            epoch, start = epoch + 1, 0

    def _update(self, ids: np.ndarray, epoch: int) -> None:
        """One optimizer step over the sentences `ids`."""
        training, update = self.config.training, self.position.update + 1
        counts = self.updater.objective.counts(self.prepared.train, ids, update)
        parts = split(self.prepared.train, ids, training.accumulation * self.ranks.size)
        pieces = [self._piece(*part, ids) for part in self.ranks.share(list(enumerate(parts)))]
        rate = learning_rate(training.optimizer, update, self.planned_updates())
        made = self.updater(update, pieces, counts, epoch, rate)
        if made.taken:
            self.position = replace(self.position, skipped=0)
            self.meter.add(made.components, counts)
        else:
            self._skip(made, ids)

    def _piece(self, number: int, part: np.ndarray, ids: np.ndarray) -> Piece:
        """Of an update with fewer sentences than parts some are empty; a sentence stands in."""
        corpus, tokenizers = self.prepared.train, self.prepared.tokenizers
        rows, start = part if len(part) else ids[:1], self.config.model.decoder_start
        return Piece(number, lambda: collate(corpus, rows, tokenizers, start), bool(len(part)))

    def _skip(self, made: Made, ids: np.ndarray) -> None:
        """Leaves the weights as they are; ends the run after too many such updates in a row."""
        components = self.ranks.total(made.components)
        broken = [name for name, value in components.items() if not torch.isfinite(value)]
        if made.overflow:
            broken = ["the new weights"]
        update, skipped = self.position.update + 1, self.position.skipped + 1
        self.position = replace(self.position, skipped=skipped)
        found = f"update {update}: {', '.join(broken)} not finite, over sentences {_listed(ids)}"
        if skipped >= self.config.training.max_skipped:
            good = self.run.newest_without_skips()
            go_back = "there is no checkpoint from before" if good is None else f"go back to {good}"
            raise RunFailed(f"{found}; {skipped} such updates in a row; {go_back}")
        LOGGER.warning("%s; the update is skipped", found)

    def _opened_log(self, total: int) -> RunLog:
        path = self.run.log_file if self.ranks.first else None
        done, unvalidated = self.position.update, self.position.unvalidated
        return RunLog(path, done, total, self.config.training.tensorboard, unvalidated)

    def _validation_due(self) -> bool:
        every = self.config.training.validate_every
        return self.position.batch == 0 if every is None else self.position.update % every == 0

    def _validate(self, log: RunLog, signal: StopRequest) -> None:
        """Of the checkpoint just written, which is told what came of it, unless a signal comes."""
        training = self.config.training
        tokenizer = bleu_tokenizer(self.config, self.position)
        build = partial(build_model, self.config.model, self.prepared.tokenizers)
        with evaluated(self.updater, build) as model, autocast(self.device, training.precision):
            where = self.prepared, self.config, self.device, self.ranks
            stopped = signal.__bool__
            found = validate(self.updater.objective, model, *where, tokenizer, stopped)
        if found is None:
            return
        self.position = self.position.measured_by(tokenizer).with_result(
            found.result(training.early_metric), found.loss
        )
        objective = self.updater.objective
        heads = listed(objective.mixes(), objective.teacher_heads)
        log.write({"step": self.position.update, **found.record(), **heads})
        log.say(f"update {self.position.update}: {found}")
        if self.ranks.first:
            self.run.revise(self.position.update, asdict(self.position), self._kept)
        self.ranks.wait()
        give_back()
        self.meter.restart()

    def _log(self, log: RunLog) -> None:
        figures = self.meter.figures(self.ranks)
        epoch = self.position.epoch if self.position.batch else self.position.epoch - 1
        where = {"step": self.position.update, "epoch": epoch, "lr": self.updater.rate}
        scheduled = self.updater.objective.scheduled(self.position.update, epoch)
        log.write({**where, **figures, **scheduled})
        loss, speed = figures.get("loss", math.nan), figures["tokens_per_second"]
        log.figures(self.position.update, f"loss {loss:.3f}  {speed:.0f} tokens/s")


def _listed(ids: np.ndarray) -> str:
    shown = ", ".join(str(i) for i in ids[:10])
    return shown if len(ids) <= 10 else f"{shown}, ... ({len(ids)} in all)"
