"""A recorded snapshot, made by hand from what PyTorch writes."""

import pickle

import pytest

from fastkd import memory
from fastkd.__main__ import main
from fastkd.errors import InputError

MIB = 1 << 20


def frame(filename, line, name):
    return {"filename": filename, "line": line, "name": name}


LINEAR = frame("/env/torch/nn/functional.py", 7, "linear")
MODEL = frame("/home/me/model.py", 12, "forward")
LOOP = frame("/home/me/loop.py", 3, "train")
BACKWARD = frame("/env/torch/autograd/__init__.py", 9, "backward")
ADAM = frame("/env/torch/optim/adam.py", 5, "step")


def entry(action, address, size, *frames):
    return {"action": action, "addr": address, "size": size * MIB, "frames": list(frames)}


def snapshot():
    trace = [
        entry("segment_alloc", 1000, 20),
        entry("alloc", 1, 4, LINEAR, MODEL, LOOP),
        entry("alloc", 2, 2, LINEAR, MODEL, LOOP),
        entry("free_requested", 9, 8),
        entry("free_completed", 9, 8),
        entry("alloc", 3, 6, BACKWARD, LOOP),
        entry("free_completed", 1, 4),
        entry("alloc", 1, 1, ADAM, LOOP),
        entry("alloc", 4, 3),
    ]
    kept = {"address": 50, "size": 5 * MIB, "state": "active_allocated"}
    unused = {"address": 60, "size": 7 * MIB, "state": "inactive"}
    return {
        "device_traces": [trace],
        "segments": [{"device": 0, "address": 50, "blocks": [kept, unused]}],
    }


def written(tmp_path, content):
    file = tmp_path / "snapshot.pickle"
    file.write_bytes(pickle.dumps(content))
    return file


def test_peak_places_and_what_is_held(tmp_path):
    found = memory.read_snapshot(written(tmp_path, snapshot()))
    assert found.device == "cuda"
    assert found.peak == 19 * MIB  # 8 and 5 from before, 4, 2
    assert found.held == (5 + 2 + 6 + 1 + 3) * MIB
    assert found.peak_place == "model.py:12 forward"
    held = {use.place: use.held // MIB for use in found.uses}
    assert held == {
        "before the recording": 5, "model.py:12 forward": 2, "loop.py:3 train, backward": 6,
        "loop.py:3 train, optimizer": 1, "outside Python, backward": 3,
    }  # fmt: skip
    assert "19.0 MiB" in str(found)


def test_a_step_is_told_as_a_measured_one(tmp_path):
    found = memory.recorded_step(written(tmp_path, snapshot()))
    assert (found.peak, found.at_peak.phase, found.at_peak.scope) == (
        19 * MIB, "forward", "model.py:12 forward",
    )  # fmt: skip
    assert found.at_peak.parts == {
        "before the recording": 13 * MIB, "activations": 6 * MIB,
    }  # fmt: skip
    assert found.held == {
        "gradients": 9 * MIB, "before the recording": 5 * MIB, "optimizer": 1 * MIB,
    }  # fmt: skip
    assert [phase for _, phase in found.phases] == ["forward", "backward", "optimizer", "backward"]


def test_backward_passes_by_the_names_of_cpp(tmp_path):
    engine = frame("??", 0, "torch::autograd::Engine::evaluate_function(...)")
    trace = [entry("alloc", 1, 4, LINEAR, MODEL), entry("alloc", 2, 2, engine)]
    content = {"device_traces": [trace], "segments": []}
    found = memory.recorded_step(written(tmp_path, content))
    assert found.held == {"gradients": 2 * MIB}
    assert found.activations == {"model.py:12 forward": 4 * MIB}


def test_the_command_shows_table_and_timeline(tmp_path, capsys):
    file, plot = written(tmp_path, snapshot()), tmp_path / "timeline.png"
    assert main(["memory", str(file), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "Memory as recorded in snapshot.pickle" in printed
    assert "before the recording" in printed and "gradients" in printed
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["batch=3"], "a snapshot"),
        (["--predict", "1GiB"], "--plot"),
        (["--processes", "8"], "--plot"),
        (["--sharding", "fully_shard"], "--plot"),
        (["--device", "cpu"], "--plot"),
        (["--no-largest"], "--plot"),
        (["--plot", "a.txt"], ".png"),
    ],
)
def test_what_a_snapshot_has_no_use_for(tmp_path, arguments, complaint, capsys):
    assert main(["memory", str(written(tmp_path, snapshot())), *arguments]) == 2
    assert complaint in capsys.readouterr().err


class Harmful:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("content", [[], {}, {"device_traces": [[]], "segments": []}, Harmful()])
def test_what_is_none_is_one_line(tmp_path, content, capsys):
    file = written(tmp_path, content)
    with pytest.raises(InputError, match=file.name) as raised:
        memory.read_snapshot(file)
    assert "\n" not in str(raised.value)
    assert capsys.readouterr().out == ""


def test_a_file_that_is_missing_or_no_pickle(tmp_path):
    for content in (None, b"text"):
        file = tmp_path / "none"
        if content:
            file.write_bytes(content)
        with pytest.raises(InputError, match="none"):
            memory.read_snapshot(file)


def test_a_device_is_not_read():
    with pytest.raises(InputError, match="expected a file, not a device"):
        memory.read_snapshot("/dev/null")
