"""The command line, `fastkd VERB`."""

import importlib.metadata
import re
import sys

_TORCH = (2, 11)  # as pyproject.toml has it


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb; 0 done, 1 the work failed, 2 the command line, config or data is wrong."""
    try:
        version = importlib.metadata.version("torch")
        found = re.match(r"(\d+)\.(\d+)", version)
        if found and tuple(map(int, found.groups())) < _TORCH:
            needed = "{}.{}".format(*_TORCH)
            install = f"pip install 'torch>={needed}'"
            return _fail(f"needs PyTorch {needed} or newer, not {version}; expected: {install}")
        from fastkd.cli.app import app

        return app(sys.argv[1:] if arguments is None else arguments)
    except ModuleNotFoundError as error:
        return _fail(f"needs the package {error.name}; expected: pip install 'fastkd[train]'")


def _fail(message: str) -> int:
    print(f"fastkd: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
