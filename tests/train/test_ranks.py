"""What the processes of a run have to have in common."""

from dataclasses import dataclass

import pytest

from fastkd.errors import RunFailed
from fastkd.train.ranks import Ranks


@dataclass(frozen=True)
class Three(Ranks):
    """A process among others that have told what they read."""

    others: tuple = ()

    def join_shares(self, mine):
        return [self.others[0], *mine, *self.others[1:]]


def test_what_all_have_read_alike_passes():
    Ranks().check_same({"teacher": "a"})
    Three(1, 3, others=({"teacher": "a"}, {"teacher": "a"})).check_same({"teacher": "a"})


@pytest.mark.parametrize("there", [("a", "b"), ("b", "a"), ("b", "b"), (None, "a")])
def test_what_differs_is_named(there):
    others = tuple({"start": [], "teacher": each} for each in there)
    with pytest.raises(RunFailed, match="teacher: the processes of this run have read different"):
        Three(1, 3, others=others).check_same({"start": [], "teacher": "a"})
