"""Commands whose standard streams are closed, or in an encoding that lacks what is said."""

import os
import subprocess
import sys

import pytest


def ended(*arguments, closed=(), **environment):
    """A command in a process of its own, with some of its streams closed from the beginning."""

    def close():
        for stream in closed:
            os.close(stream)

    command = [sys.executable, "-m", "fastkd", *arguments]
    return subprocess.run(
        command, capture_output=True, env={**os.environ, **environment}, preexec_fn=close
    )


def test_a_complaint_is_never_written_where_translations_go():
    """At 0.1 it went to standard output where standard error was closed."""
    done = ended("translate", "nowhere", closed=[2])
    assert done.returncode == 2 and done.stdout == b""


HELD = """
import os, sys
from fastkd.cli.streams import hold_streams
hold_streams()
file = open(sys.argv[1], "wb")
os.write(2, b"said by a library")
sys.exit(file.fileno())
"""


@pytest.mark.parametrize("closed", [[2], [0, 1, 2]])
def test_no_file_takes_the_number_of_a_closed_stream(tmp_path, closed):
    path = tmp_path / "checkpoint"
    command = [sys.executable, "-c", HELD, str(path)]
    done = subprocess.run(command, preexec_fn=lambda: [os.close(stream) for stream in closed])
    assert done.returncode > 2 and path.read_bytes() == b""


def test_a_table_in_an_encoding_that_lacks_its_signs(taught):
    run = str(taught.folder / "teacher")
    done = ended("compare", run, run, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"\\xb1" in done.stdout


IN_A_FOLDER_THAT_IS_GONE = """
import os, sys, tempfile
from fastkd.__main__ import main
folder = tempfile.mkdtemp()
os.chdir(folder)
os.rmdir(folder)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("verb", ["score", "prepare"])
def test_where_the_current_folder_is_gone(taught, tmp_path, verb):
    """oneMKL ended the process, with a line that names one of its own files."""
    run, out = str(taught.folder / "teacher"), str(tmp_path / "out")
    given = {
        "score": [run, "test", "--beam", "1", "-o", out],
        "prepare": [taught.config("relative"), "data.prepared=inside"],
    }
    command = [sys.executable, "-c", IN_A_FOLDER_THAT_IS_GONE, verb, *given[verb]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "fastkd: the current folder is gone; expected one that is there\n"
    assert not list(tmp_path.iterdir())
