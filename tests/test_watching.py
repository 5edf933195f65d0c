"""Observers and pretences: of one context, in any order, and gone at the end."""

import re
import threading
from pathlib import Path

import pytest
import torch

import fastkd
from fastkd import watching

PACKAGE = Path(fastkd.__file__).parent


class Listener:
    def __init__(self):
        self.heard = []

    def open(self, name):
        self.heard.append(name)

    def close(self):
        self.heard.append("end")


def test_named_parts_nest():
    listener = Listener()
    watching.attach(listener)
    try:
        result = watching.named("outer", lambda x: watching.named("inner", abs, x), -2)
    finally:
        watching.detach(listener)
    assert result == 2
    assert listener.heard == ["outer", "inner", "end", "end"]


def test_a_part_that_fails_ends():
    listener = Listener()
    watching.attach(listener)
    try:
        with pytest.raises(ZeroDivisionError):
            watching.named("part", lambda: 1 / 0)
    finally:
        watching.detach(listener)
    assert listener.heard == ["part", "end"]


def test_who_leaves_first_takes_no_other_along():
    first, second = Listener(), Listener()
    watching.attach(first)
    watching.attach(second)
    watching.detach(first)
    watching.named("part", int)
    watching.detach(second)
    watching.named("unheard", int)
    assert (first.heard, second.heard) == ([], ["part", "end"])


def test_pretences_nest_and_end():
    outer, inner = watching.Pretence(packed=False), watching.Pretence(few_chunks=True)
    with watching.pretending(outer):
        with pytest.raises(KeyError), watching.pretending(inner):
            assert watching.pretended() == inner
            raise KeyError
        assert watching.pretended() == outer
    assert watching.pretended() == watching.Pretence()


def test_another_thread_sees_nothing_of_it():
    seen = []
    with watching.pretending(watching.Pretence(packed=False)):
        thread = threading.Thread(target=lambda: seen.append(watching.pretended()))
        thread.start()
        thread.join()
    assert seen == [watching.Pretence()]


def test_compiled_code_is_neither_watched_nor_pretended_to():
    listener = Listener()

    @torch.compile(backend="eager", fullgraph=True)
    def computed(x):
        if watching.pretended().packed is not None:
            return x
        return watching.named("part", torch.add, x, 1)

    watching.attach(listener)
    try:
        with watching.pretending(watching.Pretence(packed=False)):
            assert computed(torch.ones(1)).item() == 2
    finally:
        watching.detach(listener)
    assert listener.heard == []


def test_nothing_in_the_package_replaces_parts_of_other_modules():
    """`setattr` on an object at hand is fine; on a module it changes everybody's code."""
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if re.search(r"unittest|\bmock\b", text):
            wrong.append(f"{file.relative_to(PACKAGE)}: mock")
        imported = set(re.findall(r"^\s*(?:from \S+ )?import (.+)$", text, re.MULTILINE))
        names = {
            name.split(" as ")[-1].strip(" ()") for line in imported for name in line.split(",")
        }
        for target in re.findall(r"\bsetattr\(\s*(\w+)", text):
            if target in names or (target == "module" and "import_module" in text):
                wrong.append(f"{file.relative_to(PACKAGE)}: setattr({target}")
    assert wrong == []
