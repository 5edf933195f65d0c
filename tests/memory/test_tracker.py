"""The tracker: lives of storages, and where they were asked for."""

import torch
from torch import nn

from fastkd.functional import attention_alignment_loss
from fastkd.memory.scopes import loss_of
from fastkd.memory.tracker import Tracker, running_total


def follow(function, modules=None, held=()):
    tracker = Tracker(modules)
    tracker.hold(held, "parameters")
    with tracker:
        result = function()
    return tracker, result


def peak(tracker):
    return int(running_total(tracker.blocks, tracker.time).max())


def test_lives_of_a_chain():
    x = torch.ones(1000)

    def chain():
        a = x + 1
        b = a * 2
        del a
        return b.view(10, 100)[0]  # the storage of b lives on in its view

    tracker, result = follow(chain)
    assert peak(tracker) == 8000
    assert [block.size for block in tracker.blocks if block.death is None] == [4000]
    del result
    assert all(block.death is not None for block in tracker.blocks)


def test_what_was_there_before_counts_only_if_held():
    x = torch.ones(1000)
    assert peak(follow(lambda: x.add_(1))[0]) == 0
    assert peak(follow(lambda: x.view(10, 100).add_(1), held=[x])[0]) == 4000


def test_a_tied_parameter_counts_once():
    first = nn.Linear(10, 10, bias=False)
    second = nn.Linear(10, 10, bias=False)
    second.weight = first.weight
    tracker, _ = follow(lambda: None, held=[*first.parameters(), *second.parameters()])
    assert peak(tracker) == 400


def test_backward_is_attributed_to_the_module_that_ran_forward():
    model = nn.ModuleDict({"wide": nn.Linear(8, 1000), "narrow": nn.Linear(1000, 8)})
    x = torch.ones(4, 8)

    def step():
        model["narrow"](model["wide"](x)).sum().backward()

    tracker, _ = follow(step, {"model": model})
    gradients = {
        block.scope[-1]: block.phase
        for block in tracker.blocks
        if block.size == 32000 and block.death is None
    }
    assert gradients == {"model.wide": "backward", "model.narrow": "backward"}


def test_a_loss_is_a_place_of_its_own():
    query = torch.randn(2, 3, 16, 8, requires_grad=True)
    key, constant = torch.randn(2, 3, 16, 8), torch.randn(2, 3, 16, 8)

    def step():
        attention_alignment_loss(query, key, constant, constant, backend="reference").backward()

    tracker, _ = follow(step)
    for phase in ("forward", "backward"):
        places = {loss_of(block.scope) for block in tracker.blocks if block.phase == phase}
        assert "alignment loss" in places


def test_backends_are_restored():
    from fastkd.backends.attention import reference

    before = reference.query_key_loss
    follow(lambda: None)
    assert reference.query_key_loss is before


def test_a_unit_is_filled_one_storage_after_another():
    """As FSDP2 does it: between two operators some of a unit, or all of it."""
    unit = [torch.empty(1000), torch.empty(500)]
    for tensor in unit:
        tensor.untyped_storage().resize_(0)
    x, held = torch.ones(1), []
    tracker = Tracker()
    tracker.watch([lambda: unit])
    with tracker:
        for sizes in [(0, 0), (4000, 0), (4000, 2000), (4000, 2000), (0, 0), (4000, 2000)]:
            for tensor, size in zip(unit, sizes, strict=True):
                if tensor.untyped_storage().nbytes() != size:
                    tensor.untyped_storage().resize_(size)
            x + 1
            alive = (b.size for b in tracker.blocks if b.lives(tracker.time) and b.label)
            held.append(sum(alive))
    assert held == [0, 4000, 6000, 6000, 0, 6000]


def test_a_unit_that_is_made_later_is_watched_from_then_on():
    made = []
    tracker = Tracker()
    tracker.watch([lambda: made])
    with tracker:
        made.append(torch.empty(1000))
        x = torch.ones(1)
        assert [b.size for b in tracker.blocks if b.label] == [4000]
        made[0].untyped_storage().resize_(0)
        x + 1
        assert sum(b.size for b in tracker.blocks if b.lives(tracker.time) and b.label) == 0
