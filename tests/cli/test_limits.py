"""Each limit that a run may meet ends it with one clear line and the right exit status."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from fastkd.files import write_file


def complaint(capsys) -> str:
    """The one line that is said."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastkd: ")]
    assert len(lines) == 1 and "FASTKD_TRACEBACK" not in lines[0]
    return lines[0]


@pytest.fixture
def config(taught, tmp_path):
    """The config of a new run over a copy of the prepared corpus."""
    shutil.copytree(taught.folder / "prepared", tmp_path / "prepared")
    data = {"prepared": str(tmp_path / "prepared")}
    return taught.config("limits", run=str(tmp_path / "run"), data=data)


def test_training_sentences_longer_than_the_model(taught, config, tmp_path, capsys):
    assert taught.run("train", config, "model.max_positions=9") == 2
    line = complaint(capsys)
    assert "model.max_positions = 9" in line and "data.max_length = 256" in line
    assert not (tmp_path / "run").exists()


def test_dev_sentences_longer_than_the_model(shop, capsys):
    with open(shop.folder / "dev.de", "a") as source, open(shop.folder / "dev.dsb", "a") as target:
        source.write("katze " * 60 + "\n")
        target.write("kocka\n")
    config = shop.config("run", model={"max_positions": 40})
    assert shop.run("prepare", config) == 0
    assert shop.run("train", config) == 2
    line = complaint(capsys)
    assert "model.max_positions = 40" in line and "line 7" in line and "dev" in line


def test_longer_training_pairs_are_dropped_and_counted(shop, capsys):
    with open(shop.folder / "train.de", "a") as source, open(shop.folder / "train.dsb", "a") as t:
        source.write("katze " * 30 + "\n")
        t.write("kocka\n")
    config = shop.config("run", data={"max_length": 30})
    assert shop.run("prepare", config) == 0
    assert "dropped: 1 too long" in capsys.readouterr().out


def test_batch_budget_below_a_sentence(taught, config, capsys):
    assert taught.run("train", config, "training.batch_tokens=3") == 2
    line = complaint(capsys)
    assert "training.batch_tokens = 3" in line and "expected at least" in line


def test_vocabulary_that_is_too_large_for_the_text(shop, capsys):
    config = shop.config("run", tokenizer={"vocabulary": 5000})
    assert shop.run("prepare", config) == 2
    assert "tokenizer.vocabulary = 5,000" in complaint(capsys)


def test_corpus_of_another_vocabulary(taught, shop, capsys):
    config = shop.config("run", tokenizer={"vocabulary": 30})
    assert shop.run("prepare", config) == 0
    tokenizer = shop.folder / "prepared" / "tokenizer"
    shutil.rmtree(tokenizer)
    shutil.copytree(taught.folder / "prepared" / "tokenizer", tokenizer)
    assert shop.run("train", config) == 2
    assert "encoded with another tokenizer" in complaint(capsys)


@pytest.mark.parametrize("changes", [{"vocabulary": 30}, {"model": "bpe"}])
def test_run_of_another_vocabulary(shop, capsys, changes):
    """Where the corpus was prepared anew under a run that had begun."""
    first = shop.config("run")
    assert shop.run("prepare", first) == 0
    assert shop.run("train", first, "training.updates=1") == 0
    tokenizer = (shop.folder / "run" / "tokenizer" / "joint.model").read_bytes()
    second = shop.config("run", tokenizer=changes)
    assert shop.run("prepare", second) == 0
    capsys.readouterr()
    assert shop.run("train", second) == 2
    assert "another tokenizer" in complaint(capsys)
    assert (shop.folder / "run" / "tokenizer" / "joint.model").read_bytes() == tokenizer


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
@pytest.mark.parametrize("name", ["train/source.tokens", "dev/target.offsets"])
def test_corrupt_memory_map(taught, config, tmp_path, capsys, name, damage):
    file = tmp_path / "prepared" / name
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[10] ^= 1
        file.write_bytes(content[:-3] if damage == "cut" else content)
    assert taught.run("train", config) == 2
    line = complaint(capsys)
    assert "the prepared corpus is damaged" in line and str(file.parent) in line
    assert "prepare it again" in line


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_read_only_run_folder(taught, config, tmp_path, capsys, monkeypatch, number):
    (tmp_path / "run").mkdir()

    def refuse(path, content):
        if path.is_relative_to(tmp_path / "run"):
            raise OSError(number, os.strerror(number), str(path))
        write_file(path, content)

    for module in ("fastkd.runs.folder", "fastkd.data.tokenizer"):
        monkeypatch.setattr(f"{module}.write_file", refuse)
    assert taught.run("train", config) == 2
    line = complaint(capsys)
    assert str(tmp_path / "run") in line and os.strerror(number) in line


def test_run_folder_that_is_a_file(taught, config, tmp_path, capsys):
    (tmp_path / "run").write_text("")
    assert taught.run("train", config) == 2
    assert str(tmp_path / "run") in complaint(capsys)


def limited(bytes_at_most):
    """Lets no file grow beyond a size, as a full disk does with real writes that fail half-way."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_at_most, bytes_at_most))

    return limit


def as_process(code, *arguments, **options):
    """The command line after some code, in a process of its own; its status and last line."""
    program = f"{code}\nimport sys\nfrom fastkd.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, **options
    )
    assert "Traceback" not in done.stderr and "FASTKD_TRACEBACK" not in done.stderr, done.stderr
    return done.returncode, (done.stderr.splitlines() or [""])[-1]


@pytest.mark.slow
@pytest.mark.parametrize("bytes_at_most", [500, 4000, 20_000])
def test_full_disk(taught, config, tmp_path, bytes_at_most):
    status, line = as_process("", "train", config, preexec_fn=limited(bytes_at_most))
    assert status in (1, 2)
    assert "File too large" in line and str(tmp_path / "run") in line
    assert taught.run("train", config) == 0


@pytest.mark.slow
def test_no_triton(taught, config, tmp_path):
    absent = "import sys; sys.modules['triton'] = None"
    losses = [{"name": "cross_entropy"}]
    status, line = as_process(absent, "train", config, f"losses={losses}")
    assert status == 0, line
    other = f"run={tmp_path / 'other'}"
    status, line = as_process(absent, "train", config, other, "training.backend=triton")
    assert status == 2
    assert "triton" in line


OLD = """
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "{version}" if name == "torch" else real(name)
"""


@pytest.mark.parametrize("version", ["2.10.1", "1.13.0+cu117"])
def test_old_torch(version):
    status, line = as_process(OLD.format(version=version), "train", "nowhere.yaml")
    assert status == 1
    assert line.startswith(f"fastkd: needs PyTorch 2.11 or newer, not {version}")


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0a0+git1234", "3.0", "2.100.1+cpu"])
def test_new_torch(version):
    status, line = as_process(OLD.format(version=version), "train", "nowhere.yaml")
    assert status == 2
    assert "nowhere.yaml" in line


@pytest.mark.parametrize("package", ["torch", "pydantic", "sentencepiece"])
def test_missing_packages(taught, config, package):
    absent = f"import sys; sys.modules['{package}'] = None"
    status, line = as_process(absent, "train", config)
    assert status == 1
    assert package in line and "pip install" in line
