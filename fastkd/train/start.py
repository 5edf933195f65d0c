"""From a configuration to a trainer: corpus, models, teacher, objective, run folder."""

import logging

import numpy as np
import torch

from fastkd.config.tree import Config, ModelConfig, StartConfig, TeacherConfig
from fastkd.data.prepare import Prepared
from fastkd.data.teacher_cache import TeacherCache
from fastkd.errors import InputError
from fastkd.methods.cached_teacher import CachedTeacher
from fastkd.methods.objective import Objective
from fastkd.nn.build import build_model
from fastkd.nn.transformer import Transformer
from fastkd.runs.device import pick_device
from fastkd.runs.folder import MODEL, OBJECTIVE, RunFolder, Weights
from fastkd.runs.room import TRAINED, check_room
from fastkd.runs.weights import load_weights
from fastkd.train.ranks import Ranks
from fastkd.train.trainer import Trainer

LOGGER = logging.getLogger(__name__)


def start(config: Config, prepared: Prepared) -> Trainer:
    """A trainer on the prepared corpus, where the run stands: at its beginning or last checkpoint.

    Under `torchrun` it is one of several processes that train together.
    """
    device = pick_device(config.training.device)
    ranks = Ranks.join(device, config.training.process_timeout)
    _check_lengths(config, prepared)
    tokenizers = prepared.tokenizers
    teacher, taught = (None, None) if config.teacher is None else _teacher(config.teacher, prepared)
    shares = 1 if config.training.sharding == "none" else ranks.size
    copies = (TRAINED + bool(config.training.ema)) / shares
    check_room(config.model, tokenizers, "model", max(1, copies), device)
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, tokenizers)
    objective = Objective(config, tokenizers.target.pad_id, teacher)
    begun: list[str] = []
    if config.start is not None and not RunFolder(config.run).checkpoints():
        begun = _begin(model, objective, config.start, prepared)
    corpora = {"train": prepared.train.sha256, "dev": prepared.dev.sha256}
    ranks.check_same({"data.prepared": corpora, "teacher": taught, "start": begun})
    run = RunFolder(config.run)
    if ranks.first:
        run = RunFolder.create(config, tokenizers, corpora, taught)
        if not run.checkpoints():
            _tell_short(config)
    ranks.wait()
    return Trainer(config, prepared, model, objective, run, device, ranks)


def _tell_short(config: Config) -> None:
    """Of a run that ends while its learning rate still rises."""
    optimizer, updates = config.training.optimizer, config.training.updates
    if config.training.epochs is None and optimizer.warmup > updates:
        LOGGER.warning(
            "training.optimizer.warmup: %s updates, but the run has %s: its learning rate never"
            " comes to training.optimizer.lr",
            *(f"{number:,}" for number in (optimizer.warmup, updates)),
        )


def _begin(
    model: Transformer, objective: Objective, config: StartConfig, prepared: Prepared
) -> list[str]:
    """The model, and what the losses learn if asked for, as one checkpoint has it; its hashes."""
    run, groups = _run_of("start.run", config.run, prepared), [MODEL]
    if config.learned:
        if config.checkpoint == "average":
            raise InputError(
                "start.learned: expected checkpoint best or last; averages hold no losses"
            )
        groups.append(OBJECTIVE)
    read = run.read_groups(config.checkpoint, groups)
    load_weights(model, read[MODEL].tensors, read[MODEL].folder, partly=True)
    if config.learned:
        _take_learned(objective, read[OBJECTIVE])
    return [weights.sha256 for weights in read.values()]


def _take_learned(objective: Objective, theirs: Weights) -> None:
    """What both runs' losses learn begins as it is there."""
    ours = dict(objective.named_parameters())
    shared = {name: tensor for name, tensor in theirs.tensors.items() if name in ours}
    if not shared:
        raise InputError(f"start.learned: {theirs.folder}: its losses learn nothing that these do")
    load_weights(objective, shared, theirs.folder, partly=True)


def _check_lengths(config: Config, prepared: Prepared) -> None:
    """Refuses sentences that have more pieces than the model has positions."""
    limit = config.model.max_positions
    for split, corpus in (("train", prepared.train), ("dev", prepared.dev)):
        longer = np.maximum(corpus.source_lengths, corpus.target_lengths)
        longest = int(longer.argmax())
        if longer[longest] < limit:
            continue
        where = f"line {longest + 1:,} of data.dev = {config.data.dev}"
        if split == "train":
            where = f"the longest pair below data.max_length = {config.data.max_length:,}"
        raise InputError(
            f"model.max_positions = {limit:,}: {where} has {longer[longest] + 1:,} pieces, "
            "end-of-sentence included"
        )


def _teacher(
    config: TeacherConfig, prepared: Prepared
) -> tuple[tuple[Transformer, ModelConfig] | CachedTeacher, str | None]:
    """The teacher's model and its configuration, or its cache; and the hash of either."""
    if (config.run is None) == (config.cache is None):
        raise InputError("teacher: expected either run or cache, and not both")
    if config.cache is not None:
        cache = TeacherCache(config.cache, prepared.train)
        cache.check_vocabulary(prepared.tokenizers.target.size)
        return CachedTeacher(cache, config.rest), cache.sha256
    assert config.run is not None
    run = _run_of("teacher.run", config.run, prepared)
    longest = max(prepared.train.source_lengths.max(), prepared.train.target_lengths.max()) + 1
    limit = run.config.model.max_positions
    if longest > limit:
        raise InputError(
            f"teacher.run: {config.run} has model.max_positions = {limit:,}"
            f"; expected at least {longest:,}, the pieces of the longest training sentence, or"
            " data.max_length no larger than that"
        )
    weights = run.read_weights(config.checkpoint)
    model = run.load_model(config.checkpoint, weights=weights)
    return (model, run.config.model), weights.sha256


def _run_of(key: str, path: str, prepared: Prepared) -> RunFolder:
    """An existing run with the tokenizers of the corpus; `key` names it in a complaint."""
    try:
        run = RunFolder.open(path)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    run.check_corpus(prepared, f"{key}: ")
    return run
