import gzip

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
