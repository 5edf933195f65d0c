"""Messy text through everything: prepare, train, translate, score, export, import."""

import random

import pytest
import torch
import yaml

from fastkd.__main__ import main
from fastkd.data.text import read_lines
from fastkd.export import engine
from fastkd.export.engine import Trial, exact_int8, far_apart
from fastkd.runs.folder import RunFolder
from fastkd.runs.translation import ENGINES, Engine, open_translator
from tests.export.messy import BLANK, messy

transformers = pytest.importorskip("transformers", minversion="5.1")

WORDS = {"haus": "house", "baum": "tree", "hund": "dog", "katze": "cat", "wasser": "water"}
LIMIT = 60  # pieces a translation


def write_texts(folder, name, count):
    draw = random.Random(name)
    sides = {"de": [], "en": []}
    for _ in range(count):
        words = draw.choices(list(WORDS), k=draw.randint(1, 4))
        sides["de"] += messy(" ".join(words))
        sides["en"] += messy(" ".join(WORDS[word] for word in words))
    for language, lines in sides.items():
        (folder / f"{name}.{language}").write_bytes("".join(f"{x}\n" for x in lines).encode())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained for seconds on templates with words in them."""
    folder = tmp_path_factory.mktemp("messy")
    for name, count in {"train": 12, "dev": 1, "test": 1}.items():
        write_texts(folder, name, count)
    tree = {
        "run": str(folder / "run"),
        "data": {
            "source": "de",
            "target": "en",
            **{split: str(folder / split) for split in ("train", "dev", "test")},
            "prepared": str(folder / "prepared"),
        },
        "tokenizer": {"vocabulary": 330, "model": "bpe"},
        "model": {"encoder_layers": 1, "decoder_layers": 1, "width": 64, "ffn": 128, "heads": 4}
        | {"dropout": 0.0},
        "training": {
            "updates": 250,
            "batch_tokens": 768,
            "validate_every": 250,
            "bleu_sentences": 0,
            "device": "cpu",
            "precision": "float32",
            "optimizer": {"lr": 8e-3, "warmup": 20, "schedule": "cosine"},
        },
        "decoding": {"beam": 3, "max_length_ratio": 1e-6, "max_length_extra": LIMIT},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert main(["prepare", str(folder / "config.yaml")]) == 0
    assert main(["train", str(folder / "config.yaml")]) == 0
    return RunFolder.open(folder / "run")


def translated(run, out, *options):
    source = run.path.parent / "test.de"
    assert main(["translate", str(run.path), "-i", str(source), "-o", str(out), *options]) == 0
    return list(read_lines(out))


def same_of(one, other):
    return sum(a.strip() == b.strip() for a, b in zip(one, other, strict=True))


def test_every_line_has_a_translation_and_a_place(run, tmp_path, capsys):
    ours = translated(run, tmp_path / "out")
    references = list(read_lines(run.path.parent / "test.en"))
    assert len(ours) == len(references) and not any("⁇" in line for line in ours)
    assert len(set(ours)) > len(ours) // 2 and any(line.startswith("<s>") for line in ours)
    sources = read_lines(run.path.parent / "test.de")
    blank = [line for source, line in zip(sources, ours, strict=True) if not source.strip()]
    assert blank == [""] * len(BLANK)
    assert main(["score", str(run.path), "test"]) == 0
    assert "BLEU" in capsys.readouterr().out


def test_a_very_long_line_is_one_line(run, tmp_path, caplog):
    """It is cut to the model's positions, which is said."""
    pytest.importorskip("ctranslate2")
    text = tmp_path / "text"
    text.write_bytes(("hund katze " * 1000 + "\nhund\n").encode())
    for name in ENGINES:
        arguments = ["-i", str(text), "-o", str(tmp_path / "out"), "--engine", name]
        assert main(["translate", str(run.path), *arguments]) == 0
        assert len(list(read_lines(tmp_path / "out"))) == 2
        assert "line 1: cut from " in caplog.text
        caplog.clear()


def test_exports_translate_the_same(run, tmp_path):
    ours = translated(run, tmp_path / "ours")
    assert main(["export", str(run.path), "--to", "transformers", str(tmp_path / "hf")]) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval()
    lines = list(read_lines(run.path.parent / "test.de"))
    with torch.no_grad():
        batch = tokenizer(lines, return_tensors="pt", padding=True)
        rows = model.generate(**batch, max_length=LIMIT + 1)
    theirs = tokenizer.batch_decode(rows, skip_special_tokens=True)
    ended = [tokenizer.eos_token_id in row[1:] for row in rows.tolist()]
    compared = [
        (one, other)
        for line, one, other, end in zip(lines, ours, theirs, ended, strict=True)
        if end and line.strip()  # of white space ours has an empty one, unasked
    ]
    assert len(compared) > 0.8 * len(lines)
    assert same_of(*zip(*compared, strict=True)) == len(compared)

    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    back = RunFolder.open(tmp_path / "back")
    source, again = str(run.path.parent / "test.de"), str(tmp_path / "again")
    assert main(["translate", str(back.path), "-i", source, "-o", again]) == 0
    assert list(read_lines(tmp_path / "again")) == ours


def test_ctranslate2_translates_the_same(run, tmp_path):
    pytest.importorskip("ctranslate2")
    ours = translated(run, tmp_path / "ours")
    theirs = translated(run, tmp_path / "theirs", "--engine", "ctranslate2")
    assert same_of(ours, theirs) == len(ours)
    # Their scores too: equal translations may come of other probabilities.
    lines = list(read_lines(run.path.parent / "test.de"))
    engines = [open_translator(run, device="cpu", engine=Engine(name)) for name in ENGINES]
    scores = [[best.score for best, *_ in engine.translate(lines)] for engine in engines]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_a_quantized_export_is_tried(run, tmp_path, capsys, caplog, monkeypatch):
    pytest.importorskip("ctranslate2")
    arguments = ["export", str(run.path), "--to", "ctranslate2", str(tmp_path / "out")]
    assert main([*arguments, "--quantization", "int8"]) == 0
    said = capsys.readouterr().out + caplog.text
    assert "of 40 lines translated as in float32, BLEU" in said
    assert main([*arguments, "--quantization", "int8", "--try", str(tmp_path / "none")]) == 2
    monkeypatch.setattr(engine, "CLOSE", 101.0)
    assert main([*arguments, "--quantization", "int16"]) == 0
    assert "int16: " in caplog.text and "use float32" in caplog.text


def test_a_warning_names_the_cause_and_the_variable(tmp_path, monkeypatch):
    trial = Trial(lines=40, equal=0, bleu=3.2)
    assert not trial.close
    old = tmp_path / "old"
    old.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\n")
    new = tmp_path / "new"
    new.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n")
    assert exact_int8(new) and not exact_int8(old) and exact_int8(tmp_path / "none")
    monkeypatch.setattr(engine, "exact_int8", lambda: False)
    said = far_apart(trial, "int8")
    assert "0 of 40 lines" in said and "no VNNI" in said and "CT2_USE_MKL=1" in said
    monkeypatch.setattr(engine, "exact_int8", lambda: True)
    assert "CT2_USE_MKL" not in far_apart(trial, "int8")
