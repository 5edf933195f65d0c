"""Planned launches, on a GPU that is not there."""

import os
import subprocess
import sys

import pytest
import torch

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, which runs what is launched")
def test_a_layout_is_looked_up_once():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CALLS],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert not done.returncode, done.stderr
    launched, looked_up, again, again_looked_up, watched, watched_looked_up = map(
        int, done.stdout.split()
    )
    assert launched == looked_up == again == watched == watched_looked_up
    assert again_looked_up == 0
