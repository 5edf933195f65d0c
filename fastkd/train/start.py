"""From a configuration to a trainer: corpus, models, teacher, objective, run folder."""

import torch

from fastkd.config.tree import Config
from fastkd.data.prepare import open_prepared
from fastkd.data.tokenizer import Tokenizers
from fastkd.errors import InputError
from fastkd.methods.objective import Objective
from fastkd.nn.build import build_model
from fastkd.runs.folder import RunFolder
from fastkd.train.trainer import Trainer


def start(config: Config) -> Trainer:
    """A trainer at the place where the run stands: its beginning, or its newest checkpoint."""
    prepared = open_prepared(config)
    tokenizers = prepared.tokenizers
    teacher = None
    if config.teacher is not None:
        run = RunFolder.open(config.teacher.run)
        _same_tokenizer(run, tokenizers, config)
        teacher = run.load_model(config.teacher.checkpoint), run.config.model
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, tokenizers)
    objective = Objective(config, tokenizers.target.pad_id, teacher)
    return Trainer(config, prepared, model, objective, RunFolder.create(config, tokenizers))


def _same_tokenizer(teacher: RunFolder, tokenizers: Tokenizers, config: Config) -> None:
    if teacher.tokenizers.sha256 != tokenizers.sha256:
        raise InputError(
            f"teacher.run: {teacher.path} has another tokenizer than {config.data.prepared};"
            f" prepare the corpus with tokenizer: {teacher.path}"
        )
