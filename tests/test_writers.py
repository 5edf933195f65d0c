"""What the library writes goes through `fastkd.files`, or into a folder that it puts in place."""

import ast
from pathlib import Path

import pytest

import fastkd

ROOT = Path(fastkd.__file__).parent
# Who else opens a file to write to, and why that is as safe.
OTHERS = {
    "cli/streams.py": "the null device, for a stream that was closed",
    "data/corpus.py": "inside replaced_folder",
    "data/lines.py": "a device, which nothing can replace",
    "data/teacher_cache.py": "inside replaced_folder",
    "demo/language.py": "inside replaced_folder",
    "export/ctranslate2.py": "inside replaced_folder",
    "export/transformers.py": "inside replaced_folder",
    "files.py": "the helper itself",
    "memory/resident.py": "a switch of the kernel's",
    "pictures.py": "into whole_file",
    "compare/pictures.py": "into memory",
    "runs/sequences.py": "work in progress, of which a note on the disk tells how much counts",
    "tensors.py": "inside replaced_folder",
    "train/log.py": "appended line by line, and cleared of half a line when a run goes on",
}
METHODS = {
    "write_text",
    "write_bytes",
    "savefig",
    "save_file",
    "tofile",
    "to_csv",
    "save_pretrained",
}
MOVES = {"move", "copy", "copyfile", "copytree", "copy2"}


def writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if name in METHODS or (owner == "shutil" and name in MOVES):
        return True
    if (owner, name) in {("torch", "save"), ("np", "save"), ("np", "savez"), ("os", "replace")}:
        return True
    if name != "open" or owner in ("os", "gzip", "tarfile"):
        return False
    given = [*call.args, *(k.value for k in call.keywords if k.arg == "mode")]
    modes = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return any(set(mode) <= set("rwxabt+") and set(mode) & set("wxa+") for mode in modes)


@pytest.mark.parametrize(
    "code",
    ['open(p, "w")', 'p.open("ab")', 'p.write_text("")', "torch.save(x, p)", "shutil.move(a, b)"],
)
def test_a_writer_is_told(code):
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert writes(call)


@pytest.mark.parametrize("code", ['open(p, "rb")', "open(p)", "RunFolder.open(run)", 'f("w")'])
def test_a_reader_is_none(code):
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert not writes(call)


def test_nothing_else_writes():
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and writes(node)
    }
    assert found == OTHERS.keys()
