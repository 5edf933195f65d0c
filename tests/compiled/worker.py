"""A process in which kernels are compiled and executed, for tests that run under the interpreter.

`python -m tests.compiled.worker` reads requests and writes answers, one JSON object a line:

    {"case": LABEL, "target": 80, "schedules": [{"seed": 1, ...}, ...]} -> a verdict
    {"call": "MODULE:FUNCTION", "arguments": {...}}                     -> what it returns
"""

import importlib
import json
import os
import re
import sys
import traceback
from typing import IO, Any

from tests.compiled import device
from tests.compiled.executor.launch import Schedule
from tests.compiled.executor.session import Session


class Worker:
    def __init__(self) -> None:
        device.prepare()
        from tests.compiled.check import all_cases

        self.cases = {case.label: case for case in all_cases()}
        self.sessions: dict[int, Session] = {}

    def answer(self, request: dict[str, Any]) -> Any:
        if "call" in request:
            module, _, name = request["call"].partition(":")
            return getattr(importlib.import_module(module), name)(**request["arguments"])
        from tests.compiled.check import check

        target = request["target"]
        session = self.sessions.setdefault(target, Session(target=target))
        schedules = [Schedule(**schedule) for schedule in request["schedules"]]
        return check(self.cases[request["case"]], session, schedules).as_dict()

    def serve(self, requests: IO[str], answers: IO[str]) -> None:
        for line in requests:
            try:
                answer = {"answer": self.answer(json.loads(line))}
            except Exception:
                answer = {"error": traceback.format_exc()}
            answer["mebibytes"] = highest_memory()
            print(json.dumps(answer), file=answers, flush=True)


def highest_memory() -> int:
    """Of this program, in MiB; `getrusage` would count what its parent held when it was begun."""
    with open("/proc/self/status", encoding="ascii") as file:
        found = re.search(r"VmHWM:\s+(\d+) kB", file.read())
    assert found is not None
    return int(found[1]) >> 10


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever is printed is no answer
    Worker().serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
