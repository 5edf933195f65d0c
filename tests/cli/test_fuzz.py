"""Mutated configs, corpora and run folders: a status and one line, never a traceback or a hang.

Up to 2,000 cases in this process and 50 as processes of their own, as many as there is time for,
the same ones each time; FASTKD_FUZZ_SEED=random draws others. A failure prints the seed:
FASTKD_FUZZ_SEED=SEED meets it again.
"""

import copy
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import hypothesis
import psutil
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastkd.__main__ import main
from fastkd.config.load import dump_config, load_config
from fastkd.train.trainer import Trainer
from tests.cli.conftest import CMLM
from tests.drawn import within

CHOSEN = os.environ.get("FASTKD_FUZZ_SEED", "1")
SEED = random.randrange(2**32) if CHOSEN == "random" else int(CHOSEN)
ROOM = 4 << 30
PATIENCE = 300  # seconds, of which a case takes about one

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.integers(1, 62).map(lambda power: 2**power),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(st.characters(exclude_characters="/"), max_size=5),
    st.just([]),
    st.just({}),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2),
)
# Where a file is changed, what comes there, and how many bytes go.
DAMAGE = st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 60))


@pytest.fixture(autouse=True)
def told_seed():
    print(f"FASTKD_FUZZ_SEED={SEED}")


@pytest.fixture(autouse=True)
def limited_memory():
    """A case that wants more than a few GiB does not get them, instead of the whole machine's."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def cases(count, seconds):
    """Runs a test on so many examples, or as many as there is time for."""
    options = settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        database=None,
    )

    def drawn(test):
        test = hypothesis.seed(SEED)(options(test))
        test.hypothesis.inner_test = within(seconds, test.hypothesis.inner_test)
        return test

    return drawn


def places(tree, path=()):
    """Paths of all nodes of a tree of mappings and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def mutate(tree, path, how, junk):
    tree = copy.deepcopy(tree)
    node = tree
    for part in path[:-1]:
        node = node[part]
    if how == "replace":
        node[path[-1]] = junk
    elif how == "remove":
        del node[path[-1]]
    elif isinstance(node, dict):
        node[f"{path[-1]}{junk}"] = node.pop(path[-1])
    else:
        node.append(junk)
    return tree


def damaged(content, damage):
    where, inserted, removed = damage
    place = int(where * len(content))
    return content[:place] + inserted + content[place + removed :]


class HangError(BaseException):
    """A case that does not end; no handler of exceptions takes it for something else."""


@contextmanager
def ending():
    def stop(number, frame):
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(capsys, *arguments):
    """Runs a verb; what it says must be for people."""
    capsys.readouterr()
    with ending():
        status = main([str(argument) for argument in arguments])
    judge(status, capsys.readouterr().err)


def judge(status, error):
    assert status in (0, 1, 2), error
    assert "Traceback" not in error
    # The last resort for what nobody foresaw; a case that gets there deserves an answer of its own.
    assert "FASTKD_TRACEBACK" not in error, error


@pytest.fixture(scope="module")
def trees(masked):
    """Configs of two students that between them have every key, each with its value."""
    training = {"updates": 1, "bleu_sentences": 1}
    autoregressive = masked.config(
        "fuzz",
        model={"max_positions": 40},
        training=training,
        teacher={"run": str(masked.folder / "teacher")},
        losses=[{"name": n} for n in ("cross_entropy", "word_kd", "tie_kd", "a2d", "hidden")],
    )
    one = yaml.safe_load(dump_config(load_config(autoregressive)))
    other = masked.config(
        "fuzz",
        model=CMLM,
        training=training,
        start={"run": str(masked.folder / "masked")},
        teacher={"run": str(masked.folder / "masked"), "checkpoint": "last"},
        losses=[{"name": n} for n in ("masked_cross_entropy", "length", "dims", "a2d")],
    )
    return one, yaml.safe_load(dump_config(load_config(other)))


@pytest.fixture(scope="module")
def tree(trees):
    return trees[0]


@pytest.mark.slow
def test_mutated_configs(masked, trees, tmp_path, capsys, monkeypatch):
    """Each is trained; what makes a corpus is also prepared, what decoding needs translated."""
    path, planned = tmp_path / "fuzz.yaml", Trainer.planned_updates
    # A config that lost its budget has the default one, which is no hang but long.
    monkeypatch.setattr(Trainer, "planned_updates", lambda trainer: min(2, planned(trainer)))
    monkeypatch.chdir(tmp_path)  # for what is written to a mutated path
    source, run = tmp_path / "source.txt", tmp_path / "run"
    source.write_text("ein hund\n", encoding="utf-8")
    nodes = [(tree, node) for tree in trees for node in places(tree) if node[0] != "run"]

    @cases(500, seconds=300)
    @given(st.sampled_from(nodes), st.sampled_from(["replace", "remove", "rename"]), JUNK)
    def case(chosen, how, junk):
        tree, node = chosen
        mutated = {**mutate(tree, node, how, junk), "run": str(run)}
        path.write_text(yaml.safe_dump(mutated), encoding="utf-8")
        check(capsys, "train", path)
        shutil.rmtree(run, ignore_errors=True)
        if node[0] in ("data", "tokenizer"):
            if node != ("data", "prepared") and isinstance(mutated.get("data"), dict):
                mutated["data"]["prepared"] = str(run)
            path.write_text(yaml.safe_dump(mutated), encoding="utf-8")
            check(capsys, "prepare", path)
        elif node[0] in ("decoding", "model"):
            name = "teacher" if tree is trees[0] else "masked"
            shutil.copytree(masked.folder / name, run)
            (run / "config.yaml").write_text(yaml.safe_dump(mutated), encoding="utf-8")
            check(capsys, "translate", run, "-i", source, "-o", tmp_path / "out.txt")
        shutil.rmtree(run, ignore_errors=True)

    case()


def test_mutated_yaml_text(taught, tree, tmp_path, capsys):
    text = yaml.safe_dump(tree).encode()
    path = tmp_path / "fuzz.yaml"

    @cases(800, seconds=60)
    @given(st.integers(0, len(text) - 1), st.binary(max_size=4), st.integers(0, 6))
    def run(place, inserted, removed):
        path.write_bytes(text[:place] + inserted + text[place + removed :])
        check(capsys, "train", path, "training.updates=0")

    run()


@pytest.mark.slow
def test_mutated_overrides(taught, tree, tmp_path, capsys):
    path = tmp_path / "fuzz.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")

    @cases(400, seconds=60)
    @given(st.text(max_size=12), st.sampled_from([".".join(map(str, n)) for n in places(tree)]))
    def run(text, key):
        for override in (text, f"{key}.{text}", f"{text}={key}"):
            # Kept from being an option, and from training where it happens to be fine.
            check(capsys, "train", path, "training.updates=0", "--", override)

    run()


def test_mutated_corpora(shop, capsys):
    config = shop.config("run")
    original = {path: path.read_bytes() for path in shop.folder.glob("*.d*")}

    @cases(150, seconds=60)
    @given(st.sampled_from(sorted(original)), DAMAGE, st.booleans())
    def run(file, damage, packed):
        for path, content in original.items():
            path.with_name(f"{path.name}.gz").unlink(missing_ok=True)
            path.write_bytes(content)
        if packed:
            file.unlink()
            file.with_name(f"{file.name}.gz").write_bytes(damaged(original[file], damage))
        else:
            file.write_bytes(damaged(original[file], damage))
        check(capsys, "prepare", config)

    run()


@pytest.fixture
def copied(taught, tmp_path):
    """Copies of a run and of its prepared corpus, the config of both, and what restores them."""
    run, prepared = tmp_path / "teacher", tmp_path / "prepared"

    def restore():
        for folder in (run, prepared):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(taught.folder / folder.name, folder)

    restore()
    config = taught.config("fuzz", run=str(run), data={"prepared": str(prepared)})
    files = sorted(p for folder in (run, prepared) for p in folder.rglob("*") if p.is_file())
    return run, config, files, restore


@pytest.mark.slow
def test_mutated_run_folders(copied, tmp_path, capsys):
    """Every file of a run and of a prepared corpus in turn, cut, changed or gone."""
    run, config, files, restore = copied
    source = tmp_path / "source.txt"
    source.write_text("ein hund\n", encoding="utf-8")

    @cases(150, seconds=200)
    @given(st.sampled_from(files), st.one_of(st.none(), DAMAGE))
    def case(file, damage):
        restore()
        spoil(file, damage)
        check(capsys, "translate", run, "-i", source, "-o", tmp_path / "out.txt")
        check(capsys, "train", config, "training.updates=4")

    case()


def spoil(file, damage):
    """Changes a file; without damage it is gone."""
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damaged(file.read_bytes(), damage))


@pytest.mark.slow
def test_as_processes(tree, copied, tmp_path):
    """Configs, corpora and run folders, each broken in some way."""
    run, config, files, restore = copied
    fuzzed, source = tmp_path / "fuzz.yaml", tmp_path / "source.txt"
    source.write_text("ein hund\n", encoding="utf-8")
    text, new = yaml.safe_dump(tree).encode(), f"run={tmp_path / 'new'}"
    done = 0

    def execute(*arguments):
        nonlocal done
        done += 1
        words = [sys.executable, "-m", "fastkd", *arguments]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
        judge(ended.returncode, ended.stderr)

    @cases(50, seconds=400)
    @given(
        st.sampled_from(["text", "mapping", "folder", "resume"]),
        st.sampled_from([node for node in places(tree) if node[0] != "run"]),
        JUNK,
        st.sampled_from(files),
        st.one_of(st.none(), DAMAGE),
    )
    def case(what, node, junk, file, damage):
        if what == "text":
            fuzzed.write_bytes(damaged(text, damage or (0, b"", 1)))
            execute("train", str(fuzzed), new, "training.updates=1")
        elif what == "mapping":
            mutated = mutate(yaml.safe_load(text), node, "replace", junk)
            fuzzed.write_text(yaml.safe_dump(mutated), encoding="utf-8")
            execute("train", str(fuzzed), new, "training.updates=1")
        else:
            restore()
            spoil(file, damage)
            if what == "folder":
                execute("translate", str(run), "-i", str(source), "--beam", "1")
            else:
                execute("train", config, "training.updates=5")
        shutil.rmtree(tmp_path / "new", ignore_errors=True)

    case()
    assert done >= 10
