"""python -m benchmarks.models: which classes of Transformers the integrations serve.

Each class is built small, and the loss of `Distillation` (cross-entropy, without a teacher) is
compared with the model's own. Goes on where it was ended.
"""

import argparse
import csv
import io
import multiprocessing
import resource
import warnings
from collections import Counter
from pathlib import Path
from signal import SIGKILL, SIGXCPU
from typing import Any

import transformers

from benchmarks.models.pictures import PIXELS
from benchmarks.models.table import TEXT, table
from benchmarks.models.tiny import NEEDS, TooLarge, build, classes, inputs_of
from fastkd.errors import InputError
from fastkd.files import write_file
from fastkd.integrations.distillation import Distillation
from fastkd.losses import CrossEntropy

FIELDS = ("transformers", "task", "class", "outcome", "own", "ours", "line")
SECONDS = 40  # of a processor, for a class
MORE = 1  # settings that are tried for the sake of images, where text alone has a loss
CLOSE = 1e-4  # relative; both are sums of float32 in another order


def judged(task: str, name: str) -> dict[str, Any]:
    """equal, refused (with the line), different, broken; or not built, or no loss of its own."""
    row: dict[str, Any] = dict.fromkeys(FIELDS, "")
    row |= {"transformers": transformers.__version__, "task": task, "class": name}
    failed: dict[str, Any] = {}
    texts: list[tuple[Any, dict[str, Any], float]] = []
    for need in NEEDS:
        if len(texts) > MORE:
            break
        try:
            model = build(name, **need)
        except Exception as error:
            failed = failed or {"outcome": "not built", "line": _line(error)}
            if isinstance(error, TooLarge):  # whatever else it needs
                break
            continue
        try:
            inputs = inputs_of(task, model)
            own = float(model(**inputs).loss)
        except Exception as error:
            if failed.get("outcome") != "no own loss":
                failed = {"outcome": "no own loss", "line": _line(error)}
            continue
        if task == "vision" and not inputs.keys() & PIXELS:
            texts.append((model, inputs, own))
            continue
        return row | {"own": f"{own:.6g}"} | _compared(model, inputs, own)
    if not texts:
        return row | failed
    return row | {"own": f"{texts[0][2]:.6g}", "line": TEXT} | _compared(*texts[0])


def _compared(model: Any, inputs: dict[str, Any], own: float) -> dict[str, Any]:
    try:
        distillation = Distillation(model, [CrossEntropy(weight=1.0, label_smoothing=0.0)])
        ours = float(distillation(model, inputs).loss)
    except InputError as error:
        return {"outcome": "refused", "line": _line(error)}
    except Exception as error:
        return {"outcome": "broken", "line": _line(error)}
    equal = abs(ours - own) <= CLOSE * (1 + abs(own))
    return {"outcome": "equal" if equal else "different", "ours": f"{ours:.6g}"}


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if isinstance(error, InputError) else f"{type(error).__name__}: {text}")[:160]


def apart(task: str, name: str) -> dict[str, Any]:
    """In a process of its own, which may crash or hang."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def within() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        theirs.send(judged(task, name))

    process = context.Process(target=within)
    process.start()
    theirs.close()
    row: dict[str, Any] = dict.fromkeys(FIELDS, "")
    row |= {"transformers": transformers.__version__, "task": task, "class": name}
    row |= {"outcome": "not built", "line": f"no answer within {SECONDS} s"}
    try:
        if ours.poll(15 * SECONDS):
            row = ours.recv()
    except EOFError:
        process.join()
        if process.exitcode not in (-SIGKILL, -SIGXCPU):  # by which its seconds end
            row["line"] = f"its process ended ({process.exitcode})"
    process.kill()
    process.join()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    usual = Path("benchmarks/results/models") / f"{transformers.__version__}.csv"
    parser.add_argument("--csv", type=Path, default=usual)
    parser.add_argument("--only", default="", help="part of the names of classes")
    parser.add_argument("--again", nargs="*", default=[], help="outcomes to be tried again")
    parser.add_argument("--table", action="store_true", help="only write README.md beside the CSV")
    options = parser.parse_args()
    if options.table:
        write_file(options.csv.parent / "README.md", table(options.csv.parent).encode())
        return
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity(40)
    done: list[dict[str, str]] = []
    if options.csv.exists():
        with options.csv.open(newline="") as file:
            done = list(csv.DictReader(file))
    again = [
        row for row in done if row["outcome"] in options.again and options.only in row["class"]
    ]
    done = [row for row in done if row not in again]
    known = {(row["transformers"], row["task"], row["class"]) for row in done}
    write_file(options.csv, _written(done))
    with options.csv.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        for task, name in classes():
            if (transformers.__version__, task, name) in known or options.only not in name:
                continue
            row = apart(task, name)
            writer.writerow(row)
            file.flush()
            done.append(row)
    print(Counter((row["task"], row["outcome"]) for row in done))


def _written(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


if __name__ == "__main__":
    main()
