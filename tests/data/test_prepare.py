import json
import shutil

import pytest

from fastkd.data import prepare as module
from fastkd.data.prepare import open_prepared, prepare
from fastkd.data.tokenizer import Tokenizers
from fastkd.errors import InputError


def files_of(folder):
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_prepared_corpus_opens_as_it_was_reported(config_of, tmp_path):
    seen = []
    report = prepare(config_of(), lambda stage, done, total: seen.append((stage, done, total)))
    prepared = open_prepared(config_of())
    assert [report.splits[name].pairs for name in ("train", "dev", "test")] == [300, 20, 10]
    assert (len(prepared.train), len(prepared.dev), len(prepared.test)) == (300, 20, 10)
    assert report.splits["train"].source_tokens == prepared.train.source_lengths.sum()
    assert report.splits["dev"].target_tokens == prepared.dev.target_lengths.sum()
    assert report.vocabulary == (60, 60)
    assert report.joint
    assert not report.reused
    assert {("tokenizer", 0, 300), ("train", 300, 300), ("test", 10, 10)} <= set(seen)
    assert prepared.tokenizers.sha256 == Tokenizers.load(tmp_path / "prepared").sha256
    assert report.lines()[1].startswith("train: 300 pairs of ")


def test_raw_lines_are_those_of_the_files(config_of, tmp_path):
    prepare(config_of())
    prepared = open_prepared(config_of())
    dev = [(tmp_path / f"dev.{side}").read_text().splitlines() for side in ("aa", "bb")]
    assert prepared.lines("dev") == prepared.dev_lines() == tuple(dev)
    assert prepared.dev_lines(3) == (dev[0][:3], dev[1][:3])
    assert prepared.dev_lines(1000) == tuple(dev)
    assert len(prepared.lines("test")[0]) == 10
    with pytest.raises(InputError, match="no split 'train'; expected dev or test"):
        prepared.lines("train")
    (tmp_path / "dev.aa").write_text("one\n")
    (tmp_path / "dev.bb").write_text("two\n")
    with pytest.raises(InputError, match=r"dev\.aa has changed since it was prepared"):
        prepared.dev_lines()


def test_test_may_be_left_out(config_of):
    report = prepare(config_of(test=None))
    prepared = open_prepared(config_of(test=None))
    assert prepared.test is None
    assert list(report.splits) == ["train", "dev"]
    with pytest.raises(InputError, match="no split 'test'; expected dev"):
        prepared.lines("test")


def test_training_pairs_are_dropped_and_dev_lines_kept(config_of, tmp_path):
    for split in ("train", "dev"):
        for side in ("aa", "bb"):
            path = tmp_path / f"{split}.{side}"
            lines = path.read_text().splitlines()
            lines[0], lines[1] = ("" if side == "bb" else "ba"), "ba " * 100
            path.write_text("\n".join(lines))
    report = prepare(config_of(max_length=80))
    assert report.splits["train"].dropped == {"empty": 1, "too long": 1}
    assert report.splits["train"].pairs == 298
    assert report.splits["dev"].pairs == 20
    assert open_prepared(config_of(max_length=80)).dev.source_lengths[1] >= 100
    assert report.lines()[1].endswith("; dropped: 1 empty, 1 too long")


def test_unchanged_inputs_are_reused_and_changed_ones_are_not(config_of, tmp_path):
    prepare(config_of())
    before = files_of(tmp_path / "prepared")
    report = prepare(config_of())
    assert report.reused
    assert files_of(tmp_path / "prepared") == before
    text = (tmp_path / "train.bb").read_text()
    (tmp_path / "train.bb").write_text(text.replace("ba", "ab", 1))
    report = prepare(config_of())
    assert not report.reused
    assert files_of(tmp_path / "prepared").keys() == before.keys()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"max_length": 99},
            r"data\.max_length = 256, but .* 99; expected data\.max_length=256 here too",
        ),
        ({"tokenizer": {"vocabulary": 55}}, r"tokenizer\.vocabulary = 60, but .* 55; .* here too"),
        ({"test": None}, r"data\.test = .*, but the config says None; .* here too"),
    ],
)
def test_another_config_is_refused_until_prepared_for(config_of, changed, message):
    prepare(config_of())
    with pytest.raises(
        InputError, match=rf"prepared: prepared with {message}, or run: fastkd prep"
    ):
        open_prepared(config_of(**changed))
    assert not prepare(config_of(**changed)).reused
    open_prepared(config_of(**changed))
    with pytest.raises(InputError, match="but the config says"):
        open_prepared(config_of())


def test_what_is_not_prepared_says_which_command_to_run(config_of):
    with pytest.raises(InputError, match="prepared: not prepared yet; run: fastkd prepare CONFIG"):
        open_prepared(config_of())


def test_what_is_prepared_stays_until_another_is_complete(config_of, tmp_path):
    prepare(config_of())
    before = files_of(tmp_path / "prepared")

    def stop_in_dev(stage, done, total):
        if stage == "dev":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config_of(max_length=99), stop_in_dev)
    with pytest.raises(InputError, match="no training pair is left"):
        prepare(config_of(max_length=1))
    assert files_of(tmp_path / "prepared") == before
    assert prepare(config_of()).reused
    assert not list(tmp_path.glob(".*"))


def test_what_is_not_a_prepared_corpus_is_not_replaced(config_of, tmp_path):
    folder = tmp_path / "prepared" / "train"
    folder.mkdir(parents=True)
    (folder / "all.de").write_text("mine")
    with pytest.raises(InputError, match=r"prepared: would be replaced, but train/all\.de in it"):
        prepare(config_of())
    assert [path.name for path in tmp_path.rglob("all.de")] == ["all.de"]


@pytest.mark.parametrize("part", ["train/source.tokens", "tokenizer/joint.model", "prepared.json"])
def test_damage_is_recognised_and_preparing_again_repairs_it(config_of, tmp_path, part):
    prepare(config_of())
    path = tmp_path / "prepared" / part
    path.write_bytes(path.read_bytes()[:-1] if part != "prepared.json" else b"{}")
    with pytest.raises(InputError, match=r"damaged|not a sentencepiece model|another tokenizer"):
        open_prepared(config_of())
    assert not prepare(config_of()).reused
    open_prepared(config_of())


def test_parts_of_two_preparations_do_not_mix(config_of, tmp_path):
    prepare(config_of())
    other = config_of(tokenizer={"vocabulary": 50}, prepared=str(tmp_path / "other"))
    prepare(other)
    shutil.rmtree(tmp_path / "prepared" / "dev")
    shutil.copytree(tmp_path / "other" / "dev", tmp_path / "prepared" / "dev")
    with pytest.raises(InputError, match="dev: encoded with another tokenizer"):
        open_prepared(config_of())


def test_another_runs_tokenizer_is_taken(config_of, tmp_path):
    run = tmp_path / "teacher"
    prepare(config_of())
    open_prepared(config_of()).tokenizers.save(run)
    student = config_of(tokenizer=str(run), prepared=str(tmp_path / "student"), max_length=100)
    assert not prepare(student).reused
    assert open_prepared(student).tokenizers.sha256 == Tokenizers.load(run).sha256
    assert prepare(student).reused
    with pytest.raises(InputError, match="tokenizer of another run, but the config asks to train"):
        open_prepared(config_of(prepared=str(tmp_path / "student"), max_length=100))


def test_a_student_shares_the_folder_of_its_teachers_tokenizer(config_of, tmp_path):
    prepare(config_of())
    open_prepared(config_of()).tokenizers.save(tmp_path / "teacher")
    student = config_of(tokenizer=str(tmp_path / "teacher"))
    assert prepare(student).reused
    assert open_prepared(student).tokenizers.sha256 == open_prepared(config_of()).tokenizers.sha256


def test_a_folder_with_another_tokenizer_is_refused(config_of, tmp_path):
    prepare(config_of())
    other = config_of(tokenizer={"vocabulary": 50}, prepared=str(tmp_path / "other"))
    prepare(other)
    with pytest.raises(InputError, match=r"another tokenizer than that of .*other; expected"):
        open_prepared(config_of(tokenizer=str(tmp_path / "other")))


def test_a_run_without_tokenizer_names_the_key(config_of, tmp_path):
    with pytest.raises(InputError, match=r"^tokenizer: .*nowhere: holds no tokenizer"):
        prepare(config_of(tokenizer=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "dev.bb").unlink(), r"dev\.bb: no such file"),
        (lambda f: (f / "test.aa").write_bytes(b"\xff\n" * 10), r"test\.aa: line 1 is not UTF-8"),
        (lambda f: (f / "train.aa").write_text("one\n"), "has 1 lines and .* has 300; expected"),
        (lambda f: [(f / f"dev.{s}").write_text("") for s in ("aa", "bb")], "are empty"),
        (
            lambda f: (f / "prepared").write_text(""),
            r"prepared: cannot be written: Not a directory",
        ),
    ],
)
def test_wrong_inputs_are_refused(config_of, tmp_path, spoil, message):
    config = config_of()
    spoil(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        prepare(config)
    assert "\n" not in str(error.value)


def test_no_training_pair_left_is_an_error(config_of, tmp_path):
    message = r"train\.aa: no training pair is left of 300 \(0 empty, 300 too long\)"
    with pytest.raises(InputError, match=message):
        prepare(config_of(max_length=1))
    with pytest.raises(InputError, match="not prepared yet"):
        open_prepared(config_of(max_length=1))


def test_another_format_is_refused(config_of, tmp_path):
    prepare(config_of())
    path = tmp_path / "prepared" / "prepared.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match="written by another version"):
        open_prepared(config_of())


@pytest.mark.parametrize("file", ["train.aa", "train.bb", "dev.bb", "test.aa"])
def test_a_text_that_changed_after_preparing_is_noticed(config_of, tmp_path, file):
    config = config_of()
    prepare(config)
    text = (tmp_path / file).read_text(encoding="utf-8")
    (tmp_path / file).write_text(text, encoding="utf-8")  # another time, the same content
    open_prepared(config)
    (tmp_path / file).write_text(text[1:].replace("\n", "x\n", 1), encoding="utf-8")
    with pytest.raises(InputError, match=rf"{file}: has changed since it was prepared; run: fast"):
        open_prepared(config)
    prepare(config)
    open_prepared(config)
    (tmp_path / file).unlink()
    assert len(open_prepared(config).train) > 0


def older(folder):
    """Makes the folder one of before the tokenizer had these keys."""
    path = folder / "prepared.json"
    manifest = json.loads(path.read_text())
    for key in ("normalization", "source_normalization", "byte_fallback"):
        del manifest["made_from"][f"tokenizer.{key}"]
    del manifest["stamps"]
    path.write_text(json.dumps(manifest))


def test_what_was_prepared_before_keeps_its_normalization(config_of, tmp_path, caplog):
    before = config_of({"vocabulary": 60, "normalization": "nmt_nfkc"})
    prepare(before)
    older(tmp_path / "prepared")
    open_prepared(before)
    assert not caplog.records
    sha256 = open_prepared(config_of()).tokenizers.sha256
    assert "keeps tokenizer.normalization=nmt_nfkc" in caplog.text
    assert prepare(config_of()).reused
    assert open_prepared(config_of()).tokenizers.sha256 == sha256
    other = {"vocabulary": 60, "normalization": "nfc"}
    with pytest.raises(InputError, match=r"normalization = nmt_nfkc, but the config says nfc"):
        open_prepared(config_of(other))


def test_unknown_characters_are_counted_and_told(config_of, tmp_path):
    config = config_of({"vocabulary": 40, "character_coverage": 0.98})
    for language, sign in (("aa", ""), ("bb", "猫")):
        path = tmp_path / f"train.{language}"
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[7] += sign
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = prepare(config)
    assert report.splits["train"].unknown[1] >= 1
    assert "with unknown characters: 0 source and" in report.lines()[1]
    assert prepare(config).splits["train"].unknown == report.splits["train"].unknown


def test_a_plain_sentencepiece_file_is_taken(config_of, tmp_path):
    prepare(config_of())
    plain = tmp_path / "plain.model"
    plain.write_bytes((tmp_path / "prepared" / "tokenizer" / "joint.model").read_bytes())
    config = config_of(str(plain), prepared=str(tmp_path / "other"))
    prepare(config)
    assert open_prepared(config).tokenizers.source.sha256 == Tokenizers.load(plain).source.sha256


def test_a_text_that_changes_while_it_is_read_is_not_prepared(config_of, tmp_path, monkeypatch):
    """Else its hash would be that of another text than the one that is trained on."""
    encode = module._encode

    def changing(folder, data, name, *rest):
        encode(folder, data, name, *rest)
        if name == "train":
            with open(tmp_path / "train.bb", "a") as file:
                file.write("more\n")

    monkeypatch.setattr(module, "_encode", changing)
    with pytest.raises(InputError, match="has changed while it was read"):
        prepare(config_of())
    assert not (tmp_path / "prepared").exists()
