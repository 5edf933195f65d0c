"""Planned launches, and what they may not depend on, with a GPU that is not there."""

import contextlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fastkd_kernels import launching

# A second call of the same layout goes past Triton's look-up of types, and one on other addresses
# or with a tool that watches launches does not.
CALLS = """
import torch
from fastkd_kernels.absent import install

launches = install()

import triton
from triton import knobs

from fastkd import attention_alignment_loss, token_distillation_loss, watching

looked_up = []
look_up = triton.runtime.jit.JITFunction.run
triton.runtime.jit.JITFunction.run = lambda self, *args, **options: (
    looked_up.append(self.fn.__name__) or look_up(self, *args, **options)
)
queries = [torch.randn(2, heads, 8, 16) for heads in (4, 4, 3, 3)]
inputs = [*queries, torch.randn(3, 4)]
for place in (0, 1, 4):
    inputs[place].requires_grad_()
logits = [torch.randn(4, 16) for _ in range(2)]
logits[0].requires_grad_()
target = torch.tensor([1, 2, 3, 4])


def call():
    looked_up.clear()
    launches.clear()
    with watching.pretending(watching.Pretence(fused=True)):
        attention_alignment_loss(*inputs, backend="triton").backward()
        token_distillation_loss(
            *logits, target, ce_weight=1.0, kd_weight=1.0, backend="triton"
        ).loss.backward()
    return sum(launches.values()), len(looked_up)


first = call()
again = call()
knobs.runtime.launch_enter_hook.add(lambda metadata: None)
print(*first, *again, *call())
"""


# What a CUDA graph could not capture: whatever waits for the device, or depends on what it holds.
CAPTURED = """
import torch
from fastkd_kernels.absent import install

launches = install()

from fastkd import (
    alignment_loss_from_maps,
    attention_alignment_loss,
    linear_token_distillation_loss,
    token_distillation_loss,
    watching,
)

WAITING = ("item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique")


def seen(loss, learned):
    launches.clear()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        with watching.pretending(watching.Pretence(fused=True)):
            torch.autograd.grad(loss(), learned)
    names = [event.name for event in profile.events() if event.name.startswith("aten::")]
    waits = [name for name in names if name.removeprefix("aten::") in WAITING]
    return waits, names, dict(launches)


def calls(draw):
    torch.manual_seed(draw)
    # Short, empty and full sentences; rows that count and that do not.
    lengths = torch.tensor([[8, 3], [0, 8]][draw])
    target = torch.tensor([[1, -100, 3, 4], [1, 2, 3, 4]][draw])
    queries = [torch.randn(2, heads, 8, 16, requires_grad=heads == 4) for heads in (4, 4, 3, 3)]
    pairs = [torch.randn(2, 4, 8, 16, requires_grad=place < 2) for place in range(4)]
    weight = torch.randn(3, 4, requires_grad=True)
    maps = [torch.rand(2, heads, 8, 8, requires_grad=heads == 4) for heads in (4, 3)]
    given = {"query_lengths": lengths, "key_lengths": lengths, "backend": "triton"}
    for form in ("row", "map", "mixture"):
        for reduction in ("sum", "mean"):
            options = {**given, "normalization": form, "reduction": reduction}
            yield (
                lambda o=options: attention_alignment_loss(*queries, weight, **o),
                [*queries[:2], weight],
            )
            yield lambda o=options: attention_alignment_loss(*pairs, **o), pairs[:2]
            yield (
                lambda o=options: alignment_loss_from_maps(*maps, weight, **o),
                [maps[0], weight],
            )
    logits, taught = (torch.randn(4, 16) for _ in "st")
    logits.requires_grad_()
    options = {"ce_weight": 1.0, "kd_weight": 1.0, "rank_weight": 1.0, "backend": "triton"}
    hidden = [torch.randn(rows, 8) for rows in (4, 16, 4, 16)]
    for tensor in hidden[:2]:
        tensor.requires_grad_()
    for reduction in ("sum", "mean"):
        whole = {**options, "reduction": reduction}
        yield (
            lambda o=whole: token_distillation_loss(logits, taught, target, **o).loss,
            [logits],
        )
        yield (
            lambda o=whole: linear_token_distillation_loss(*hidden, target, **o).loss,
            hidden[:2],
        )


for first, second in zip(calls(0), calls(1)):
    seen(*first)  # compiles
    found, other = seen(*first), seen(*second)
    assert not found[0], found[0]
    assert found == other, (found, other)
print("same")
"""


def printed(code: str) -> str:
    """By a process that compiles kernels and runs none."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert not done.returncode, done.stderr
    return done.stdout


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here and would run them")


@NO_GPU
@pytest.mark.slow
def test_nothing_waits_for_the_device_or_depends_on_values():
    assert printed(CAPTURED).split() == ["same"]


@NO_GPU
def test_a_layout_is_looked_up_once():
    launched, looked_up, again, again_looked_up, watched, watched_looked_up = map(
        int, printed(CALLS).split()
    )
    assert launched == looked_up == again == watched == watched_looked_up
    assert again_looked_up == 0


class Compiled:
    """As Triton's: loaded on the device that was the current one."""

    function = packed_metadata = None

    def __init__(self, device, launched):
        self.device, self.launched = device, launched

    def run(self, *arguments):
        self.launched.append((self.device, arguments[3]))


@pytest.fixture
def two_gpus(monkeypatch):
    """That are not there; what was launched as (device of the kernel, stream)."""
    now, launched = [0], []

    class Kernel:
        def __getitem__(self, grid):
            def compile_and_launch(*_, **__):
                made = Compiled(now[0], launched)
                made.run(*grid, 1, 1, f"stream of {now[0]}")
                return made

            return compile_and_launch

    @contextlib.contextmanager
    def device(number):
        before, now[0] = now[0], number
        yield
        now[0] = before

    active = SimpleNamespace(
        get_current_device=lambda: now[0], get_current_stream=lambda at: f"stream of {at}"
    )
    monkeypatch.setattr(launching, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(launching, "CompiledKernel", Compiled)
    monkeypatch.setattr(launching, "launches_are_watched", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    step = launching.Step(Kernel(), 1, ("x",), (), {}, {})
    return step, now, launched


def test_a_launch_goes_to_the_gpu_of_its_tensors(two_gpus):
    step, now, launched = two_gpus

    def launch(number):
        tensor = SimpleNamespace(data_ptr=lambda: 16, get_device=lambda: number)
        step.launch([None, tensor], 1)

    for current in (0, 1):
        now[0] = current
        for number in (1, 0, 1, 0):
            launch(number)
            assert launched.pop() == (number, f"stream of {number}") and now[0] == current
    assert len(step.compiled) == 2
