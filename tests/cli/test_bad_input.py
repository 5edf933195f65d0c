"""Wrong input ends with status 2 and one line that names what is wrong."""

import subprocess
import sys

import pytest
import torch

from fastkd.__main__ import main
from fastkd.train.trainer import Trainer


def complaint(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines and "Traceback" not in "".join(lines)
    return lines[-1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "empty"),
        ("run: [", "not valid YAML"),
        ("runn: 3", "unknown key; did you mean run?"),
        ("run: r", "data: required"),
        ("[1, 2]", "expected a mapping"),
        ("\x00", "not valid YAML"),
    ],
)
def test_config_files(shop, capsys, content, expected):
    path = shop.folder / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    assert shop.run("train", str(path)) == 2
    line = complaint(capsys)
    assert expected in line and "bad.yaml" in line


def test_no_such_config(shop, capsys):
    assert shop.run("train", "nowhere.yaml") == 2
    assert "nowhere.yaml" in complaint(capsys)


def test_config_that_is_no_text(shop, capsys):
    path = shop.folder / "bad.yaml"
    path.write_bytes(b"run: \xff\xfe")
    assert shop.run("train", str(path)) == 2
    assert "not UTF-8" in complaint(capsys)


@pytest.mark.parametrize("verb", [["translate"], ["average"], ["score"]])
def test_folder_that_is_no_run(shop, capsys, verb):
    arguments = [*verb, str(shop.folder), *(["test"] if verb == ["score"] else [])]
    assert shop.run(*arguments) == 2
    assert "not a run folder" in complaint(capsys)


def test_what_is_there_instead_of_a_run(taught, capsys):
    teacher = taught.folder / "teacher"
    for path, expected in (
        (teacher.with_name("teachr"), f"no such run; did you mean {teacher}?"),
        (teacher / "run", "no such run; expected a folder that fastkd train has made"),
        (teacher / "config.yaml", "a file; expected a run's folder"),
    ):
        assert taught.run("score", str(path), "test") == 2
        assert expected in complaint(capsys)


def test_a_teacher_that_is_not_trained_yet(shop, capsys):
    assert shop.run("prepare", shop.config("student")) == 0
    config = shop.config("student", teacher={"run": "runs/missing"})
    assert shop.run("train", config) == 2
    assert "teacher.run: runs/missing: no such run" in complaint(capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["score", "run", "tset"], "score: invalid value for"),
        (["score", "run"], "score: missing argument"),
        (["score", "run", "test", "--bem", "3"], "Did you mean '--beam'?"),
        (["translate", "run", "file"], "translate: got unexpected extra argument (file)"),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, arguments, expected):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastkd: ") and expected in line
    assert line.endswith(f"fastkd {arguments[0]} --help shows the arguments")


@pytest.mark.parametrize(
    ("missing", "arguments", "expected"),
    [
        (
            "fastkd.cli.runs",
            ["runs"],
            "this installation of fastkd lacks its module fastkd.cli.runs",
        ),
        ("sacrebleu", ["score", "run", "test"], "sacrebleu; expected: pip install 'fastkd[train]'"),
        ("transformers", ["memory", "config.json"], "expected: pip install 'fastkd[transformers]'"),
    ],
)
def test_a_module_that_is_not_there(tmp_path, missing, arguments, expected):
    (tmp_path / "config.json").write_text("{}")
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from fastkd.__main__ import main; sys.exit(main({arguments}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1 and expected in run.stderr


def test_a_run_that_ends_while_its_learning_rate_rises(shop, capsys, caplog):
    config = shop.config("run", training={"optimizer": {"warmup": 500}})
    assert shop.run("prepare", config) == 0
    assert shop.run("train", config) == 0
    assert "training.optimizer.warmup: 500 updates, but the run has" in caplog.text


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-le"])
def test_text_of_wide_characters(shop, capsys, coding):
    """Without a mark its bytes are UTF-8 too, and its lines others."""
    file = shop.folder / "train.de"
    file.write_bytes(file.read_text(encoding="utf-8").encode(coding))
    assert shop.run("prepare", shop.config("run")) == 2
    line = complaint(capsys)
    assert "train.de: not UTF-8 but, by its mark or null bytes, UTF-16" in line


def test_score_that_cannot_be_written_translates_nothing(taught, capsys, monkeypatch):
    monkeypatch.setattr("fastkd.runs.translation.translate_split", None)
    run, output = str(taught.folder / "teacher"), str(taught.folder / "nowhere" / "file")
    assert taught.run("score", run, "test", "-o", output) == 2
    assert f"{output}: cannot be written" in complaint(capsys)


def test_corpus_with_unequal_lines(shop, capsys):
    with open(shop.folder / "train.de", "a", encoding="utf-8") as file:
        file.write("noch einer\n")
    assert shop.run("prepare", shop.config("run")) == 2
    line = complaint(capsys)
    assert "61" in line and "60" in line and "train" in line


def test_training_before_preparing(shop, capsys):
    assert shop.run("train", shop.config("run")) == 2
    assert "fastkd prepare" in complaint(capsys)


def test_teacher_with_another_tokenizer(taught, shop, capsys):
    config = shop.config(
        "student",
        tokenizer={"vocabulary": 30},
        teacher={"run": str(taught.folder / "teacher")},
        losses=[{"name": "word_kd"}],
    )
    assert shop.run("prepare", config) == 0
    assert shop.run("train", config) == 2
    assert "another tokenizer" in complaint(capsys)


def test_teacher_that_is_not_there(taught, tmp_path, capsys):
    config = taught.config(
        "orphan", run=str(tmp_path / "orphan"), teacher={"run": "nowhere"}, losses=[{"name": "a2d"}]
    )
    assert taught.run("train", config) == 2
    assert "nowhere" in complaint(capsys)


def test_other_settings_in_an_existing_run_folder(taught, capsys):
    config = taught.config("again", run=str(taught.folder / "teacher"), model={"width": 32})
    assert taught.run("train", config) == 2
    assert "other settings" in complaint(capsys)


def test_batch_smaller_than_a_sentence(taught, tmp_path, capsys):
    config = taught.config("small", run=str(tmp_path / "small"))
    assert taught.run("train", config, "training.batch_tokens=2") == 2
    assert "batch_tokens" in complaint(capsys)


@pytest.mark.parametrize(
    "option", ["--length-penalty=nan", "--length-penalty=1e300", "--beam=9999"]
)
def test_search_that_cannot_be(taught, capsys, option):
    run = str(taught.folder / "teacher")
    assert taught.run("translate", run, option) == 2
    line = complaint(capsys)
    assert option[2:].partition("=")[0].replace("-", "_") in line and "expected" in line


def test_model_larger_than_the_memory(taught, tmp_path, capsys):
    config = taught.config("large", run=str(tmp_path / "large"))
    large = ["model.width=65536", "model.ffn=65536", "model.decoder_layers=1024"]
    assert taught.run("train", config, *large) == 2
    assert "model: expected a model that fits" in complaint(capsys)
    assert not (tmp_path / "large").exists()


def test_memory_that_runs_out(taught, tmp_path, capsys, monkeypatch):
    def grow(*arguments):
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(Trainer, "_update", grow)
    config = taught.config("grown", run=str(tmp_path / "grown"))
    assert taught.run("train", config) == 1
    line = complaint(capsys)
    assert "out of memory" in line and "training.batch_tokens" in line


def test_unknown_verb_and_option(shop, capsys):
    assert shop.run("trian") == 2
    assert shop.run("train", "--nonsense") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_of_every_verb(shop, capsys):
    assert shop.run("--help") == 0
    verbs = [
        line.split()[0]
        for line in capsys.readouterr().out.split("Commands:")[1].splitlines()
        if line
    ]
    assert {"prepare", "train", "translate", "score", "average"} <= set(verbs)
    for verb in verbs:
        assert shop.run(verb, "--help") == 0


def test_as_a_process():
    command = [sys.executable, "-m", "fastkd", "train", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == "fastkd: nowhere.yaml: no such config file, nor a recipe of that name"
    )


def test_losses_import_without_the_trainer_packages():
    code = (
        "import sys; import fastkd, fastkd.functional, fastkd.modules;"
        "bad = {'pydantic', 'click', 'rich', 'sentencepiece', 'sacrebleu', 'yaml', 'matplotlib'}"
        " & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_misspelt_verb(capsys):
    assert main(["trian", "x"]) == 2
    assert "no such verb: 'trian'; did you mean train?" in capsys.readouterr().err


def test_what_prepare_was_given_is_named(shop, capsys):
    config = shop.config("run")
    assert shop.run("prepare", config, "data.max_length=50", "tokenizer.vocabulary=31") == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == "fastkd train needs the same: data.max_length=50 tokenizer.vocabulary=31"
    assert shop.run("train", config) == 2
    assert "expected data.max_length=50 here too, or run: fastkd prepare CONFIG" in complaint(
        capsys
    )
    assert shop.run("train", config, *told.rpartition(": ")[2].split()) == 0


def test_a_warning_tells_whose_it_is():
    code = (
        "import logging\nfrom fastkd.cli.app import app\napp(['--version'])\n"
        "for name in ('fastkd.runs', 'other.part'): logging.getLogger(name).warning('of %s', name)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.splitlines()[-2:] == [
        "fastkd: WARNING: of fastkd.runs",
        "other: WARNING: of other.part",
    ]
