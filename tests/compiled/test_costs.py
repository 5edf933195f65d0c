"""What calls cost, counted: figures that a count by hand bounds."""

import pytest

from tests.compiled.process import Machine

BF16 = 2  # bytes


@pytest.mark.slow
def test_dense_cross_entropy(machine: Machine) -> None:
    costs = machine.call("tests.compiled.costs:report", only="dense V 32768, CE", target=90)
    alone = [cost for cost in costs if cost["call"] == "dense V 32768, CE"]
    taught = [cost for cost in costs if cost["call"] == "dense V 32768, CE + KD"]
    rows = {cost["kernel"]: cost for cost in alone}["token_losses_fwd"]
    # Logits are read for the loss and again for the gradient, which is written once.
    assert 2 * BF16 <= rows["read"] <= 2.5 * BF16
    assert BF16 <= rows["written"] <= 1.1 * BF16
    both = {cost["kernel"]: cost for cost in taught}["token_losses_fwd"]
    assert 4 * BF16 <= both["read"] <= 5 * BF16
    for cost in (rows, both):
        assert cost["launches"] == 1
        assert cost["instructions"]["special"] >= 2  # an exponential in each read
