"""Measuring: who takes part, who is refused, and what the figures are."""

import pytest
import torch

from fastkd import watching
from fastkd.bench import providers, run
from fastkd.bench.operations import OPERATIONS
from fastkd.bench.peak import peak_in_own_process
from fastkd.bench.rates import Rates
from fastkd.bench.run import DIRECTIONS, Effort, figures, run_case

CPU = torch.device("cpu")
RATES = Rates(1e9, 1e9, 1e9)
QUICK = Effort(seconds=0.0, least=3, most=3, memory=False)


def measure(name, against, **effort):
    operation = OPERATIONS[name]
    shape = operation.sweep("smoke")[0]
    chosen = Effort(**{**vars(QUICK), **effort})
    return run_case(operation, shape, torch.float32, CPU, against, RATES, chosen)


def serves(provider, name):
    if provider == "torch-uncompiled":
        return name.startswith("alignment")
    return {
        "pytorch": name in ("linear-ce", "linear-kd"),
        "pytorch-chunked": name == "linear-ce",
    }.get(provider, True)


@pytest.mark.parametrize("name", OPERATIONS)
def test_who_is_there_computes_the_reference_loss(name):
    against = ["reference", "plain", "torch", "torch-uncompiled", "pytorch", "pytorch-chunked"]
    found = {row.provider: row for row in measure(name, against) if row.direction == "both"}
    assert found["reference"].loss_difference == 0
    assert found["reference"].relative == 1
    for provider in against:
        if serves(provider, name):
            assert found[provider].status == "ok"
            assert found[provider].relative > 0
        else:
            assert found[provider].status.startswith("absent: has no")


def test_the_compiled_kernel_is_left_out_where_that_is_asked_for(monkeypatch):
    """And only then: nothing is pretended after it."""
    operation, seen = OPERATIONS["alignment-row"], []
    monkeypatch.setattr(
        type(operation), "loss", lambda *_: lambda _: seen.append(watching.pretended().compiled)
    )
    providers.build("torch-uncompiled", operation, CPU)({})
    assert seen == ["never"]
    assert watching.pretended().compiled == "as wanted"


def test_ratios_are_taken_within_rounds():
    """Whoever else slowed the machine down in a round slowed both."""
    found = figures([2.0, 20.0, 2.0], [1.0, 10.0, 4.0])
    assert found["relative"] == 2.0
    assert found["median_ms"] == 2000.0
    assert figures([1.0, 2.0], [])["relative"] is None


def test_kernels_need_a_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (row,) = measure("logits-kd", ["triton"])
    assert row.status == "absent: needs a GPU"


def test_figures_of_a_provider():
    rows = [row for row in measure("logits-kd", ["torch"]) if row.status == "ok"]
    assert [row.direction for row in rows] == list(DIRECTIONS)
    for row in rows:
        assert row.repeats == 3
        assert 0 < row.lower_ms <= row.median_ms <= row.upper_ms
        assert row.share == pytest.approx(row.bound_ms / row.median_ms)
    assert rows[2].median_ms > rows[0].median_ms


def test_a_provider_of_another_loss_is_not_timed(monkeypatch):
    def wrong(operation, device):
        return lambda inputs: 1.01 * operation.loss("reference")(inputs)

    monkeypatch.setitem(providers._PROVIDERS, "liger", wrong)
    (row,) = measure("linear-kd", ["liger"])
    assert row.status.startswith("computes another loss")
    assert row.median_ms is None


def test_plain_pytorch_is_timed_with_its_own_digits_where_asked(monkeypatch):
    def noise(operation, device):
        return lambda inputs: 1.01 * operation.loss("reference")(inputs)

    for name in ("plain", "liger"):
        monkeypatch.setitem(providers._PROVIDERS, name, noise)
    plain, *_, other = measure("linear-kd", ["plain", "liger"], any_plain=True)
    assert plain.status == "ok" and plain.loss_difference == pytest.approx(0.01, rel=1e-3)
    assert other.status.startswith("computes another loss")


def test_a_provider_with_a_wrong_gradient_is_not_timed(monkeypatch):
    def wrong(operation, device):
        def loss(inputs):
            value = operation.loss("reference")(inputs)
            return 2 * value - value.detach()

        return loss

    monkeypatch.setitem(providers._PROVIDERS, "cce", wrong)
    (row,) = measure("linear-ce", ["cce"])
    assert row.status.startswith("computes another loss")


def test_a_provider_that_fails_does_not_end_the_run(monkeypatch):
    def failing(operation, device):
        def loss(inputs):
            raise ValueError("not today")

        return loss

    monkeypatch.setitem(providers._PROVIDERS, "cce", failing)
    rows = measure("linear-ce", ["cce", "torch"])
    assert rows[0].status == "failed: ValueError: not today"
    assert rows[-1].status == "ok"


def test_providers_take_turns_at_beginning(monkeypatch):
    begun = []

    class Recorder(run.Clock):
        def once(self, loss, inputs):
            begun.append(loss)
            return super().once(loss, inputs)

    monkeypatch.setattr(run, "Clock", Recorder)
    measure("logits-kd", ["reference", "torch"])
    assert begun[0] is not begun[2]
    assert begun[0] is begun[3]


def test_peak_memory_of_a_known_case():
    """Cross-entropy and KL of logits by the reference, 16 MB each: what the system sees of it is
    what the allocator gave out, and no less than the gradient."""
    shape = {"N": 500, "V": 8000}
    found = peak_in_own_process("logits-kd", shape, torch.float32, "reference")
    assert found.peak == pytest.approx(found.allocated, rel=0.1)
    assert found.peak > 16e6
