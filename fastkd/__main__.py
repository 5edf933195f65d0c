"""The command line, `fastkd VERB`; `fastkd --version` and `fastkd bench` need no other package."""

import importlib.metadata
import os
import re
import sys

import fastkd
from fastkd.cli.signals import cleaning_up
from fastkd.cli.status import ended, told
from fastkd.cli.streams import hold_streams
from fastkd.waiting import wait_briefly

_TORCH = (2, 11)  # as pyproject.toml has it
# What each extra brings beyond those of the trainer, likewise.
_EXTRAS = {
    "transformers": ("accelerate", "transformers"),
    "lightning": ("lightning",),
    "trl": ("peft", "trl"),
    "ctranslate2": ("ctranslate2",),
    "tensorboard": ("tensorboard",),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb; 0 done, 1 the work failed, 2 the command line, config or data is wrong.

    130, 143, 129 or 152 after an interrupt, SIGTERM, SIGHUP or SIGXCPU, where an unfinished run was
    saved.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        wait_briefly()
        hold_streams()
        return ended(lambda: _run(given))
    except ModuleNotFoundError as error:
        return told(_missing(error.name or str(error)), 1)
    except KeyboardInterrupt:
        return told("interrupted", 1)


def _run(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(f"fastkd, version {fastkd.__version__}")
        return 0
    try:
        os.getcwd()
    except FileNotFoundError:  # where oneMKL would end the process, in its first product
        return told("the current folder is gone; expected one that is there", 2)
    version = importlib.metadata.version("torch")
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and tuple(map(int, found.groups())) < _TORCH:
        needed = "{}.{}".format(*_TORCH)
        install = f"pip install 'torch>={needed}'"
        return told(f"needs PyTorch {needed} or newer, not {version}; expected: {install}", 1)
    with cleaning_up():
        if arguments[:1] == ["bench"]:
            from fastkd.bench.arguments import bench

            return bench(arguments[1:])
        from fastkd.cli.app import app

        return app(arguments)


def _missing(module: str) -> str:
    """What to do about a module that is not there."""
    package = module.partition(".")[0]
    if package in ("fastkd", "fastkd_kernels"):
        return (
            f"this installation of fastkd lacks its module {module}; expected: "
            "pip install --force-reinstall --no-deps of the same files"
        )
    extra = next((name for name, own in _EXTRAS.items() if package in own), "train")
    return f"needs the package {package}; expected: pip install 'fastkd[{extra}]'"


if __name__ == "__main__":
    sys.exit(main())
