"""A GPU that is not there: kernels are compiled for it as the JIT would, and launches do nothing.

It is for counting: tensors lie on a CPU, and hold what `torch.empty` left where a kernel would
have written. The process that installs it can compute nothing with Triton from then on.
"""

from collections import Counter
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from fastkd_kernels.common import INTERPRETED
from fastkd_kernels.offline import SHARED_MEMORY

_PROCESSORS = 132


def install(capability: int = 90) -> Counter[str]:
    """Takes the place of Triton's driver; what it returns counts launches by kernel."""
    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled")
    if torch.cuda.is_available():
        raise RuntimeError("a GPU is here: its kernels would no longer run in this process")
    launches: Counter[str] = Counter()
    driver.set_active(_Driver(capability, launches))
    return launches


class _Driver:
    """What Triton asks a driver for, from compilation to launch."""

    def __init__(self, capability: int, launches: Counter[str]) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.utils = _Utilities(SHARED_MEMORY[f"sm_{capability}"])
        self.launches = launches

    def launcher_cls(self, source: object, metadata: Any) -> Any:
        name, launches = metadata.name, self.launches

        def launch(*_: object) -> None:
            launches[name] += 1

        return launch

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return "int"


class _Utilities:
    def __init__(self, shared: int) -> None:
        self.shared = shared

    def load_binary(self, *_: object) -> tuple[int, int, int, int, int]:
        """(module, function, registers, spills, most threads)"""
        return 1, 1, 64, 0, 1024

    def unload_module(self, *_: object) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self.shared,
            "multiprocessor_count": _PROCESSORS,
            "warpSize": 32,
            "max_num_regs": 65536,
        }
