"""Files of tensors hold what they should, or say in one line why they cannot be read."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastkd import tensors
from fastkd.errors import InputError, RunFailed
from fastkd.tensors import count_numbers, read_tensors, write_tensors


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "it.safetensors"
    write_tensors({"a": torch.arange(6.0), "output_bias": torch.tensor([-torch.inf, 0])}, path)
    return path


def test_what_is_written_is_read(file):
    assert torch.equal(read_tensors(file)["a"], torch.arange(6.0))


def test_a_path_need_not_be_text(file):
    folder = file.parent / "caf\udce9"
    folder.mkdir()
    moved = file.rename(folder / file.name)
    assert torch.equal(read_tensors(moved)["a"], torch.arange(6.0))
    assert count_numbers(moved) == 8


def test_numbers_are_counted_and_damage_told(file):
    assert count_numbers(file) == 8
    file.write_bytes(file.read_bytes()[:9])
    with pytest.raises(InputError, match="damaged or missing"):
        count_numbers(file)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_who_may_read_it_is_for_the_umask_to_say(file, mask):
    """And not for safetensors, whose files are the user's alone."""
    before = os.umask(mask)
    try:
        write_tensors({"a": torch.ones(2)}, file.with_name("new"))
    finally:
        os.umask(before)
    assert file.with_name("new").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_a_file_system_need_not_let_modes_change(file, monkeypatch, number):
    """As FAT, CIFS or FUSE, whose files have the mode of the mount; other errors are told."""

    def refuse(path, mode):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    before = os.umask(0o022)
    try:
        if number == errno.EIO:
            with pytest.raises(OSError, match="Input/output"):
                write_tensors({"a": torch.ones(2)}, file.with_name("new"))
        else:
            write_tensors({"a": torch.ones(2)}, file.with_name("new"))
            assert torch.equal(read_tensors(file.with_name("new"))["a"], torch.ones(2))
        os.umask(0o077)  # nothing to change
        write_tensors({"a": torch.ones(3)}, file.with_name("own"))
    finally:
        os.umask(before)
    assert count_numbers(file.with_name("own")) == 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused(file, value):
    write_tensors({"a": torch.tensor([1.0, value])}, file)
    with pytest.raises(InputError, match="a: 1 of 2 numbers are not finite"):
        read_tensors(file)


@pytest.mark.parametrize("kind", ["gone", "cut", "empty", "FIFO", "folder"])
def test_what_is_no_such_file_is_refused(file, kind):
    content = file.read_bytes()
    file.unlink()
    if kind == "FIFO":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind != "gone":
        file.write_bytes(content[:-5] if kind == "cut" else b"")
    with pytest.raises(InputError, match=r"it\.safetensors: damaged or missing"):
        read_tensors(file)


@pytest.mark.parametrize(("gone", "raised"), [(True, InputError), (False, RunFailed)])
def test_a_file_that_pytorch_cannot_open(file, monkeypatch, gone, raised):
    """As a trainer drops it meanwhile, or as there are no more files to open."""

    def late(path, device):
        if gone:
            path.unlink()
            return load_file(path, device)
        raise RuntimeError("unable to open file: Too many open files (24)")

    monkeypatch.setattr(tensors, "load_file", late)
    with pytest.raises(raised, match=r"it\.safetensors"):
        read_tensors(file)


CROWDED = """
import resource, sys
from pathlib import Path
import torch
from fastkd.tensors import write_tensors

tensors = {"weight": torch.ones(64, 64)}
write_tensors(tensors, Path(sys.argv[1]))
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + 2**19
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    write_tensors(tensors, Path(sys.argv[1]))
except MemoryError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_what_there_is_no_memory_for_is_an_error(tmp_path):
    """safetensors ends the process by SIGABRT."""
    file = tmp_path / "weights.safetensors"
    command = [sys.executable, "-c", CROWDED, str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{file}: cannot be written\n"), done.stderr
