"""What a teacher that was asked beforehand can serve."""

import pytest

from fastkd.config.losses import WordKD
from fastkd.errors import InputError
from fastkd.terms.listed import check_listed


@pytest.mark.parametrize(
    ("rest", "form", "served"),
    [
        ("drop", "kl", True),
        ("drop", "tvd", False),
        ("renormalize", "jsd", True),
        ("renormalize", "reverse_kl", False),
        ("spread", "reverse_kl", True),
        ("tail", "reverse_kl", True),
    ],
)
def test_divergences_of_a_list(rest, form, served):
    losses = {"word_kd": WordKD(divergence=form)}
    if served:
        check_listed(losses, "the cache", "teacher.run", rest)
        return
    with pytest.raises(InputError, match=rf"word_kd.divergence: {form} needs rest: .*, not {rest}"):
        check_listed(losses, "the cache", "teacher.run", rest)
