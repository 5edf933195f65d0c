"""A student that learns from its teacher's cached pieces."""

import pytest

from tests.cli.logs import assert_same_log, log

STUDENT = {"encoder_layers": 1, "decoder_layers": 1, "width": 8, "dropout": 0.0}
TRAINING = {"updates": 3, "backend": "reference"}


def updates(folder):
    return [record for record in log(folder) if "loss" in record]


@pytest.fixture(scope="module")
def cached(taught):
    """Folders of caches of the taught teacher, by number of ids."""
    folders = {}
    for top_k in (6, 32):
        folders[top_k] = taught.folder / f"cache{top_k}"
        arguments = ["--top-k", str(top_k), "-o", str(folders[top_k])]
        assert taught.run("cache-teacher", str(taught.folder / "teacher"), "train", *arguments) == 0
    return folders


def student(taught, tmp_path, name, teacher, losses):
    return taught.config(
        name,
        run=str(tmp_path / name),
        model=STUDENT,
        training=TRAINING,
        teacher=teacher,
        losses=[{"name": "cross_entropy"}, *losses],
    )


@pytest.mark.parametrize("rest", ["drop", "spread", "renormalize"])
@pytest.mark.parametrize(
    "loss", [{"name": "word_kd", "teacher_temperature": 2.0}, {"name": "tie_kd", "iterations": 1}]
)
def test_whole_vocabulary_equals_the_live_teacher(taught, cached, tmp_path, loss, rest):
    live = student(taught, tmp_path, "live", {"run": str(taught.folder / "teacher")}, [loss])
    listed = student(taught, tmp_path, "listed", {"cache": str(cached[32]), "rest": rest}, [loss])
    for config in (live, listed):
        assert taught.run("train", config) == 0
    assert_same_log(log(tmp_path / "live"), log(tmp_path / "listed"), relative=1e-4)


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "jsd"])
def test_a_cache_read_with_a_tail_serves_every_divergence(taught, cached, tmp_path, divergence):
    loss = {"name": "word_kd", "divergence": divergence, "t_squared": True}
    loss |= {"student_temperature": 2.0}
    live = student(taught, tmp_path, "live", {"run": str(taught.folder / "teacher")}, [loss])
    logs = {}
    for top_k in (32, 6):
        teacher = {"cache": str(cached[top_k]), "rest": "tail"}
        config = student(taught, tmp_path, f"listed{top_k}", teacher, [loss])
        assert taught.run("train", config) == 0
        logs[top_k] = updates(tmp_path / f"listed{top_k}")
    assert taught.run("train", live) == 0
    for one, other in zip(updates(tmp_path / "live"), logs[32], strict=True):
        assert other["word_kd"] == pytest.approx(one["word_kd"], rel=1e-4, abs=1e-5)
    # What is not listed is one outcome, which tells no more than all of them.
    assert 0 < logs[6][0]["word_kd"] < logs[32][0]["word_kd"]


def test_what_is_no_cache_is_not_replaced(taught, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    run = str(taught.folder / "teacher")
    command = ["cache-teacher", run, "train", "--top-k", "4", "-o"]
    assert taught.run(*command, str(tmp_path)) == 2
    assert "would be replaced, but thesis.tex in it is something else" in capsys.readouterr().err
    assert taught.run(*command, run) == 2
    assert "would be replaced" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_corpus_with_another_tokenizer_is_refused(shop, capsys):
    config = shop.config("run")
    assert shop.run("prepare", config) == shop.run("train", config) == 0
    for side in ("de", "dsb"):
        path = shop.folder / f"train.{side}"
        path.write_text(path.read_text().replace("hund", "fuchs").replace("pjas", "liska"))
    assert shop.run("prepare", config) == 0
    assert shop.run("cache-teacher", str(shop.folder / "run"), "train") == 2
    assert "run: has another tokenizer than" in capsys.readouterr().err


def test_few_ids_train(taught, cached, tmp_path):
    loss = {"name": "tie_kd", "iterations": 1, "top_k": 4}
    config = student(taught, tmp_path, "few", {"cache": str(cached[6])}, [loss])
    assert taught.run("train", config) == 0


@pytest.mark.parametrize(
    ("losses", "complaint"),
    [
        ([{"name": "tie_kd", "iterations": 3}], "tie_kd.iterations"),
        ([{"name": "tie_kd", "iterations": 1, "top_k": 7}], "tie_kd.top_k"),
        ([{"name": "a2d"}], "a2d needs teacher.run"),
        ([{"name": "word_kd"}, {"name": "hidden"}], "hidden needs teacher.run"),
    ],
)
def test_losses_that_a_cache_cannot_serve(taught, cached, tmp_path, capsys, losses, complaint):
    config = student(taught, tmp_path, "wrong", {"cache": str(cached[6])}, losses)
    assert taught.run("train", config) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("teacher", [{}, {"run": "a", "cache": "b"}])
def test_a_teacher_is_a_run_or_a_cache(taught, tmp_path, capsys, teacher):
    config = student(taught, tmp_path, "wrong", teacher, [{"name": "word_kd"}])
    assert taught.run("train", config) == 2
    assert "expected either run or cache, and not both" in capsys.readouterr().err


def test_cache_of_another_corpus(cached, shop, capsys):
    train = shop.folder / "train.de"
    train.write_text(train.read_text().replace("hund", "katze"), encoding="utf-8")
    config = shop.config(
        "other",
        tokenizer={"vocabulary": 30},
        teacher={"cache": str(cached[6])},
        losses=[{"name": "word_kd"}],
    )
    assert shop.run("prepare", config) == 0
    assert shop.run("train", config) == 2
    assert "another corpus" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no folder", "no meta", "cut"])
def test_damaged_caches(taught, cached, tmp_path, capsys, damage):
    folder = tmp_path / "cache"
    if damage != "no folder":
        folder.mkdir()
        for file in cached[6].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    if damage == "no meta":
        (folder / "meta.json").unlink()
    if damage == "cut":
        (folder / "ids").write_bytes((folder / "ids").read_bytes()[:-1])
    config = student(taught, tmp_path, "x", {"cache": str(folder)}, [{"name": "word_kd"}])
    assert taught.run("train", config) == 2
    assert "cache" in capsys.readouterr().err


def test_more_ids_than_the_vocabulary(taught, capsys):
    run = str(taught.folder / "teacher")
    assert taught.run("cache-teacher", run, "train", "--top-k", "33") == 2
    assert "at most 32" in capsys.readouterr().err
