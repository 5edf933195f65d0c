"""Where the compiled walk of the `torch` backend cannot be built, is kept, or is not asked for."""

import os
import subprocess

import pytest
import torch

from fastkd.backends.attention.torch import native
from tests.kernels.attention_compare import attention, run

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")


@pytest.fixture
def not_yet_built(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTKD_NATIVE", "always")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def without_a_compiler(patch, folder):
    patch.delenv("CXX", raising=False)
    patch.setenv("PATH", "")


def with_a_broken_compiler(patch, folder):
    patch.setenv("CXX", "false --always")


def with_a_quote_that_is_not_closed(patch, folder):
    patch.setenv("CXX", 'g++ "')


def with_a_folder_that_others_can_write(patch, folder):
    (folder / "fastkd").mkdir()
    (folder / "fastkd").chmod(0o777)


def with_a_file_for_a_folder(patch, folder):
    (folder / "file").touch()
    patch.setenv("XDG_CACHE_HOME", str(folder / "file"))


def without_a_home(patch, folder):
    patch.delenv("XDG_CACHE_HOME")
    patch.setattr(native.Path, "home", without_a_home_folder)


def without_a_home_folder():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    "trouble",
    [
        without_a_compiler,
        with_a_broken_compiler,
        with_a_quote_that_is_not_closed,
        with_a_folder_that_others_can_write,
        with_a_file_for_a_folder,
        without_a_home,
    ],
)
def test_what_cannot_be_built_is_done_without(trouble, not_yet_built, monkeypatch, caplog):
    trouble(monkeypatch, not_yet_built)
    found = run(attention(), "torch", normalization="row")
    assert native.library() is None
    (told,) = [each for each in caplog.records if "without its compiled kernel" in each.message]
    assert told.levelname == "WARNING" and "\n" not in told.message
    monkeypatch.setenv("FASTKD_NATIVE", "never")
    for mine, plain in zip(found, run(attention(), "torch", normalization="row"), strict=True):
        assert torch.equal(mine, plain)


@needs_compiler
def test_a_built_kernel_is_kept(monkeypatch):
    native.library.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    assert native.library() is not None
    assert os.stat(native.native_library.cache_folder()).st_mode & 0o022 == 0


@pytest.mark.parametrize("choice, cells, taken", [
    ("auto", native.LARGE - 1, False), ("auto", native.LARGE, True),
    ("always", 1, True), ("never", native.LARGE, False),
])  # fmt: skip
@needs_compiler
def test_which_calls_are_compiled(choice, cells, taken, monkeypatch):
    monkeypatch.setenv("FASTKD_NATIVE", choice)
    assert native.wanted(cells) is taken
