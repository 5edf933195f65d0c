"""What is loaded from the cache folder is what this user built, whatever lies there."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastkd.backends.attention.torch import native_library

ROOT = Path(__file__).parents[3]
FLAGS = ("-shared", "-fPIC", "-O0")
EVIL = """
#include <stdio.h>
__attribute__((constructor)) static void planted() {{ fclose(fopen("{mark}", "w")); }}
extern "C" int answer() {{ return 13; }}
"""

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, native_library.COMPILERS)), reason="no C++ compiler"
)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    path = tmp_path / "cpp" / "kernel.cpp"
    path.parent.mkdir()
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


def answer(source):
    return native_library.load("answer", source, FLAGS).answer()


def built():
    (library,) = native_library.cache_folder().glob("*.so")
    return library


def replace(path, content):
    path.unlink()  # a loaded library must not change under the process
    path.write_bytes(content)


@pytest.fixture
def disk(source):
    """Mounts the cache folder's file system anew, by its options."""
    place = native_library.cache_folder().parent
    place.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("may not mount a file system")

    yield mount
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True)


@pytest.fixture
def evil(source, tmp_path):
    """Plants a library that leaves a mark when it is loaded; the mark."""
    assert answer(source) == 42
    mark, text = tmp_path / "mark", tmp_path / "evil.cpp"
    text.write_text(EVIL.format(mark=mark))
    compiler = next(filter(None, map(shutil.which, native_library.COMPILERS)))
    subprocess.run([compiler, *FLAGS, str(text), "-o", str(tmp_path / "evil.so")], check=True)
    replace(built(), (tmp_path / "evil.so").read_bytes())
    yield mark
    assert not mark.exists()


def test_it_is_built_once_and_kept_for_this_user_alone(source, monkeypatch):
    assert answer(source) == 42
    assert os.stat(native_library.cache_folder()).st_mode & 0o777 == 0o700
    assert os.stat(built()).st_mode & 0o777 == 0o600
    assert [path.name for path in native_library.cache_folder().iterdir()] == [built().name]
    monkeypatch.setattr(subprocess, "run", None)
    assert answer(source) == 42


def test_what_a_killed_build_left_is_deleted(source):
    folder = native_library.cache_folder()
    (folder / ".build.0123abcd.partial").mkdir(parents=True)
    (folder / ".build.0123abcd.partial" / "library").write_bytes(b"half")
    folder.chmod(0o700)
    assert answer(source) == 42
    assert [path.name for path in folder.iterdir()] == [built().name]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "zeroed", "longer"])
def test_a_damaged_one_is_built_anew(source, damage):
    assert answer(source) == 42
    content = bytearray(built().read_bytes())
    half = len(content) // 2
    if damage == "empty":
        content.clear()
    elif damage == "cut":
        del content[half:]
    elif damage == "flipped":
        content[half] ^= 1
    elif damage == "zeroed":
        content[half : half + 64] = bytes(64)
    else:
        content += b"more"
    replace(built(), content)
    assert answer(source) == 42


def test_a_planted_one_is_not_run(source, evil):
    assert answer(source) == 42  # built anew in its place


def test_a_link_to_a_planted_one_is_not_followed(source, evil, tmp_path):
    path = built()
    path.unlink()
    path.symlink_to(tmp_path / "evil.so")
    assert answer(source) == 42 and not path.is_symlink()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(source, evil, mode):
    native_library.cache_folder().chmod(mode)
    with pytest.raises(OSError, match="writable to others"):
        answer(source)


def test_a_file_that_others_can_write_is_not_used(source, evil):
    digest = native_library._digest(built().read_bytes())
    path = built().rename(built().with_stem(built().stem.rsplit("-", 1)[0] + f"-{digest}"))
    path.chmod(0o666)  # with a name that fits what it holds
    assert answer(source) == 42


def test_a_folder_that_is_a_link_is_not_used(source, evil, tmp_path):
    folder = native_library.cache_folder()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        answer(source)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder to another user")
def test_what_another_user_made_is_not_used(source, evil):
    os.chown(built(), 65534, 65534)
    os.chown(native_library.cache_folder(), 65534, 65534)
    with pytest.raises(OSError, match="belongs to user 65534"):
        answer(source)


def test_another_users_process_does_not_use_ours(source, monkeypatch):
    assert answer(source) == 42
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(OSError, match="not to 4711"):
        answer(source)


def test_a_fifo_in_its_place_does_not_hang(source):
    assert answer(source) == 42
    path = built()
    path.unlink()
    os.mkfifo(path)
    assert answer(source) == 42


@pytest.mark.parametrize("compiler", ['g++ "', "nonesuch", "false"])
def test_a_compiler_that_is_none_is_told(source, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises((OSError, ValueError)):
        answer(source)
    assert not list(native_library.cache_folder().glob("*"))


def test_a_relative_cache_folder_does_not_count(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert native_library.cache_folder() == tmp_path / ".cache" / "fastkd"


def test_a_full_disk_is_told_and_keeps_nothing(source, disk):
    """The compiler's last line says that the linker failed, and not of what."""
    disk("size=8k")
    with pytest.raises(OSError, match="No space left on device"):
        answer(source)
    assert not list(native_library.cache_folder().iterdir())
    disk("remount", "size=1m")
    assert answer(source) == 42


def test_a_disk_that_fills_before_the_library_is_kept(source, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device"):
        patch.setattr(native_library, "write_file", full)
        answer(source)
    assert not list(native_library.cache_folder().iterdir())
    assert answer(source) == 42


def test_a_file_system_that_cannot_be_written(source, disk):
    """What is there is used."""
    disk("size=1m")
    assert answer(source) == 42
    disk("remount", "ro")
    assert answer(source) == 42
    with pytest.raises(OSError, match="Read-only file system"):
        native_library.load("another", source, FLAGS)


def test_a_folder_without_rights_to_write(source):
    assert answer(source) == 42
    native_library.cache_folder().chmod(0o500)
    code = """
from pathlib import Path
import sys
from fastkd.backends.attention.torch import native_library
from tests.faults.rights import obey_rights
obey_rights()
source, flags = Path(sys.argv[1]), sys.argv[2:]
print(native_library.load("answer", source, flags).answer())
try:
    native_library.load("another", source, flags)
except OSError as error:
    print(error.strerror)
"""
    command = [sys.executable, "-c", code, str(source), *FLAGS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split("\n", 1) == ["42", "Permission denied\n"], done.stderr
