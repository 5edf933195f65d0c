"""Profiles that overlap: each tells its own, and nothing is left behind."""

import gc
import threading

import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.utils import _python_dispatch as dispatch

from fastkd import memory, watching
from fastkd.functional import linear_token_distillation_loss


class Work:
    """A model of so many outputs; each `forward` keeps its result, 4 · 50 · outputs bytes."""

    def __init__(self, outputs: int) -> None:
        self.model = nn.Linear(100, outputs, bias=False)
        self.input = torch.ones(50, 100)
        self.kept: list[torch.Tensor] = []
        self.size = 4 * 50 * outputs

    def forward(self) -> None:
        self.kept.append(self.model(self.input).detach())

    def loss(self) -> None:
        hidden = torch.ones(8, 16, requires_grad=True)
        target = torch.zeros(8, dtype=torch.long)
        loss = linear_token_distillation_loss(
            hidden, torch.ones(32, 16), target=target, ce_weight=1.0, kd_weight=0.0, backend="torch"
        ).loss
        loss.backward()


def left_behind() -> dict[str, object]:
    """What a profile must not change for the rest of the process."""
    gc.collect()
    names = ("_global_forward_hooks", "_global_forward_pre_hooks")
    return {
        "hooks": [len(getattr(hooks, name)) for name in names],
        "mode": dispatch.is_in_torch_dispatch_mode(),
        "stack": len(dispatch._get_current_dispatch_mode_stack()),
        "watched": watching._watch.get(),
    }


@pytest.fixture
def nothing_left():
    before = left_behind()
    yield
    assert left_behind() == before


def in_turns(*programs):
    """Runs each program's steps in a thread of its own; numbers say which step of all is next.

    program: [(number, function), …]; step n + 1 begins when step n has ended.
    """
    done = {number: threading.Event() for program in programs for number, _ in program}
    done[0] = threading.Event()
    done[0].set()
    failures = []

    def run(program):
        for number, step in program:
            done[number - 1].wait(10)
            try:
                step()
            except BaseException as error:
                failures.append(error)
            done[number].set()

    threads = [threading.Thread(target=run, args=(program,)) for program in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures, failures


@pytest.mark.usefixtures("nothing_left")
def test_two_threads_each_tell_their_own():
    one, two = Work(1000), Work(3000)
    first, second = memory.profile({"one": one.model}), memory.profile({"two": two.model})
    in_turns(
        [
            (1, first.__enter__),
            (3, one.forward),
            (5, one.loss),
            (6, one.forward),
            (8, lambda: first.__exit__(None, None, None)),
        ],
        [
            (2, second.__enter__),
            (4, two.forward),
            (7, two.forward),
            (9, two.forward),
            (10, lambda: second.__exit__(None, None, None)),
        ],
    )
    assert first.result.held == 2 * one.size
    assert second.result.held == second.result.peak == 3 * two.size
    held = {use.place: use.held for use in first.result.uses if use.held}
    assert held == {"one": 2 * one.size}
    assert {use.place for use in second.result.uses} == {"two"}
    places = {use.place for use in first.result.uses}
    assert {"token losses", "token losses, backward"} & places


@pytest.mark.usefixtures("nothing_left")
def test_two_that_overlap_in_one_thread_each_tell_their_own():
    work = Work(1000)
    first, second = memory.profile({"of first": work.model}), memory.profile({"of 2": work.model})
    first.__enter__()
    work.forward()
    second.__enter__()
    work.forward()
    first.__exit__(None, None, None)
    work.forward()
    work.forward()
    second.__exit__(None, None, None)
    assert first.result.held == 2 * work.size
    assert second.result.held == 3 * work.size
    assert [use.place for use in first.result.uses] == ["of first"]
    assert [use.place for use in second.result.uses] == ["of 2"]


@pytest.mark.usefixtures("nothing_left")
def test_a_profile_that_fails_leaves_nothing():
    work = Work(10)
    with pytest.raises(ValueError, match="on purpose"), memory.profile({"model": work.model}):
        work.forward()
        raise ValueError("on purpose")


def test_other_modes_stay_where_they_are():
    """A mode of someone else that is entered within, and left after the profile."""
    seen = []

    class Other(dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    profile, other = memory.profile(), Other()
    profile.__enter__()
    other.__enter__()
    profile.__exit__(None, None, None)
    torch.ones(2)
    other.__exit__(None, None, None)
    count = len(seen)
    torch.ones(2)
    assert count and len(seen) == count
