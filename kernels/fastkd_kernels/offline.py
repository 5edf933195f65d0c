"""Compiles every kernel in every configuration for chips that are not there.

`python -m fastkd_kernels.offline` prints registers, stack and shared memory of each, and fails if
a configuration spills, uses a stack, or asks for more shared memory than the chip has. A module
of this package takes part by defining `offline_cases()`, which yields its `Case`s.
"""

import argparse
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch  # noqa: F401  (before triton, whose libraries it loads)
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Shared memory that one program may have, in bytes.
SHARED_MEMORY = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
BEGIN, END = "<!-- resources:begin -->", "<!-- resources:end -->"


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration.

    arguments: by name, a type for what is passed at run time ("*bf16", "i32", "fp32"), a value for
        a `tl.constexpr` or for an optional pointer that is None
    representative: whether it belongs to the short list that is compiled in every test run
    """

    kernel: triton.runtime.JITFunction
    label: str
    arguments: Mapping[str, object]
    num_warps: int = 4
    num_stages: int | None = None  # what the compiler takes by itself
    max_registers: int | None = None  # a thread, on CUDA chips
    waves: int | None = None  # the warps on AMD chips, where they are other
    fp_fusion: bool = True
    targets: tuple[str, ...] = tuple(SHARED_MEMORY)
    representative: bool = False

    @property
    def name(self) -> str:
        return f"{self.kernel.__name__} [{self.label}]"


@dataclass(frozen=True)
class Resources:
    registers: int  # a thread
    stack: int  # bytes a thread, spills included
    shared: int  # bytes a program

    def complaint(self, target: str) -> str | None:
        if self.stack:
            return f"{self.stack} bytes of stack"
        if self.shared > SHARED_MEMORY[target]:
            return f"{self.shared} bytes of shared memory"
        return None


def compile_case(case: Case, target: str) -> Resources:
    if target.startswith("sm_"):
        chip = GPUTarget("cuda", int(target[3:]), 32)
    else:
        chip = GPUTarget("hip", target, 64)
    kernel = case.kernel
    constants: dict[str, object] = {}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for index, parameter in enumerate(kernel.params):
        value = case.arguments[parameter.name]
        if parameter.name == "NVIDIA":
            value = chip.backend == "cuda"
        if parameter.is_constexpr or not isinstance(value, str):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            attributes[(index,)] = []  # as the JIT has it, whose compilations are found again
            continue
        signature[parameter.name] = value
        if value.startswith("*"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    unknown = case.arguments.keys() - signature.keys()
    if unknown:
        raise ValueError(f"{case.name} has no argument {', '.join(sorted(unknown))}")
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    options: dict[str, int | bool] = {
        "num_warps": case.num_warps,
        "enable_fp_fusion": case.fp_fusion,
    }
    if case.num_stages is not None:
        options["num_stages"] = case.num_stages
    if chip.backend == "hip":
        options["num_warps"] = case.waves or case.num_warps
    elif case.max_registers:
        options["maxnreg"] = case.max_registers
    compiled = triton.compile(source, target=chip, options=options)
    if target.startswith("sm_"):
        return cuda_resources(compiled)
    return _hip_resources(compiled)


def cuda_resources(compiled) -> Resources:
    """Of a kernel that `triton.compile` returned."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", text)}
    stack = found["STACK"] + found["LOCAL"]
    return Resources(found["REG"], stack, max(found["SHARED"], compiled.metadata.shared))


def _hip_resources(compiled) -> Resources:
    text = compiled.asm["amdgcn"]

    def read(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", text)
        if found is None:
            raise ValueError(f"the assembly of a compiled kernel does not give its {name}")
        return int(found.group(1))

    stack = read("private_segment_fixed_size") + 4 * read("vgpr_spill_count")
    return Resources(read("vgpr_count"), stack, compiled.metadata.shared)


def all_cases(prefix: str = "") -> Iterator[Case]:
    """The cases of this package's modules whose name within it starts with `prefix`."""
    import fastkd_kernels

    root = "fastkd_kernels."
    for module in pkgutil.walk_packages(fastkd_kernels.__path__, root):
        if module.name.startswith(root + prefix) and module.name != f"{root}offline":
            loaded = importlib.import_module(module.name)
            if hasattr(loaded, "offline_cases"):
                yield from loaded.offline_cases()


def table(rows: Mapping[str, Mapping[str, Resources]], targets: Iterable[str]) -> str:
    targets = list(targets)
    lines = [
        f"Triton {triton.__version__}; registers a thread / KiB of shared memory a program.",
        "",
        "| kernel [configuration] | " + " | ".join(targets) + " |",
        "|---|" + "---|" * len(targets),
    ]
    for name, found in rows.items():
        cells = [
            f"{found[target].registers} / {found[target].shared / 1024:.0f}"
            if found.get(target)
            else ""
            for target in targets
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastkd_kernels.offline", description=__doc__)
    parser.add_argument("--targets", default=",".join(SHARED_MEMORY))
    parser.add_argument("--modules", default="", help="prefix of the modules to compile")
    parser.add_argument("--representative", action="store_true", help="only the short list")
    parser.add_argument("--match", default="", help="only kernels whose name holds this")
    parser.add_argument("--write", type=Path, help="file whose table is replaced")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled")

    targets = options.targets.split(",")
    rows: dict[str, dict[str, Resources]] = {}
    complaints = []
    cases = [
        case
        for case in all_cases(options.modules)
        if options.match in case.name and (case.representative or not options.representative)
    ]
    for number, case in enumerate(cases, 1):
        if sys.stderr.isatty():
            print(f"\r{number} of {len(cases)} kernels", end="", file=sys.stderr, flush=True)
        found = rows.setdefault(case.name, {})
        for target in targets:
            if target not in case.targets:
                continue
            found[target] = compile_case(case, target)
            complaint = found[target].complaint(target)
            if complaint:
                complaints.append(f"{case.name} on {target}: {complaint}")
                print(complaints[-1], file=sys.stderr, flush=True)
    text = table(rows, targets)
    if options.write:
        before, rest = options.write.read_text().split(BEGIN)
        after = rest.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n{text}{END}{after}")
    else:
        print(text)
    compiled = sum(len(found) for found in rows.values())
    print(f"Triton {triton.__version__}: {compiled} compiled, {len(complaints)} over the limits")
    return 1 if complaints or not compiled else 0


if __name__ == "__main__":
    sys.exit(main())
