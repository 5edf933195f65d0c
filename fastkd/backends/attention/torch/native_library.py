"""A shared library, built by the system's compiler once for each machine and kept for the user.

What is loaded is run, so nothing is loaded but what this user built: neither the library nor its
folder may be a link, another user's or writable to others, and the library's name holds the hash
of its content, which tells one that was cut or changed on its disk. Such a one is built anew.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastkd.files import temporary_folder, write_file

COMPILERS = ("c++", "g++", "clang++")
TIMEOUT = 120  # seconds
SUFFIX = ".so"


def cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "fastkd"


def load(name: str, source: Path, flags: Sequence[str]) -> ctypes.CDLL:
    """The library of `source`, one file of a folder of sources, from the cache or built into it.

    Raises OSError, RuntimeError, ValueError or SubprocessError where that cannot be.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or list(filter(shutil.which, COMPILERS))[:1]
    if not compiler:
        raise OSError("no C++ compiler found")
    texts = [path.read_text(encoding="utf-8") for path in sorted(source.parent.iterdir())]
    made_from = _digest("\0".join((*texts, *flags, *compiler, _processor())).encode())
    start = f"{name}-{made_from[:16]}-"
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _own(folder, os.O_DIRECTORY):
        for path in folder.glob(f"{start}*{SUFFIX}"):
            with contextlib.suppress(OSError):
                return _checked(path)
        built = _build([*compiler, *flags, str(source)], folder)
        path = folder / f"{start}{_digest(built)}{SUFFIX}"
        path.unlink(missing_ok=True)  # whatever it is: it was not what it should be
        write_file(path, built)
        path.chmod(0o600)
        return _checked(path)


def _checked(path: Path) -> ctypes.CDLL:
    """Loads a library whose content has the hash in its name."""
    with _own(path) as descriptor:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            content = _digest(file.read())
        if not path.stem.endswith(f"-{content}"):
            raise OSError(f"{path} is not what was built")
        if sys.platform != "linux":
            return ctypes.CDLL(str(path))
        # Through the open file: it is the one that was checked. The file stays open, since the
        # loader takes a name that it has seen for the library that had it.
        held = os.dup(descriptor)
        try:
            return ctypes.CDLL(f"/proc/self/fd/{held}")
        except OSError:
            os.close(held)
            raise


@contextlib.contextmanager
def _own(path: Path, flags: int = 0) -> Iterator[int]:
    """An open file or folder that is this user's alone to write."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags)
    try:
        about = os.fstat(descriptor)
        if not flags and not stat.S_ISREG(about.st_mode):
            raise OSError(f"{path} is no file")
        if about.st_uid != os.geteuid():
            raise OSError(f"{path} belongs to user {about.st_uid}, not to {os.geteuid()}")
        if about.st_mode & 0o022:
            raise OSError(f"{path} is writable to others")
        yield descriptor
    finally:
        os.close(descriptor)


def _build(command: list[str], folder: Path) -> bytes:
    with temporary_folder(folder, "build") as scratch:
        output = scratch / "library"
        done = subprocess.run(
            [*command, "-o", str(output)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
        )
        if done.returncode:
            # The last line is the compiler's, that the linker failed; the one before tells why.
            said = "; ".join(done.stderr.strip().splitlines()[-2:]) or "and says nothing"
            raise OSError(f"{command[0]} ends with status {done.returncode}: {said}")
        return output.read_bytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _processor() -> str:
    """What -march=native depends on; the cache folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("flags", "features", "model name")
    return "\n".join(sorted({line for line in lines if line.lower().startswith(told)}))
