"""Steps that take turns."""

import time

import pytest
import torch

from fastkd.bench.turns import host_clock, in_turns

CPU = torch.device("cpu")


def test_each_begins_a_round_in_turn():
    calls = []
    steps = {name: lambda number, name=name: calls.append((number, name)) for name in "abc"}
    times = in_turns(steps, 2, CPU, warmup=1)
    assert calls == [
        *((0, name) for name in "abc"), *((1, name) for name in "bca"),
        *((2, name) for name in "cab"),
    ]  # fmt: skip
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_times_belong_to_their_step():
    steps = {
        "short": lambda number: time.sleep(0.01),
        "long": lambda number: time.sleep(0.05),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        times = in_turns(steps, 2, CPU)
    finally:
        torch.set_num_threads(threads)
    assert all(seconds >= 0.01 for seconds in times["short"])
    assert all(seconds >= 0.05 for seconds in times["long"])


@pytest.mark.parametrize(
    ("kind", "threads", "clock"),
    [
        ("cpu", 1, time.process_time),
        ("cpu", 2, time.perf_counter),
        ("cuda", 1, time.perf_counter),
    ],
)
def test_processor_time_is_for_one_thread_of_a_cpu(kind, threads, clock, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert host_clock(torch.device(kind)) is clock
