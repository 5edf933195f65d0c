"""Asks the process that compiles and executes kernels."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.compiled.executor.launch import Schedule

ROOT = Path(__file__).parents[2]
MOST_MEBIBYTES = 2048  # of the process, all cases together


class Machine:
    """A worker; see worker.py."""

    def __init__(self) -> None:
        kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        kept["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.compiled.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=kept,
        )

    def ask(self, **request: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        print(json.dumps(request), file=stdin, flush=True)
        line = stdout.readline()
        if not line:
            pytest.fail(f"the worker ended with status {self._process.wait()}", pytrace=False)
        answer = json.loads(line)
        if "error" in answer:
            pytest.fail(answer["error"], pytrace=False)
        assert answer["mebibytes"] <= MOST_MEBIBYTES
        return answer["answer"]

    def check(self, case: str, schedules: Sequence[Schedule], target: int = 80) -> dict[str, Any]:
        asked = [asdict(schedule) for schedule in schedules]
        verdict: dict[str, Any] = self.ask(case=case, schedules=asked, target=target)
        return verdict

    def call(self, function: str, **arguments: Any) -> Any:
        return self.ask(call=function, arguments=arguments)

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)
