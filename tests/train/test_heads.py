"""The mix of heads in a run's log, and what is read back of it."""

import torch

from fastkd.terms.alignment import mix_of
from fastkd.train.heads import listed, logged_teacher_heads, read


def test_what_is_logged_is_read_back():
    mixes = {"encoder": torch.rand(4, 6).softmax(1), "cross": torch.rand(4, 2)}
    record = {"step": 7, "dev_loss": 1.0, **listed(mixes, 2)}
    ((step, found),) = read([{"step": 3, "loss": 2.0}, record]).items()
    assert step == 7
    for kind, mix in mixes.items():
        torch.testing.assert_close(found[kind], mix, rtol=0, atol=5.01e-5)


def test_the_teachers_heads_are_logged():
    record = {"step": 7, **listed({"cross": torch.rand(4, 2)}, 4)}
    assert logged_teacher_heads([{"step": 3, "loss": 2.0}, record, {"step": 8}]) == 4
    for damaged in ("4", None, 0, -4, 4.0, [4]):
        assert logged_teacher_heads([{**record, "teacher_heads": damaged}]) is None


def test_nothing_is_logged_of_nothing():
    assert listed({}, 2) == {}


def test_damaged_records_are_left_out():
    broken = (
        [],
        {"cross": 1},
        {"cross": [[]]},
        {"cross": [[1], [1, 2]]},
        {"cross": ["x"]},
        {},
        None,
    )
    assert read([{"step": 1, "heads": heads} for heads in broken]) == {}


def test_shares_of_a_mixture_sum_to_one_and_others_are_sizes():
    weight = torch.tensor([[2.0, -1.0], [0.0, 0.0]])
    torch.testing.assert_close(mix_of(weight, "mixture").sum(1), torch.ones(2))
    assert mix_of(weight, "row").tolist() == mix_of(weight, "map").tolist() == [[2, 1], [0, 0]]
