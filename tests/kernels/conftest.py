"""Kernel tests run on a GPU; where there is none, under Triton's interpreter."""

import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch

from tests.kernels.tokens_compare import DEVICE


def without_drawn_cases() -> ModuleType:
    """Stands for hypothesis on a machine that lacks it: tests of drawn cases are skipped."""
    module = ModuleType("hypothesis")
    vars(module).update(
        given=lambda *_, **__: pytest.mark.skip(reason="needs hypothesis"),
        settings=lambda **_: lambda test: test,
        strategies=MagicMock(),
    )
    return module


try:
    import hypothesis  # noqa: F401
except ModuleNotFoundError:
    sys.modules["hypothesis"] = without_drawn_cases()


@pytest.fixture(scope="module")
def on_the_device():
    """Tensors that name no device are made where the kernels run."""
    with torch.device(DEVICE):
        yield


@pytest.fixture(scope="session", autouse=True)
def patch_the_language_once():
    """The interpreter made quicker.

    Every call between interpreted functions looks through the whole language for what to patch.
    While a kernel runs, all of it is patched already; looking at one name is enough to know.
    """
    if torch.cuda.is_available():
        yield
        return
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    patch, known = interpreter._patch_builtin, {}

    def patch_once(package, *rest):
        if package in known and not is_builtin(getattr(package, known[package])):
            return
        names = [name for name, member in vars(package).items() if is_builtin(member)]
        if names:
            known[package] = names[0]
        patch(package, *rest)

    interpreter._patch_builtin = patch_once
    yield
    interpreter._patch_builtin = patch
