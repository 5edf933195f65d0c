"""Builds the machine with g++, unit by unit, each when it is first needed."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from tests.compiled.executor import alu

HERE = Path(__file__).parent
COMPILER = "g++"
# Digits are PTX's own: nothing fused, integers that wrap.
DIGITS = ("-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-fno-math-errno")
FLAGS = ("-std=c++17", "-O2", "-ftree-vectorize", "-march=native", "-w", *DIGITS)
SHARED = ("-shared", "-fPIC")
FOLDER = Path(__file__).parents[3] / ".pytest_cache" / "compiled"
KEPT = 40  # libraries in the folder; older ones go

Table = ctypes.c_void_p * len(alu.FUNCTION)


def available() -> bool:
    return shutil.which(COMPILER) is not None


def built(name: str, text: str) -> Path:
    """The library compiled from `text`, which may include the headers that lie here."""
    headers = "".join(path.read_text() for path in sorted(HERE.glob("*.h")))
    key = "\n".join([text, headers, *FLAGS, platform.node(), platform.machine()])
    library = FOLDER / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    FOLDER.mkdir(parents=True, exist_ok=True)
    part = library.with_suffix(f".{os.getpid()}.part")
    command = [COMPILER, *FLAGS, *SHARED, f"-I{HERE}", "-x", "c++", "-", "-o", str(part)]
    done = subprocess.run(command, input=text, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{COMPILER} cannot build {name}:\n{done.stderr[:2000]}")
    part.replace(library)
    for old in sorted(FOLDER.glob("*.so"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    return library


class Library:
    """The machine, and the table of lane-by-lane instructions with the units loaded so far."""

    def __init__(self) -> None:
        self.machine = ctypes.CDLL(str(built("machine", (HERE / "machine.cpp").read_text())))
        self.shadow_bytes: int = self.machine.shadow_bytes()
        self.table = Table()
        self.perturb = ctypes.c_int(0)
        self._units: dict[str, ctypes.CDLL] = {}

    def need(self, opcodes: set[int]) -> None:
        for unit in sorted({alu.UNIT[code] for code in opcodes if code in alu.UNIT}):
            if unit not in self._units:
                loaded = ctypes.CDLL(str(built(unit, alu.source(unit))))
                loaded.fill(self.table, ctypes.byref(self.perturb))
                self._units[unit] = loaded


@cache
def library() -> Library:
    return Library()
