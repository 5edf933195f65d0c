import errno
import gzip
import io
import os
from pathlib import Path

import pytest

from fastkd.data.lines import opened_output
from fastkd.data.text import read_lines


def test_a_name_ending_in_gz_is_packed(tmp_path):
    path = tmp_path / "out.gz"
    with opened_output(str(path), None) as file:
        file.write("zwölf\n".encode())
        file.flush()
        file.write(b"lines\n")
    assert gzip.decompress(path.read_bytes()).decode() == "zwölf\nlines\n"
    assert list(read_lines(path)) == ["zwölf", "lines"]
    first = path.read_bytes()
    with opened_output(str(path), None) as file:
        file.write("zwölf\nlines\n".encode())
    assert gzip.decompress(path.read_bytes()) == gzip.decompress(first)


def test_a_failed_one_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), opened_output(str(tmp_path / "out.gz"), None):
        raise ValueError
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("path", "named"), [("/dev/full", "/dev/full"), (None, "standard output")])
@pytest.mark.parametrize("size", [1, 1 << 20])  # refused as it is closed, or as it is written
def test_a_full_device_is_named(path, named, size):
    with open("/dev/full", "wb", buffering=0) as standard:
        refused = pytest.raises(OSError, match="No space left")
        with refused as caught, opened_output(path, standard) as file:
            file.write(bytes(size))
    assert caught.value.filename == named


@pytest.mark.parametrize("path", [None, os.devnull, "out", "out.gz"])
def test_another_error_is_not_the_outputs(tmp_path, monkeypatch, path):
    """As of a library that cannot be loaded, or a process that cannot be begun."""
    monkeypatch.chdir(tmp_path)
    told = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    with pytest.raises(OSError) as caught, opened_output(path, io.BytesIO()) as file:
        file.write(b"line\n")
        raise told
    assert caught.value is told and told.filename is None
    assert not list(tmp_path.iterdir())
