"""The small folders that faults happen to: a corpus, runs, caches, a demo, and verbs over them."""

import contextlib
import csv
import functools
import hashlib
import io
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import fastkd.bench.plots
import fastkd.compare.page
import fastkd.decode.score
import fastkd.demo.nar
import fastkd.demo.run
import fastkd.export.ctranslate2
import fastkd.export.marian
import fastkd.memory.pair.command
import fastkd.memory.step.plots
import fastkd.runs.caching
import fastkd.runs.sequences
import fastkd.runs.translation
import fastkd.train.start
from fastkd.bench.rates import measured_rates
from fastkd.config.load import load_config
from fastkd.config.tree import Config
from tests.cli.conftest import Workshop
from tests.faults.processes import Processes

SETTINGS = {"updates": 3, "save_every": 1, "validate_every": 2, "bleu_sentences": 2, "log_every": 1}
# What makes the demo's recipes small enough to be trained in a second.
_SMALL = (
    "training.updates=2", "training.validate_every=2", "training.bleu_sentences=2",
    "model.width=16", "model.ffn=16", "model.encoder_layers=1", "model.decoder_layers=1",
    "tokenizer.vocabulary=80", "training.device=cpu",
)  # fmt: skip
# Verbs whose output is compared with that of an undisturbed call: it tells no times.
_PRINTING = ("score", "memory", "runs", "compare", "heads", "recipes")
_OWN = {"demo": "demo", "heads": "aligned"}  # folders that no other verb looks into
_IN_META = (".lock", "run.json", "meta.json")


class Place:
    """Folders below `folder/shop`, which are as they were after `reset`."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.folder, self.shop = folder, folder / "shop"
        self.processes = Processes(folder)
        _shrink_the_demo()
        measured_rates(torch.device("cpu"), torch.float32)  # kept, for all processes
        workshop = Workshop(self.shop)
        self.config = workshop.config("run", training=SETTINGS)
        (self.shop / "in").write_text("ein hund sieht\nkatze\n", encoding="utf-8")
        run, exported = str(self.shop / "run"), str(self.shop / "exported")
        for command in (
            ["prepare", self.config],
            ["train", self.config],
            self.verbs["cache-teacher"],
            ["export", run, "--to", "transformers", exported],
            [
                "train",
                self.config,
                f"run={self.shop / 'aligned'}",
                f"teacher={{run: {run}}}",
                "losses=[{name: cross_entropy},{name: a2d}]",
                "training.updates=2",
                "training.validate_every=1",
            ],
        ):
            self._expect_done(command)
        shutil.copytree(self.shop, folder / "kept")
        self.expected: dict[str, str] = {}
        self.prints: dict[str, str] = {}
        self.seconds: dict[str, float] = {}  # that a verb takes

    def begin(self, verb: str) -> None:
        """Folders as they were; what an undisturbed verb makes of them is known after that."""
        self.reset()
        if verb in self.expected:
            return
        if verb == "demo":
            self._expect_done(self.verbs["demo"])
            for name in ("a2d", "tie_kd"):
                shutil.rmtree(self.shop / "demo" / name)  # the demo goes on from there
            shutil.copytree(self.shop / "demo", self.folder / "kept" / "demo")
        start = time.monotonic()
        printed = self._expect_done(self.verbs[verb])
        self.seconds[verb] = time.monotonic() - start
        if verb in _PRINTING:
            self.prints[verb] = printed
        self.expected[verb] = self.result(verb)
        self.reset()

    @functools.cached_property
    def verbs(self) -> dict[str, list[str]]:
        """A command line of each; `export` once a layout, `train` with and without a teacher."""
        run, out = str(self.shop / "run"), self.shop / "out"
        cached = f"teacher={{cache: {self.shop / 'cache'}}}"
        losses = "losses=[{name: cross_entropy},{name: word_kd}]"
        return {
            "prepare": ["prepare", self.config, f"data.prepared={out}"],
            "train": ["train", self.config, "training.updates=6"],
            "train a student": ["train", self.config, f"run={out}", cached, losses],
            "translate": ["translate", run, "-i", str(self.shop / "in"), "-o", str(out)],
            "score": ["score", run, "test", "-o", str(out)],
            "average": ["average", run],
            "cache-teacher": ["cache-teacher", run, "train", "--top-k", "4", "-o",
                              str(self.shop / "cache")],
            "distill": ["distill", run, str(out / "text")],
            "export to transformers": ["export", run, "--to", "transformers", str(out)],
            "export to ctranslate2": ["export", run, "--to", "ctranslate2", str(out)],
            "import": ["import", str(self.shop / "exported"), str(out)],
            "bench": ["bench", "--op", "alignment-map", "--shapes", "B=1,T=8", "--device", "cpu",
                      "--against", "reference,torch", "--seconds", "0", "--no-memory",
                      "--out", str(out)],
            "memory": ["memory", self.config, "--predict", "8GiB", "--no-largest", "--plot",
                       str(self.shop / "out.png")],
            "demo": ["demo", "--out", str(self.shop / "demo")],
            "runs": ["runs", run],
            "compare": ["compare", run, "--samples", "1", "-o", str(self.shop / "out.html")],
            "heads": ["heads", str(self.shop / "aligned"), "-o", str(self.shop / "out.png")],
            "recipes": ["recipes"],
        }  # fmt: skip

    def reset(self) -> None:
        shutil.rmtree(self.shop, ignore_errors=True)
        shutil.copytree(self.folder / "kept", self.shop)

    def result(self, verb: str) -> str:
        """A hash of what a verb leaves, without times."""
        out = self.shop / "out"
        if verb == "bench":
            return _hashed([_untimed(out / "cpu.csv").encode(), *_names(out, "*.png")])
        if verb == "demo":
            runs = sorted((self.shop / "demo").glob("*/checkpoints"))
            files = [file for run in runs for file in _newest(run)]
            return _hashed([*_names(self.shop / "demo", "*.*"), *_content(files)])
        if verb in ("train", "train a student"):
            run = self.shop / ("run" if verb == "train" else "out")
            update = SETTINGS["updates"] * (2 if verb == "train" else 1)
            return _hashed(_content((run / "checkpoints" / f"{update:08d}").glob("*.safetensors")))
        if verb in ("average", "cache-teacher"):
            out = self.shop / ("run/average" if verb == "average" else "cache")
        elif verb in ("compare", "memory", "heads"):
            out = self.shop / ("out.html" if verb == "compare" else "out.png")
        files = [file for file in (out.rglob("*") if out.is_dir() else [out]) if file.is_file()]
        return _hashed(_content(files))

    def files(self, verb: str) -> list[Path]:
        """That a verb may read, and others beside them."""
        own = _OWN.get(verb, "")
        others = [self.shop / name for key, name in _OWN.items() if key != verb]
        return sorted(
            file
            for file in (self.shop / own).rglob("*")
            if file.is_file()
            and file.name != ".lock"
            and not any(other in file.parents for other in others)
        )

    def _expect_done(self, command: list[str]) -> str:
        """What it prints."""
        status, printed, said = self.processes.run(command)
        if status:
            raise SystemExit(f"{command} ends with {status} undisturbed: {said}")
        return printed


def _shrink_the_demo() -> None:
    """Its texts, models and updates, in this process and those that it forks."""
    texts = functools.partial(fastkd.demo.run.write_corpus, pairs=120, dev=6, test=6)

    def load(name: str, overrides: Sequence[str] = ()) -> Config:
        return load_config(name, [*_SMALL, *overrides])

    fastkd.demo.run.write_corpus = texts
    fastkd.demo.run.load_config = load


def _newest(checkpoints: Path) -> list[Path]:
    folders = sorted(checkpoints.iterdir())
    return sorted(folders[-1].glob("*.safetensors")) if folders else []


def _names(folder: Path, pattern: str) -> list[bytes]:
    return sorted(file.name.encode() for file in folder.glob(pattern) if file.is_file())


def _content(files) -> list[bytes]:
    kept = sorted(file for file in files if file.is_file() and file.name not in _IN_META)
    return [file.name.encode() + file.read_bytes() for file in kept]


def _untimed(file: Path) -> str:
    """Who took part in a benchmark, and with what outcome, once however often it was run."""
    with contextlib.suppress(OSError):
        lines = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline=""))
        keys = ("operation", "shape", "dtype", "provider", "direction", "status")
        return "\n".join(sorted({",".join(str(line.get(key)) for key in keys) for line in lines}))
    return ""


def _hashed(content: list[bytes]) -> str:
    return hashlib.sha256(b"\0".join(content)).hexdigest()
