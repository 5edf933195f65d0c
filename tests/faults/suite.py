"""Faults drawn at random, and what must hold after each.

    python -m tests.faults.suite [--minutes 60] [--seed 1]

A case is a verb in a process of its own, over a copy of a small run, its corpus and its teacher's
cache, and one fault: a file damaged or replaced, a kill at a random moment, a disk that fills, a
config that means harm, a file or folder without rights, or the same verb twice at once. It must
end in time, by a status of its own, with one line where it fails and no traceback. What ends with 0
is what it is without the fault; after a kill the same command does the work, and leaves nothing
temporary. The table of what was tried is printed, with the seed and number of each case that
failed.
"""

import argparse
import collections
import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

import fastkd.compare.page
import fastkd.decode.score
import fastkd.export.marian
import fastkd.runs.caching
import fastkd.runs.sequences
import fastkd.runs.translation
import fastkd.train.start  # noqa: F401 - imported once, for all processes
from fastkd.__main__ import main as fastkd_main
from tests.cli.conftest import Workshop
from tests.faults.rights import obey_rights

PATIENCE = 300  # seconds; a case takes about one where the machine is idle
DAMAGES = ("flip", "cut", "zero", "empty", "append", "gone", "FIFO", "device", "folder", "swap")
HOSTILE = (
    "training.updates=1:59:59", "training.seed=-1", "training.batch_tokens=1", "model.heads=3",
    "training.optimizer.lr=.inf", "training.optimizer.betas=[1,2]", "losses=[]", "losses=7",
    "data.train=/dev/zero", "data.dev=", "run=/dev/null", "run=/proc/run", "teacher={run: /}",
    "teacher={cache: /dev}", "start={run: .}", "tokenizer=/", "model.width=1e9", "model=null",
    "training.precision=[float32]", "data.prepared=/dev/null", "training.ema=2", "a.b.c=1",
)  # fmt: skip
SETTINGS = {"updates": 3, "save_every": 1, "validate_every": 2, "bleu_sentences": 2, "log_every": 1}
ENDS = {0, 1, 2, 130, 143, -signal.SIGTERM, -signal.SIGKILL}


@dataclass
class Tried:
    """Cases by verb and fault, and those in which something did not hold."""

    seed: int
    cases: collections.Counter = field(default_factory=collections.Counter)
    found: collections.Counter = field(default_factory=collections.Counter)
    findings: list[str] = field(default_factory=list)

    def add(self, number: int, verb: str, fault: str, trouble: str) -> None:
        self.cases[verb, fault] += 1
        if trouble:
            self.found[verb, fault] += 1
            finding = f"seed {self.seed} case {number}: {verb}, {fault}: {trouble}"
            self.findings.append(finding)
            print(finding, file=sys.stderr, flush=True)

    def table(self) -> str:
        lines = ["| verb | fault | cases | findings |", "| --- | --- | ---: | ---: |"]
        lines += [f"| {v} | {f} | {n} | {self.found[v, f]} |"
                  for (v, f), n in sorted(self.cases.items())]  # fmt: skip
        total = f"{sum(self.cases.values())} cases, seed {self.seed}"
        return "\n".join([*lines, "", f"{total}; findings: {len(self.findings)}", *self.findings])


class Suite:
    """The undisturbed folders, their results, and cases over copies of them."""

    def __init__(self, folder: Path, seed: int):
        torch.set_num_threads(1)
        self.folder, self.tried = folder, Tried(seed)
        self.shop = Workshop(folder / "shop")
        self.config = self.shop.config("run", training=SETTINGS)
        self.shop.run("prepare", self.config)
        self.shop.run("train", self.config)
        (folder / "shop" / "in").write_text("ein hund sieht\nkatze\n", encoding="utf-8")
        self.status(self.verbs()["cache-teacher"])
        run, exported = str(self.place / "run"), str(self.place / "exported")
        self.status(["export", run, "--to", "transformers", exported])
        self.expected = {}
        for verb, command in self.verbs().items():
            self.reset()
            status, said = self.status(command)
            if status:
                raise SystemExit(f"{verb} ends with {status} undisturbed: {said}")
            self.expected[verb] = self.result(verb)

    @property
    def place(self) -> Path:
        """Where the cases happen; the undisturbed folders are moved there, and kept in `kept`."""
        return self.folder / "shop"

    def verbs(self) -> dict[str, list[str]]:
        run, out = str(self.place / "run"), self.place / "out"
        cached = f"teacher={{cache: {self.place / 'cache'}}}"
        losses = "losses=[{name: cross_entropy},{name: word_kd}]"
        return {
            "cache-teacher": ["cache-teacher", run, "train", "--top-k", "4", "-o",
                              str(self.place / "cache")],
            "prepare": ["prepare", self.config, f"data.prepared={out}"],
            "train": ["train", self.config, "training.updates=6"],
            "student": ["train", self.config, f"run={out}", cached, losses],
            "translate": ["translate", run, "-i", str(self.place / "in"), "-o", str(out)],
            "score": ["score", run, "test", "-o", str(out)],
            "average": ["average", run],
            "export": ["export", run, "--to", "transformers", str(out)],
            "import": ["import", str(self.place / "exported"), str(out)],
            "distill": ["distill", run, str(out / "text")],
            "runs": ["runs", run],
            "compare": ["compare", run, "--samples", "1", "-o", str(self.place / "out.html")],
        }  # fmt: skip

    def reset(self) -> None:
        kept = self.folder / "kept"
        if not kept.exists():
            shutil.copytree(self.place, kept)
        shutil.rmtree(self.place)
        shutil.copytree(kept, self.place)

    def result(self, verb: str) -> str:
        """A hash of what a verb leaves, without times."""
        if verb in ("train", "student"):
            run = self.place / ("run" if verb == "train" else "out")
            update = SETTINGS["updates"] * (2 if verb == "train" else 1)
            files = sorted((run / "checkpoints" / f"{update:08d}").glob("*.safetensors"))
        elif verb in ("average", "cache-teacher"):
            folder = self.place / ("run/average" if verb == "average" else "cache")
            files = [f for f in sorted(folder.rglob("*")) if f.name != "meta.json"]
        else:
            out = self.place / ("out.html" if verb == "compare" else "out")
            files = sorted(f for f in (out.rglob("*") if out.is_dir() else [out]) if f.is_file())
        files = [f for f in files if f.name not in (".lock", "run.json", "meta.json")]
        content = [f.name.encode() + f.read_bytes() for f in files if f.is_file()]
        if verb in ("compare", "runs"):  # a page, which tells times
            content = [b"written" for _ in files]
        return hashlib.sha256(b"\0".join(content)).hexdigest()

    def begin(self, command: list[str], largest: int | None = None, obedient: bool = False) -> int:
        """A process that runs a verb; its output goes to `said` beside the folders.

        largest: bytes that a file may have; obedient: whether rights hold for root too
        """
        process = os.fork()
        if process:
            return process
        status = 99
        try:
            os.setsid()
            out = os.open(self.folder / f"said.{os.getpid()}", os.O_WRONLY | os.O_CREAT)
            for stream in (1, 2):
                os.dup2(out, stream)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if largest is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            if obedient:
                obey_rights()
            status = fastkd_main(command)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def end(self, process: int, patience: float = PATIENCE) -> tuple[int | None, str]:
        """Its status, None where it hangs and is killed, and what it said."""
        until, status = time.monotonic() + patience, None
        while time.monotonic() < until and status is None:
            done, code = os.waitpid(process, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if done else None
            time.sleep(0.005)
        if status is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        said = self.folder / f"said.{process}"
        text = said.read_text(errors="replace") if said.exists() else ""
        said.unlink(missing_ok=True)
        return status, text

    def status(self, command: list[str], **options: int) -> tuple[int | None, str]:
        return self.end(self.begin(command, **options))

    def case(self, number: int) -> None:
        draw = random.Random(f"{self.tried.seed} {number}")
        self.reset()
        verb = draw.choice(list(self.verbs()))
        fault = draw.choice(
            (self.damaged, self.killed, self.full, self.hostile, self.forbidden, self.twice)
        )
        trouble = fault(verb, self.verbs()[verb], draw)
        self.tried.add(number, verb, fault.__name__, trouble)

    def judged(
        self, verb: str, status: int | None, said: str, same: bool = True, silent: bool = False
    ) -> str:
        """What did not hold; nothing where all did."""
        last = " ".join(said.strip().splitlines()[-1:])[:300]
        if status not in ENDS:
            return f"hangs: {last}" if status is None else f"status {status}: {last}"
        if "Traceback" in said or "FASTKD_TRACEBACK" in said:
            return f"not told in a line: {last}"
        told = "fastkd: " in said or "Error: " in said
        if status in (1, 2) and not told and not silent:
            return f"status {status} without a word"
        if status == 0 and same and self.result(verb) != self.expected[verb]:
            return "status 0, and another result"
        return ""

    def damaged(self, verb: str, command: list[str], draw: random.Random) -> str:
        files = sorted(f for f in self.place.rglob("*") if f.is_file() and f.suffix != ".yaml")
        texts = (".de", ".dsb")
        files = [f for f in files if f.suffix not in texts and f.name not in ("in", ".lock")]
        files += [self.place / "run" / "config.yaml"]
        file, kind = draw.choice(files), draw.choice(DAMAGES)
        content = bytearray(file.read_bytes())
        if kind == "flip":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[draw.randrange(len(content)) :]
        elif kind == "zero":
            start = draw.randrange(len(content))
            content[start : start + 64] = bytes(len(content[start : start + 64]))
        elif kind == "append":
            content += draw.randbytes(17)
        elif kind == "swap":
            content = bytearray(draw.choice(files).read_bytes())
        file.unlink()
        if kind == "FIFO":
            os.mkfifo(file)
        elif kind == "device":
            file.symlink_to("/dev/zero")
        elif kind == "folder":
            file.mkdir()
        elif kind != "gone":
            file.write_bytes(b"" if kind == "empty" else content)
        # Other settings of training may be what a changed config says, and are no secret.
        same = file.name not in ("config.yaml", "log.jsonl", "prepared.json")
        where = file.relative_to(self.place)
        trouble = self.judged(verb, *self.status(command), same=same)
        return trouble and f"{where} {kind}: {trouble}"

    def killed(self, verb: str, command: list[str], draw: random.Random) -> str:
        number = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        process = self.begin(command)
        status, said = self.end_after(process, draw.uniform(0, 1.5), number)
        trouble = self.judged(verb, status, said)
        if trouble:
            return f"{number.name}: {trouble}"
        trouble = self.judged(verb, *self.status(command))
        left = [f.name for f in self.place.rglob("*.partial") if not f.is_dir() or any(f.iterdir())]
        if verb != "prepare" and left and not trouble:
            trouble = f"left {left[0]}"
        return trouble and f"again after {number.name}: {trouble}"

    def end_after(self, process: int, seconds: float, number: int) -> tuple[int | None, str]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        os.kill(process, number)
        return self.end(process)

    def full(self, verb: str, command: list[str], draw: random.Random) -> str:
        largest = int(2 ** draw.uniform(0, 17))
        trouble = self.judged(verb, *self.status(command, largest=largest), silent=largest < 1000)
        if not trouble:
            trouble = self.judged(verb, *self.status(command))
            trouble = trouble and f"again: {trouble}"
        return trouble and f"files of up to {largest} bytes: {trouble}"

    def forbidden(self, verb: str, command: list[str], draw: random.Random) -> str:
        """What is forbidden cannot be read, or cannot be written."""
        places = sorted(p for p in self.place.rglob("*") if not p.is_symlink())
        place, reading = draw.choice([self.place, *places]), draw.random() < 0.5
        before = place.stat().st_mode
        place.chmod(0 if reading else 0o555 if place.is_dir() else 0o444)
        status, said = self.status(command, obedient=True)
        if place.exists():
            place.chmod(before)
        # Without its dev text, its log or its manifest a run may do less, and says so.
        trouble = self.judged(verb, status, said, same=False)
        trouble = trouble or self.judged(verb, *self.status(command), same=not reading)
        where = place.relative_to(self.place)
        return trouble and f"{where} not to be {'read' if reading else 'written'}: {trouble}"

    def hostile(self, verb: str, command: list[str], draw: random.Random) -> str:
        verb, override = draw.choice(("prepare", "train")), draw.choice(HOSTILE)
        status, said = self.status([*self.verbs()[verb], override])
        trouble = self.judged(verb, status, said, same=False)
        return trouble and f"{override}: {trouble}"

    def twice(self, verb: str, command: list[str], draw: random.Random) -> str:
        both = [self.begin(command), self.begin(command)]
        ended = [self.end(process) for process in both]
        for status, said in ended:
            trouble = self.judged(verb, status, said, same=False)
            if trouble:
                return trouble
        if all(status for status, _ in ended):
            return f"neither does it: {' '.join(ended[0][1].split())[-200:]}"
        return self.judged(verb, 0, "")


def run(folder: Path, seconds: float, seed: int) -> Tried:
    """As many cases as there is time for, at least one."""
    until, number = time.monotonic() + seconds, 0
    suite = Suite(folder, seed)
    while number == 0 or time.monotonic() < until:
        suite.case(number)
        number += 1
    return suite.tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shop").mkdir()
        tried = run(Path(folder), arguments.minutes * 60, arguments.seed)
    print(tried.table())
    sys.exit(bool(tried.findings))


if __name__ == "__main__":
    main()
