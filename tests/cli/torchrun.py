"""Runs of several processes, over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def start(processes: int, config: str | Path, *overrides: str, code: str = "") -> subprocess.Popen:
    """A run under `torchrun`; each process executes `code` before its command line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    program = ["-m", "fastkd"]
    if code:
        module = Path(config).with_suffix(".py")
        module.write_text(
            f"import sys, fastkd.__main__\n{code}\nsys.exit(fastkd.__main__.main())\n"
        )
        program = [str(module)]
    command = [*launcher, "--master-port", port, *program, "train", str(config), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def train(processes: int, config: str | Path, *overrides: str) -> None:
    run = start(processes, config, *overrides)
    try:
        _, error = run.communicate(timeout=400)
    finally:
        run.kill()
    assert run.returncode == 0, error[-3000:]
