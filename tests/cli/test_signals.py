"""What a signal leaves behind."""

import signal
import subprocess
import sys
import time


def test_a_terminated_verb_leaves_nothing(taught, tmp_path):
    """Waits for its input, with the temporary output there."""
    run, output = str(taught.folder / "teacher"), str(tmp_path / "out.txt")
    command = [sys.executable, "-m", "fastkd", "translate", run, "-o", output]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
        assert process.stderr is not None and process.stderr.read() == b""
    assert not list(tmp_path.iterdir())
