import gzip
import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd.data.lines import LONGEST
from fastkd.data.text import count_pairs, read_lines, read_pairs, sample_evenly, text_file
from fastkd.errors import InputError

# What str.splitlines() takes for line ends besides the line feed; it must not end a line here.
OTHER_ENDS = "a\x0bb\x0cc\x1cd\x85e\u2028f\rg"


def test_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(f"one\r\n\n{OTHER_ENDS}\nlast without end".encode())
    assert list(read_lines(path)) == ["one", "", OTHER_ENDS, "last without end"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    assert list(read_lines(path)) == ["one", "two"]


def test_gzip_reads_as_plain(tmp_path):
    (tmp_path / "text.xx.gz").write_bytes(gzip.compress("äöü\nzwei\n".encode()))
    path = text_file(tmp_path / "text", "xx")
    assert path.name == "text.xx.gz"
    assert list(read_lines(path)) == ["äöü", "zwei"]


def test_the_plain_file_is_taken_before_the_gzip_one(tmp_path, write_text):
    plain = write_text("text.xx", ["plain"])
    (tmp_path / "text.xx.gz").write_bytes(gzip.compress(b"packed\n"))
    assert text_file(tmp_path / "text", "xx") == plain


@pytest.mark.parametrize("name", ["text", "text.gz"])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path, name):
    """Which took a text's place after it was looked for."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="expected a file, not a FIFO"):
        next(read_lines(tmp_path / name))


def test_a_missing_file_names_both_places(tmp_path):
    with pytest.raises(InputError, match=r"text\.xx: no such file, nor text\.xx\.gz"):
        text_file(tmp_path / "text", "xx")


def test_bad_utf8_names_file_and_line(tmp_path):
    path = tmp_path / "text.xx"
    path.write_bytes(b"fine\nna\xefve\n")
    with pytest.raises(InputError, match=r"text\.xx: line 2 is not UTF-8 \(byte 3 "):
        list(read_lines(path))


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"text" + b, lambda b: b[:20]])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    path = tmp_path / "text.gz"
    path.write_bytes(damage(gzip.compress(bytes(range(10, 90)) * 50)))
    with pytest.raises(InputError, match=r"text\.gz: cannot be read"):
        list(read_lines(path))


@pytest.mark.parametrize(("left", "right"), [(3, 5), (5, 3), (0, 2)])
def test_unequal_lines_name_both_counts(write_text, left, right):
    source, target = write_text("x.aa", ["a"] * left), write_text("x.bb", ["b"] * right)
    with pytest.raises(InputError, match=rf"aa has {left} lines and .*bb has {right}; expected"):
        count_pairs(source, target)


def test_an_empty_corpus_is_refused(write_text):
    source, target = write_text("x.aa", []), write_text("x.bb", [])
    with pytest.raises(InputError, match="are empty"):
        count_pairs(source, target)


def test_pairs_are_aligned_and_counted(write_text):
    source, target = write_text("x.aa", ["1", "", "3"]), write_text("x.bb", ["i", "ii", ""])
    assert list(read_pairs(source, target)) == [("1", "i"), ("", "ii"), ("3", "")]
    assert count_pairs(source, target) == 3


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 400))
def test_samples_are_even(total, wanted):
    sample = list(sample_evenly(range(total), total, wanted))
    assert len(sample) == min(total, wanted)
    gaps = {right - left for left, right in itertools.pairwise(sample)}
    assert len(gaps) <= 2
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_an_endless_line_is_refused_before_it_is_read(tmp_path, end):
    path = tmp_path / "text"
    path.write_bytes(b"short\n" + b"x" * (LONGEST - 1) + b"\n" + b"y" * (3 * LONGEST) + end)
    lines = read_lines(path)
    assert [len(next(lines)), len(next(lines))] == [5, LONGEST - 1]
    with pytest.raises(InputError, match=r"text: line 3 has more than 1,048,576 bytes"):
        next(lines)
