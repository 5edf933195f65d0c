"""Kernel tests run under Triton's interpreter where there is no GPU; this makes it quicker."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def patch_the_language_once():
    """Every call between interpreted functions looks through the whole language for what to patch.

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
