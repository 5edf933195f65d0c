"""Languages that are written in other ways, from text to scores: invented, learned in seconds.

Each target's words are made of characters of its script, with the punctuation, joiners and signs
that belong to it; the source is a word for a word.
"""

import itertools
import json
import random
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from fastkd.__main__ import main
from fastkd.data.text import read_lines
from fastkd.data.tokenizer import Tokenizers
from fastkd.decode.score import tokenizer_of
from fastkd.runs.folder import RunFolder
from fastkd.train.log import read_log


@dataclass(frozen=True)
class Script:
    language: str
    words: list[str]
    between: str
    comma: str
    end: str
    signature: str


SCRIPTS = {
    "Chinese": Script("zh", [*"猫狗山水火书"], "", "，", "。", "tok:zh"),
    "Thai": Script("th", ["ทำ", "น้ำ", "ไป", "บ้าน", "คน", "ปลา"], "", " ", "", "tok:char"),
    "Persian": Script(
        "fa",
        ["می\u200cخواهم", "کتاب\u200cها", "خانه", "آب", "دوست", "شهر"],
        *(" ", "،\u00a0", "؟", "tok:13a"),
    ),
    "Japanese": Script(
        "ja", [*"猫犬山", "ﾊﾛｰ", "食べる", "ＮＨＫ"], "", "、", "！", f"tok:{tokenizer_of('ja')}"
    ),
    "Korean": Script(
        "ko",
        ["고양이", "강아지", "\u1112\u1161\u11ab글", "바닷물", "불꽃놀이", "교과서들"],
        *(" ", ", ", ".", f"tok:{tokenizer_of('ko')}"),
    ),
    "Arabic": Script("ar", ["قطة", "كلب", "ﷲ", "ماء", "بِسْمِ", "كتاب"], " ", "، ", "؟", "tok:13a"),
    "Hindi": Script(
        "hi",
        ["\u095bरूर", "\u0958लम", "पानी", "श्\u200dर", "घर", "१२३"],  # nukta within the letter
        *(" ", ", ", "।", "tok:13a"),
    ),
}
QUICK = ("Chinese", "Thai", "Persian")


def sentences(script: Script, count: int) -> list[tuple[str, str]]:
    draw, names = random.Random(5), ["ba", "de", "fi", "go", "hu", "ka"]
    found: dict[str, str] = {}
    while len(found) < count:
        first, second = (draw.choices(range(len(script.words)), k=2) for _ in range(2))
        source = f"{' '.join(names[i] for i in first)}, {' '.join(names[i] for i in second)}."
        halves = [script.between.join(script.words[i] for i in half) for half in (first, second)]
        found[source] = script.comma.join(halves) + script.end
    return list(found.items())


@pytest.fixture(
    scope="module",
    params=[
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS
    ],
)
def learned(request, tmp_path_factory):
    """A trained run, its folder and its script."""
    script, folder = SCRIPTS[request.param], tmp_path_factory.mktemp(request.param)
    pairs = sentences(script, 460)
    for split, (begin, end) in {"train": (0, 400), "dev": (400, 430), "test": (430, 460)}.items():
        for side, language in enumerate(("en", script.language)):
            text = "".join(f"{pair[side]}\n" for pair in pairs[begin:end])
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
    tree = {
        "run": str(folder / "run"),
        "data": {
            "source": "en",
            "target": script.language,
            **{split: str(folder / split) for split in ("train", "dev", "test")},
            "prepared": str(folder / "prepared"),
        },
        "tokenizer": {"vocabulary": 80, "model": "bpe"},
        "model": {"encoder_layers": 1, "decoder_layers": 1, "width": 64, "ffn": 128, "heads": 4}
        | {"dropout": 0.0},
        "training": {
            "updates": 200,
            "batch_tokens": 768,
            "validate_every": 50,
            "log_every": 40,
            "keep_last": 9,
            "device": "cpu",
            "precision": "float32",
            "optimizer": {"lr": 8e-3, "warmup": 20, "schedule": "cosine"},
        },
        "decoding": {"beam": 3},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert main(["prepare", str(config)]) == 0
    assert main(["train", str(config)]) == 0
    return RunFolder.open(folder / "run"), folder, script


def test_the_best_checkpoint_is_one_that_translates(learned):
    run, _, script = learned
    validations = [r for r in read_log(run.log_file) if "dev_bleu" in r]
    assert all(script.signature in r["bleu_signature"] for r in validations)
    best = max(validations, key=lambda r: (r["dev_bleu"], -r["dev_loss"], r["step"]))
    assert int(run.weights_folder("best").name) == best["step"] > 50
    assert best["dev_bleu"] > 50 and best["dev_chrf"] > 50


def test_its_scores_are_in_the_language_s_own_words(learned, capsys):
    run, folder, script = learned
    assert main(["score", str(run.path), "test", "-o", str(folder / "out.gz")]) == 0
    assert script.signature in capsys.readouterr().out
    (entry,) = json.loads((run.path / "scores.json").read_text(encoding="utf-8"))["scores"]
    assert entry["bleu"] > 50 and script.signature in entry["bleu_signature"]
    found = list(read_lines(folder / "out.gz"))
    references = list(read_lines(folder / f"test.{script.language}"))
    assert sum(one == other for one, other in zip(found, references, strict=True)) > 10
    assert not any("⁇" in line for line in found)


def test_every_character_of_the_target_comes_back(learned):
    run, folder, script = learned
    target = Tokenizers.load(run.path).target
    lines = list(read_lines(folder / f"train.{script.language}"))
    assert target.decode(target.encode(lines)) == lines
    rewritten = {unicodedata.normalize("NFKC", line) for line in lines}
    assert script.language == "th" or rewritten != set(lines) or "\u200c" in lines[0]


def test_distilled_text_is_the_teachers_by_either_engine(learned):
    pytest.importorskip("ctranslate2")
    run, folder, script = learned
    for engine in ("pytorch", "ctranslate2"):
        prefix = str(folder / engine)
        assert main(["distill", str(run.path), prefix, "--engine", engine]) == 0
    ours, theirs = (
        list(read_lines(folder / f"{engine}.{script.language}"))
        for engine in ("pytorch", "ctranslate2")
    )
    assert ours == theirs and len(ours) == 400
    assert not any("⁇" in line for line in itertools.chain(ours, theirs))


def test_a_student_trains_on_the_distilled_text(learned):
    run, folder, _ = learned
    assert main(["distill", str(run.path), str(folder / "text"), "--n-best", "3"]) == 0
    tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    tree |= {"run": str(folder / "student"), "tokenizer": str(run.path)}
    tree["data"] |= {"train": str(folder / "text"), "prepared": str(folder / "prepared-text")}
    tree["training"] |= {"updates": 5, "validate_every": 5}
    config = folder / "student.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert main(["prepare", str(config)]) == 0
    assert main(["train", str(config)]) == 0
    assert Path(RunFolder.open(folder / "student").weights_folder("best")).is_dir()
