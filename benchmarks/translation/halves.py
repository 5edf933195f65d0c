"""Cuts a corpus' test set into an open and a sealed half, by the parity of its lines.

    python -m benchmarks.translation.halves data/wmt22-de-dsb

Line 1 is open, line 2 sealed, and so on: `test-open.<language>` and `test-sealed.<language>`.
"""

import gzip
import os
import sys
from pathlib import Path


def cut(folder: Path, to: Path) -> list[Path]:
    """The files that were written to `to`, from `folder`'s test.<language>[.gz]."""
    written = []
    for file in sorted(folder.glob("test.*")):
        language = file.name.removesuffix(".gz").removeprefix("test.")
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        lines = data.splitlines(keepends=True)
        for first, half in enumerate(("open", "sealed")):
            output = to / f"test-{half}.{language}"
            temporary = output.with_name(f".{output.name}")
            temporary.write_bytes(b"".join(lines[first::2]))
            os.replace(temporary, output)
            written.append(output)
    return written


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: python -m benchmarks.translation.halves FOLDER [TO]")
    folder = Path(sys.argv[1])
    found = cut(folder, Path(sys.argv[-1]))
    if not found:
        raise SystemExit(f"{folder}: expected test.<language> or test.<language>.gz")
    for file in found:
        print(file)


if __name__ == "__main__":
    main()
