"""What a run says while it trains."""

import io

from rich.console import Console

from fastkd.train import log as module
from fastkd.train.log import RunLog, read_log


def written(monkeypatch, folder, terminal, tensorboard=False):
    said = io.StringIO()

    def console(**settings):
        return Console(file=said, force_terminal=terminal, width=100)

    monkeypatch.setattr(module, "Console", console)
    with RunLog(folder / "log.jsonl", 0, 2000, tensorboard) as log:
        log.advance(50)
        log.write({"step": 50, "loss": 2.5, "epoch": 1})
        log.figures(50, "loss 2.500  900 tokens/s")
    return said.getvalue()


def test_plain_lines_without_a_terminal(monkeypatch, tmp_path):
    said = written(monkeypatch, tmp_path, terminal=False)
    assert said == "update 50 of 2,000: loss 2.500  900 tokens/s\n"
    assert read_log(tmp_path / "log.jsonl")[0]["loss"] == 2.5


def test_no_such_lines_beside_a_bar(monkeypatch, tmp_path):
    assert "of 2,000:" not in written(monkeypatch, tmp_path, terminal=True)


def test_numbers_go_to_tensorboard(monkeypatch, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written(monkeypatch, tmp_path, terminal=False, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(50, 2.5)]
    assert sorted(events.Tags()["scalars"]) == ["epoch", "loss"]
