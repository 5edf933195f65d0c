"""What is on the disk once a command is done, should the power fail in the next moment.

On a file system of its own, an image mounted by loop that commits nothing by itself for minutes. A
copy of the image is what the disk holds: what was never synced is not in it.
"""

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastkd.__main__ import main
from tests.cli.conftest import checkpoint

SHORT = {"updates": 4, "save_every": 1, "validate_every": 2, "bleu_sentences": 0}


def system(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=60)


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    system("mount", "-o", "loop,commit=300", image, place)
    try:
        yield
    finally:
        system("umount", "--lazy", place)


@pytest.fixture
def disk(tmp_path):
    """A mounted empty file system, and a call that mounts what of it would outlast a power loss."""
    image, place, copies = tmp_path / "image", tmp_path / "disk", []
    with image.open("wb") as file:
        file.truncate(48 << 20)
    try:
        system("mkfs.ext4", "-q", image)
        entered = mounted(image, place)
        entered.__enter__()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"power loss needs a loop mount and ext4: {error}")
    system("sync", "-f", place)

    @contextmanager
    def after_power_loss():
        copy = tmp_path / f"image{len(copies)}"
        copies.append(copy)
        system("cp", "--sparse=always", image, copy)
        with mounted(copy, tmp_path / "later"):
            yield tmp_path / "later"

    yield place, after_power_loss
    entered.__exit__(None, None, None)


def hashes(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.name != ".lock"
    }


COMMANDS = {
    "prepare": ["prepare", "CONFIG", "data.prepared=OUT"],
    "train": ["train", "CONFIG", "run=OUT"],
    "cache-teacher": ["cache-teacher", "RUN", "dev", "--top-k", "4", "-o", "OUT"],
    "translate": ["translate", "RUN", "-i", "TEXT", "-o", "OUT"],
    "translate, packed": ["translate", "RUN", "-i", "TEXT", "-o", "OUT.gz"],
    "score": ["score", "RUN", "test", "-o", "OUT"],
    "distill": ["distill", "RUN", "OUT", "--source", "TEXT"],
    "export to Transformers": ["export", "RUN", "--to", "transformers", "OUT"],
    "export to CTranslate2": ["export", "RUN", "--to", "ctranslate2", "OUT"],
    "import": ["import", "EXPORT", "OUT"],
}


def arguments(taught, command: str, run: Path, out: Path) -> list[str]:
    names = {
        "CONFIG": taught.config("outlasting", training=SHORT),
        "RUN": str(run),
        "TEXT": str(taught.folder / "test.de"),
        "EXPORT": str(taught.folder / "exported"),
        "OUT.gz": f"{out}.gz",
    }
    return [names.get(word, word.replace("OUT", str(out))) for word in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_done_outlasts_a_power_loss(command, taught, disk, tmp_path):
    if "CTranslate2" in command:
        pytest.importorskip("ctranslate2")
    if "Transformers" in command or command == "import":
        pytest.importorskip("transformers")
    place, after_power_loss = disk
    exported = taught.folder / "exported"
    if command == "import" and not exported.exists():
        run = str(taught.folder / "teacher")
        assert main(["export", run, "--to", "transformers", str(exported)]) == 0
    run = shutil.copytree(taught.folder / "teacher", tmp_path / "run")
    assert main(arguments(taught, command, run, place / "out")) == 0
    written = {path.name: hashes(path) for path in place.glob("out*")}
    assert any(written.values())
    with after_power_loss() as later:
        assert {path.name: hashes(path) for path in later.glob("out*")} == written


def test_a_run_is_averaged_in_its_folder(taught, disk):
    place, after_power_loss = disk
    shutil.copytree(taught.folder / "teacher", place / "run")
    system("sync", "-f", place)
    assert main(["average", str(place / "run")]) == 0
    with after_power_loss() as later:
        assert hashes(later / "run") == hashes(place / "run")


def test_a_run_goes_on_after_a_power_loss_at_any_moment(taught, disk, tmp_path):
    """The process stands still while the disk is copied, as a copy takes more than a moment."""
    place, after_power_loss = disk
    straight = str(tmp_path / "straight")
    config = taught.config("lost", training={**SHORT, "updates": 30})
    assert main(["train", config, f"run={straight}"]) == 0
    command = [sys.executable, "-m", "fastkd", "train", config, f"run={place / 'run'}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(place.glob("run/checkpoints/0*")) and process.poll() is None:
            time.sleep(0.01)
        for _ in range(3):
            time.sleep(0.03)
            process.send_signal(signal.SIGSTOP)
            with after_power_loss() as later:
                assert main(["train", config, f"run={later / 'run'}"]) == 0
                resumed = checkpoint(later / "run", 30)
            process.send_signal(signal.SIGCONT)
            wanted = checkpoint(Path(straight), 30)
            assert resumed.keys() == wanted.keys()
            assert all(tensor.equal(wanted[name]) for name, tensor in resumed.items())
        assert process.wait(60) == 0
