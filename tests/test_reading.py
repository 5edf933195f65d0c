"""What is read is a file, of the right size, and holds what it should."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from fastkd.errors import InputError, RunFailed
from fastkd.reading import bad_value, map_array, open_file, read_bytes, read_text, sha256_of


@pytest.mark.parametrize("read", [open_file, read_bytes, read_text, sha256_of])
@pytest.mark.parametrize("kind", ["FIFO", "device", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path, read, kind):
    path = tmp_path / "it"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(OSError, match=f"expected a file, not a {kind}"):
        read(path)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_what_the_system_lacks_is_no_damage_of_the_file(tmp_path, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RunFailed, match=f"it: cannot be read: {os.strerror(number)}"):
        map_array(tmp_path / "it", "float32", (4, 3))


def test_text_that_fills_the_memory_is_not_read(tmp_path):
    with open(tmp_path / "it", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="more than"):
        read_text(tmp_path / "it")


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "FIFO", "gone", "dtype"])
def test_an_array_is_what_was_written(tmp_path, damage):
    path, array = tmp_path / "it", np.arange(12, dtype=np.float32).reshape(4, 3)
    array.tofile(path)
    hashed = sha256_of(path)
    assert np.array_equal(map_array(path, "float32", (4, 3), hashed), array)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[20] ^= 1
    elif damage == "cut":
        del content[-1]
    elif damage == "longer":
        content += b"x"
    path.unlink()
    if damage == "FIFO":
        os.mkfifo(path)
    elif damage != "gone":
        path.write_bytes(content)
    with pytest.raises(InputError, match="it: "):
        map_array(path, "no dtype" if damage == "dtype" else "float32", (4, 3), hashed)


def test_an_empty_array(tmp_path):
    Path(tmp_path / "it").touch()
    assert map_array(tmp_path / "it", "<i8", (0,)).shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5, -0.5])
def test_a_bad_value_is_found(value):
    array = np.full((100, 7), 0.5, np.float32)
    assert bad_value(array, 0, 1) is None
    array[77, 3] = value
    found = bad_value(array, 0, 1)
    assert found is not None and (found == value or np.isnan(value))
