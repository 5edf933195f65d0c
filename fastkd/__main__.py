"""The command line, `fastkd VERB`."""

import sys


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb; 0 done, 1 the work failed, 2 the command line, config or data is wrong."""
    try:
        from fastkd.cli.app import app
    except ImportError as error:
        print(
            f"fastkd: the command line needs the package {error.name};"
            " expected: pip install 'fastkd[train]'",
            file=sys.stderr,
        )
        return 1
    return app(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
