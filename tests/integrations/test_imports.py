"""What importing the integrations loads."""

import subprocess
import sys

import pytest

pytest.importorskip("transformers", minversion="5.1")
ROOMS = ("fastkd.data", "fastkd.nn", "fastkd.methods", "fastkd.train", "sentencepiece")


MODULES = ("distillation", "trainer", "lightning", "teacher_columns", "trl")


@pytest.mark.parametrize("module", MODULES)
def test_nothing_of_the_lean_trainer(module):
    if module in ("lightning", "trl"):
        pytest.importorskip(module)
    # What the other libraries load of themselves does not count.
    others = ["import sys, transformers, transformers.trainer", "import torch"]
    others += {"lightning": ["import lightning"], "trl": ["from trl import SFTTrainer"]}.get(
        module, []
    )
    own = f"import fastkd.integrations.{module}; print(*sorted({{*sys.modules}} - before))"
    code = "; ".join([*others, "before = {*sys.modules}", own])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert f"fastkd.integrations.{module}" in loaded
    for room in ROOMS:
        assert not [name for name in loaded if name == room or name.startswith(f"{room}.")]
