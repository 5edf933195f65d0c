"""Files and folders that appear whole, durable, and in nobody's place."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastkd import files
from fastkd.errors import InputError
from fastkd.files import clear_leftovers, drop_folder, replaced_folder, whole_file, write_file

HOLDS = ("meta.json", "inside/*.bin")


def fill(folder: Path, text: str = "new") -> None:
    (folder / "meta.json").write_text(text)
    (folder / "inside").mkdir()
    (folder / "inside" / "a.bin").write_text(text)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture(params=["exchange", "one after another"])
def way(request, monkeypatch):
    """Systems that can exchange two folders at once, and those that cannot."""
    if request.param == "one after another":
        monkeypatch.setattr(files, "_renameat2", lambda: None)


def test_a_folder_is_replaced_whole(tmp_path, way):
    for text in ("old", "new"):
        with replaced_folder(tmp_path / "f", HOLDS) as new:
            fill(new, text)
            assert not (tmp_path / "f").exists() or (tmp_path / "f/meta.json").read_text() == "old"
        assert (tmp_path / "f/inside/a.bin").read_text() == text
    assert names(tmp_path) == {"f", "f/meta.json", "f/inside", "f/inside/a.bin"}


@pytest.mark.parametrize("foreign", ["thesis.tex", "inside/thesis.tex", "meta.json.bak"])
def test_a_folder_with_something_else_is_nobodys_to_replace(tmp_path, foreign):
    folder = tmp_path / "f"
    folder.mkdir()
    fill(folder)
    (folder / foreign).write_text("mine")
    with pytest.raises(InputError, match="something else"), replaced_folder(folder, HOLDS):
        raise AssertionError("the block must not begin")
    assert (folder / foreign).read_text() == "mine"


def test_what_was_put_there_meanwhile_stays(tmp_path):
    with pytest.raises(InputError, match=r"thesis\.tex"):  # noqa: SIM117
        with replaced_folder(tmp_path / "f", HOLDS) as new:
            fill(new)
            (tmp_path / "f").mkdir()
            (tmp_path / "f" / "thesis.tex").write_text("mine")
    assert names(tmp_path) == {"f", "f/thesis.tex"}


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    write_file(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a") as file:
        file.write(b"half")
        raise RuntimeError
    with pytest.raises(RuntimeError), replaced_folder(tmp_path / "f", HOLDS) as new:
        fill(new)
        raise RuntimeError
    assert names(tmp_path) == {"a"} and (tmp_path / "a").read_bytes() == b"old"


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Each file and folder is synced before the rename, and the folder above after it."""
    events: list[tuple[str, str]] = []
    fsync, rename, call = os.fsync, Path.rename, files._exchanged

    def synced(descriptor):
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(self, target):
        events.append(("rename", str(self)))
        return rename(self, target)

    def exchanged(one, other):
        events.append(("rename", str(one)))
        return call(one, other)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(files, "_exchanged", exchanged)
    for _ in range(2):
        events.clear()
        with replaced_folder(tmp_path / "f", HOLDS) as new:
            fill(new)
            inside = {str(path) for path in (new, *new.rglob("*"))}
        last = max(index for index, event in enumerate(events) if event[0] == "rename")
        assert inside <= {path for kind, path in events[:last] if kind == "sync"}
        assert ("sync", str(tmp_path)) in events[last:]


KILLED = """
import os, signal, sys
from pathlib import Path
from fastkd.files import replaced_folder, whole_file
with whole_file(Path(sys.argv[1], "a")) as file, replaced_folder(Path(sys.argv[1], "f"), ()) as new:
    file.write(b"half")
    (new / "half").write_text("half")
    print("ready", flush=True)
    signal.pause()
"""


def test_leftovers_of_the_killed_go_and_those_of_the_living_stay(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        before = names(tmp_path)
        assert len(before) == 3
        write_file(tmp_path / "a", b"mine")
        with replaced_folder(tmp_path / "f", HOLDS) as new:
            fill(new)
        assert before < names(tmp_path)
        process.send_signal(signal.SIGKILL)
    write_file(tmp_path / "a", b"mine")
    assert not any(".a." in name for name in names(tmp_path))
    clear_leftovers(tmp_path)
    assert names(tmp_path) == {"a", "f", "f/meta.json", "f/inside", "f/inside/a.bin"}


def test_writers_at_once_each_write_whole(tmp_path, way):
    failures: list[BaseException] = []

    def write(text: str) -> None:
        try:
            for _ in range(20):
                write_file(tmp_path / "a", text.encode() * 1000)
                with replaced_folder(tmp_path / "f", HOLDS) as new:
                    fill(new, text)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=write, args=(text,)) for text in ("x", "y")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    exchange = files._renameat2() is not None
    assert not failures or not exchange  # one after another, a writer may find the name taken
    assert len(set((tmp_path / "a").read_text())) == 1
    if exchange:
        assert (tmp_path / "f/meta.json").read_text() == (tmp_path / "f/inside/a.bin").read_text()
        assert names(tmp_path) == {"a", "f", "f/meta.json", "f/inside", "f/inside/a.bin"}


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind, linked):
    path, there = tmp_path / "it", tmp_path / "there" if linked else tmp_path / "it"
    if kind == "FIFO":
        os.mkfifo(there)
        if linked:
            path.symlink_to(there)
    else:
        path.symlink_to("/dev/null")
    with pytest.raises(OSError, match=f"expected a file, not a {kind}"):
        write_file(path, b"content")
    assert not path.is_file() and stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "there" / "a")
    write_file(tmp_path / "a", b"content")
    assert (tmp_path / "a").is_symlink() and (tmp_path / "there" / "a").read_bytes() == b"content"


@pytest.mark.parametrize("name", ["a" * 250, "[a]*?", "ä" * 120])
def test_names_that_are_long_or_look_like_patterns(tmp_path, name):
    for _ in range(2):
        write_file(tmp_path / name, b"content")
        with replaced_folder(tmp_path / "below" / name, HOLDS) as new:
            fill(new)
    drop_folder(tmp_path / "below" / name)
    assert names(tmp_path) == {"below", name}


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as told:
        write_file(tmp_path / "a", b"content")
    assert told.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError) as told, replaced_folder(tmp_path / "f", HOLDS) as new:
        fill(new)
    assert told.value.filename == str(tmp_path / "f")
    assert names(tmp_path) == set()


def test_an_error_without_a_name_is_the_folders(tmp_path):
    """As one of a buffer that a full disk does not take when the file is closed."""
    with pytest.raises(OSError) as told, replaced_folder(tmp_path / "f", HOLDS):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert told.value.filename == str(tmp_path / "f")


def test_an_error_names_what_is_to_be_written(tmp_path):
    """Not the temporary name, nor nothing where a relative path has no folder left."""
    (tmp_path / "f").mkdir()
    with pytest.raises(OSError) as told, replaced_folder(tmp_path / "f", HOLDS) as new:
        (new / "a" / "b").write_text("")
    assert told.value.filename == str(tmp_path / "f" / "a" / "b")
    with pytest.raises(InputError, match=r"below/f: cannot be written"):
        (tmp_path / "below").write_text("")
        with replaced_folder(tmp_path / "below" / "f", HOLDS):
            pass
