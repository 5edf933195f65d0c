"""The losses' configurations as they are imported."""

import subprocess
import sys

import pytest

import fastkd.losses
from fastkd.config import tree
from fastkd.errors import InputError
from fastkd.functional import calls, token_checks


def test_the_tree_hands_them_on():
    for name in fastkd.losses.__all__:
        assert getattr(tree, name) is getattr(fastkd.losses, name)


def test_they_need_no_more_than_pydantic():
    code = (
        "import sys; import fastkd.losses; "
        "print(sorted({n.split('.')[0] for n in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("torch", "numpy", "triton", "sentencepiece", "transformers", "omegaconf"):
        assert repr(heavy) not in done.stdout


@pytest.mark.parametrize("form", calls.DIVERGENCES)
@pytest.mark.parametrize("beta", [None, 0.0, 0.5, 1.0])
def test_word_kd_takes_the_betas_that_the_losses_take(form, beta):
    try:
        token_checks.divergence(form, beta)
    except InputError:
        with pytest.raises(ValueError, match="beta"):
            fastkd.losses.WordKD(divergence=form, beta=beta)
    else:
        fastkd.losses.WordKD(divergence=form, beta=beta)
