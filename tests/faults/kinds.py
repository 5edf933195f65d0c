"""Kinds of faults. Each does its harm to one verb and tells what did not hold after it."""

import contextlib
import os
import random
import signal
from pathlib import Path

from tests.faults.hindrances import (
    SURROUNDINGS,
    few_open_files,
    rights_hold,
    small_files,
)
from tests.faults.place import Place
from tests.faults.processes import Ended

DAMAGES = ("flip", "cut", "zero", "empty", "append", "gone", "FIFO", "device", "folder", "swap")
CONFIGURED = ("prepare", "train", "memory")  # verbs that take a config's keys
HOSTILE = (
    "training.updates=1:59:59", "training.seed=-1", "training.batch_tokens=1", "model.heads=3",
    "training.optimizer.lr=.inf", "training.optimizer.betas=[1,2]", "losses=[]", "losses=7",
    "data.train=/dev/zero", "data.dev=", "run=/dev/null", "run=/proc/run", "teacher={run: /}",
    "teacher={cache: /dev}", "start={run: .}", "tokenizer=/", "model.width=1e9", "model=null",
    "training.precision=[float32]", "data.prepared=/dev/null", "training.ema=2", "a.b.c=1",
)  # fmt: skip
KILLS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP,
         signal.SIGXCPU)  # fmt: skip
ENDS = {0, 1, 2, 129, 130, 143, 152, *(-number for number in KILLS if number != signal.SIGINT)}
_TEXTS = (".de", ".dsb", ".qlo", ".qtu", ".yaml")
# What may be otherwise after it was damaged, as it is no secret: a config's other settings, times.
_OPEN = ("config.yaml", "log.jsonl", "prepared.json", "tokenizer_config.json", "in", "table.csv")


class Kinds:
    """Of faults, over the folders of `place`."""

    def __init__(self, place: Place) -> None:
        self.place, self.processes = place, place.processes

    def damaged(self, verb: str, draw: random.Random) -> str:
        """A file is damaged, or something else is in its place."""
        file, kind = draw.choice(self.place.files(verb)), draw.choice(DAMAGES)
        self._damage(file, kind, draw, verb)
        trouble = self._judged(verb, self._run(verb), same=self._same(verb, file))
        return trouble and f"{self._where(file)} {kind}: {trouble}"

    def changed_meanwhile(self, verb: str, draw: random.Random) -> str:
        """So while the verb runs."""
        file, kind = draw.choice(self.place.files(verb)), draw.choice(DAMAGES)
        process = self.processes.begin(self.place.verbs[verb])
        self.processes.wait(process, draw.uniform(0, self.place.seconds[verb]))
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # gone by now
            self._damage(file, kind, draw, verb)
        same = self._same(verb, file)
        trouble = self._judged(verb, self.processes.end(process), same=same)
        return trouble and f"{self._where(file)} {kind} meanwhile: {trouble}"

    def killed(self, verb: str, draw: random.Random) -> str:
        """At a random moment; then the same command does the work."""
        number = draw.choice(KILLS)
        process = self.processes.begin(self.place.verbs[verb])
        self.processes.wait(process, draw.uniform(0, self.place.seconds[verb]))
        os.kill(process, number)
        trouble = self._judged(verb, self.processes.end(process))
        if trouble:
            return f"{number.name}: {trouble}"
        trouble = self._judged(verb, self._run(verb))
        partial = self.place.shop.rglob("*.partial")
        left = [file.name for file in partial if not file.is_dir() or any(file.iterdir())]
        if verb != "prepare" and left and not trouble:
            trouble = f"left {left[0]}"
        return trouble and f"again after {number.name}: {trouble}"

    def paused(self, verb: str, draw: random.Random) -> str:
        """And goes on, now and then, as by Ctrl-Z and `fg`."""
        process = self.processes.begin(self.place.verbs[verb])
        for _ in range(draw.randint(1, 4)):
            if not self.processes.wait(process, draw.uniform(0, self.place.seconds[verb] / 2)):
                break
            os.kill(process, draw.choice((signal.SIGSTOP, signal.SIGTSTP)))
            self.processes.wait(process, draw.uniform(0, 0.05))
            os.kill(process, signal.SIGCONT)
        return self._judged(verb, self.processes.end(process), undone=False)

    def full_disk(self, verb: str, draw: random.Random) -> str:
        """From some size of a file on; then there is room again."""
        largest = int(2 ** draw.uniform(0, 17))
        trouble = self._hindered_once(verb, small_files(largest), silent=largest < 1000)
        return trouble and f"files of up to {largest} bytes: {trouble}"

    def few_files(self, verb: str, draw: random.Random) -> str:
        """May be open at once; then as many as ever."""
        count = draw.randint(4, 24)
        # What the suite's own log is opened by is among them.
        trouble = self._hindered_once(verb, few_open_files(count), silent=count < 5)
        return trouble and f"{count} open files: {trouble}"

    def surrounded(self, verb: str, draw: random.Random) -> str:
        """By what should be otherwise: standard streams, HOME, TMPDIR, umask, the clock."""
        name = draw.choice(list(SURROUNDINGS))
        around = SURROUNDINGS[name]
        ended = self._run(verb, around.hinder)
        trouble = self._judged(verb, ended, silent=not around.said, printed=around.printed)
        return trouble and f"{name}: {trouble}"

    def forbidden(self, verb: str, draw: random.Random) -> str:
        """What is forbidden cannot be read, or cannot be written."""
        places = sorted(p for p in self.place.shop.rglob("*") if not p.is_symlink())
        place, reading = draw.choice([self.place.shop, *places]), draw.random() < 0.5
        before = place.stat().st_mode
        place.chmod(0 if reading else 0o555 if place.is_dir() else 0o444)
        ended = self._run(verb, rights_hold)
        if place.exists():
            place.chmod(before)
        # Without its dev text, its log or its manifest a run may do less, and says so.
        trouble = self._judged(verb, ended, same=False)
        trouble = trouble or self._judged(verb, self._run(verb), same=not reading)
        return (
            trouble
            and f"{self._where(place)} not to be {'read' if reading else 'written'}: " + (trouble)
        )

    def hostile(self, verb: str, draw: random.Random) -> str:
        """A config that means harm."""
        override = draw.choice(HOSTILE)
        ended = self.processes.run([*self.place.verbs[verb], override])
        trouble = self._judged(verb, ended, same=False)
        return trouble and f"{override}: {trouble}"

    def twice(self, verb: str, draw: random.Random) -> str:
        """At once."""
        both = [self.processes.begin(self.place.verbs[verb]) for _ in range(2)]
        ended = [self.processes.end(process) for process in both]
        done = [each for each in ended if each.status == 0]
        for each in ended:
            trouble = self._judged(verb, each, same=False)
            if trouble:
                return trouble
        if not done:
            return f"neither does it: {' '.join(ended[0].said.split())[-200:]}"
        return next(filter(None, (self._judged(verb, each) for each in done)), "")

    def _hindered_once(self, verb: str, hinder, *, silent: bool) -> str:
        """And run again without what hindered it."""
        trouble = self._judged(verb, self._run(verb, hinder), silent=silent)
        if not trouble:
            trouble = self._judged(verb, self._run(verb))
            trouble = trouble and f"again: {trouble}"
        return trouble

    def _run(self, verb: str, hinder=None) -> Ended:
        return self.processes.run(self.place.verbs[verb], hinder)

    def _where(self, path: Path) -> Path:
        return path.relative_to(self.place.shop)

    def _same(self, verb: str, file: Path) -> bool:
        """Whether a verb that is done must have done what it does with the file as it was."""
        reads_texts = verb in (
            "prepare",
            "score",
            "distill",
            "demo",
            "memory",
            "compare",
            "export to ctranslate2",
        )
        return file.name not in _OPEN and not (reads_texts and file.suffix in _TEXTS)

    def _damage(self, file: Path, kind: str, draw: random.Random, verb: str) -> None:
        content = bytearray(file.read_bytes())
        length = len(content)
        if kind == "flip" and length:
            content[draw.randrange(length)] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[draw.randrange(length + 1) :]
        elif kind == "zero":
            start = draw.randrange(length + 1)
            content[start : start + 64] = bytes(len(content[start : start + 64]))
        elif kind == "append":
            content += draw.randbytes(17)
        elif kind == "swap":
            content = bytearray(draw.choice(self.place.files(verb)).read_bytes())
        if file.suffix in _TEXTS and kind in ("flip", "cut", "zero", "append", "empty"):
            file.write_bytes(b"" if kind == "empty" else content)  # as an editor does: in place
            return
        file.unlink()
        if kind == "FIFO":
            os.mkfifo(file)
        elif kind == "device":
            file.symlink_to("/dev/zero")
        elif kind == "folder":
            file.mkdir()
        elif kind != "gone":
            file.write_bytes(b"" if kind == "empty" else content)

    def _judged(
        self,
        verb: str,
        ended: Ended,
        *,
        same: bool = True,
        silent: bool = False,
        undone: bool = True,
        printed: bool = True,
    ) -> str:
        """What did not hold; nothing where all did.

        same: whether what is done must be what it is undisturbed
        silent: whether nothing need be said of a failure
        undone: whether it may fail
        printed: whether what is printed is known
        """
        status, said = ended.status, ended.said
        last = " ".join(said.strip().splitlines()[-1:])[:300]
        if status not in ENDS:
            return f"hangs: {last}" if status is None else f"status {status}: {last}"
        if "Traceback" in ended.printed + said or "FASTKD_TRACEBACK" in said:
            return f"not told in a line: {last}"
        told = "fastkd: " in said or "Error: " in said
        if status in (1, 2) and not told and not silent:
            return f"status {status} without a word"
        if status and not undone:
            return f"status {status}: {last}"
        if status == 0 and same and self.place.result(verb) != self.place.expected[verb]:
            return "status 0, and another result"
        prints = self.place.prints.get(verb, ended.printed)
        if status == 0 and same and printed and ended.printed != prints:
            return f"status 0, and prints {ended.printed!r} in place of {prints!r}"
        return ""
