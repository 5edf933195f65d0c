"""Trains and scores one run of a table; goes on where it was stopped."""

import os
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch

from benchmarks.translation.agreement import of_run
from benchmarks.translation.plan import Trial
from benchmarks.translation.splits import Scored
from fastkd.bench.record import this_machine
from fastkd.config.load import load_config
from fastkd.data.prepare import open_prepared
from fastkd.decode.score import score
from fastkd.runs.checkpoint import read_meta
from fastkd.runs.device import pick_device
from fastkd.runs.folder import RunFolder
from fastkd.runs.translation import open_translator, split_text


def prepare(trial: Trial) -> None:
    """The corpus of a recipe, once, with what the plan sets."""
    if not Path(load_config(trial.recipe, trial.plan.set).data.prepared).exists():
        fastkd("prepare", trial.recipe, *trial.plan.set)


def train(trial: Trial, updates: int | None = None, until: float | None = None) -> None:
    """Trains a run, or the next piece of it, up to so many updates.

    until: `time.monotonic()` at which it is stopped, to go on another time

    Raises CalledProcessError where the run fails, and Unfinished where it was stopped.
    """
    overrides = trial.overrides(load_config(trial.recipe).teacher is not None)
    if updates is not None:
        overrides.append(f"training.updates={updates}")
    if trial.row.distilled:
        distil_corpus(trial, overrides)
    if trial.row.cached and not trial.cache.exists():
        options = "--top-k", str(trial.row.cached), "--output", str(trial.cache)
        fastkd("cache-teacher", str(trial.plan.teacher.folder), "train", *options)
    fastkd("train", trial.recipe, *overrides, until=until)


def distil_corpus(trial: Trial, overrides: list[str]) -> None:
    """The teacher's translations of the training text, prepared with the teacher's tokenizer."""
    data, folder = load_config(trial.recipe).data, trial.distilled_corpus
    if (folder / "prepared").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    source = next(Path().glob(f"{data.train}.{data.source}*"))
    link = folder / source.name
    if not link.exists():
        link.symlink_to(source.resolve())
    target = folder / f"{Path(data.train).name}.{data.target}"
    if not target.exists():
        teacher = str(trial.plan.teacher.folder)
        fastkd("translate", teacher, "--input", str(link), "--output", str(target))
    fastkd("prepare", trial.recipe, *overrides)


class Unfinished(Exception):
    """The time given is spent; what was trained is saved."""


def fastkd(*arguments: str, until: float | None = None) -> None:
    command = [sys.executable, "-m", "fastkd", *arguments]
    if until is None:
        subprocess.run(command, check=True)
        return
    with subprocess.Popen(command) as process:
        try:
            status = process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.send_signal(SIGTERM)  # it saves what it has
            process.wait()
            raise Unfinished from None
    if status:
        raise subprocess.CalledProcessError(status, command)


def result(trial: Trial, on: Scored, most: int | None = None) -> dict[str, Any]:
    """One line of the table; leaves the translations beside the run's checkpoints.

    most: scores no more than the first lines
    """
    run = RunFolder.open(trial.folder)
    begin = time.perf_counter()
    sources, references = (on.of(lines)[:most] for lines in split_text(run, on.corpus))
    search: dict[str, Any] = {} if on.passes is None else {"passes": on.passes}
    translator = open_translator(run, trial.checkpoint, **search)
    hypotheses = [best.text for best, *_ in translator.translate(sources, lambda count: None)]
    seconds = time.perf_counter() - begin
    write_lines(trial.folder / f"{on}.hypotheses", hypotheses)
    write_lines(trial.folder / f"{on}.references", references)
    scores = score(hypotheses, references)
    model = run.load_model()
    machine = this_machine(pick_device("auto"))
    last = run.checkpoints()[-1]
    return {
        "corpus": trial.plan.corpus,
        "method": trial.name,
        "options": " ".join(trial.row.set),
        "seed": trial.seed,
        "encoder_layers": run.config.model.encoder_layers,
        "decoder_layers": run.config.model.decoder_layers,
        "width": run.config.model.width,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "updates": int(last.name),
        "split": str(on),
        "bleu": round(scores.bleu, 3),
        "chrf": round(scores.chrf, 3),
        "training_seconds": round(read_meta(last)["seconds"]),
        "sentences_per_second": round(len(hypotheses) / seconds, 1),
        "device": machine.device,
        "threads": torch.get_num_threads(),
        "commit": machine.commit,
        "date": machine.date,
        "bleu_signature": scores.bleu_signature,
        "chrf_signature": scores.chrf_signature,
        "agreement": _agreement(trial, run) if on == Scored("dev") else "",
    }


def _agreement(trial: Trial, run: RunFolder) -> str:
    """Percent of dev's positions where student and teacher have the same likeliest piece."""
    if run.config.teacher is None:
        return ""
    found = of_run(run, trial.checkpoint, open_prepared(run.config))
    return "" if found is None else f"{found:.2f}"


def write_lines(file: Path, lines: list[str]) -> None:
    temporary = file.with_name(f".{file.name}")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(temporary, file)


def has_translations(trial: Trial, split: str) -> bool:
    return (trial.folder / f"{split}.hypotheses").exists()


def read_translations(trial: Trial, split: str) -> tuple[list[str], list[str]]:
    """What `result` left: translations and references."""
    names = (f"{split}.hypotheses", f"{split}.references")
    hypotheses, references = (
        (trial.folder / name).read_text(encoding="utf-8").split("\n")[:-1] for name in names
    )
    return hypotheses, references
