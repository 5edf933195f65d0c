"""What is exported is imported as it was, and cuts messy text alike in every library."""

import contextlib
import random
from dataclasses import replace

import pytest
import torch

from fastkd.__main__ import main
from fastkd.config.load import validate
from fastkd.config.tree import TokenizerConfig
from fastkd.data.tokenizer import train_tokenizers
from fastkd.export import marian
from fastkd.nn.build import build_model
from fastkd.runs.checkpoint import read_group, write_checkpoint
from fastkd.runs.folder import MODEL, RunFolder
from fastkd.runs.weights import weights_of
from tests.export.messy import messy

transformers = pytest.importorskip("transformers", minversion="5.1")

KINDS = {
    "default": {},
    "pre, from eos": {"decoder_start": "eos"},
    "post": {"norm": "post"},
    "post, from bos": {"norm": "post", "decoder_start": "bos", "activation": "swish"},
    "with a bias": {"norm": "post", "output_bias": True, "decoder_start": "pad"},
    "two vocabularies": {"norm": "post", "share_embeddings": False},
}
TOKENIZERS = {
    "identity": {},
    "bytes": {"byte_fallback": True, "vocabulary": 480},
    "nfc": {"normalization": "nfc"},
    "nmt_nfkc": {"normalization": "nmt_nfkc"},
}


def a_run(folder, tokenizer=None, **model):
    """A run with random weights whose tokenizer was trained on messy text."""
    draw, words = random.Random(1), ["haus", "baum", "hund", "katze", "wasser", "feuer"]
    lines = [
        line
        for _ in range(12)
        for line in messy(" ".join(draw.choices(words, k=draw.randint(2, 6))))
    ]
    path = folder / "text"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    settings = TokenizerConfig(**{"vocabulary": 260, "model": "bpe", **(tokenizer or {})})
    settings = replace(settings, joint=model.get("share_embeddings", True))
    tokenizers = train_tokenizers(settings, path, path, len(lines))
    sizes = {"encoder_layers": 1, "decoder_layers": 2, "width": 16, "ffn": 24, "heads": 2}
    data = {"source": "de", "target": "en", "train": "t", "dev": "d", "prepared": "p"}
    tree = {
        "run": str(folder / "run"),
        "data": data,
        "model": {**sizes, **model},
        "decoding": {"beam": 3, "length_penalty": 0.7, "max_length_extra": 17, "unknown": False},
    }
    run = RunFolder.create(validate(tree, "test"), tokenizers)
    torch.manual_seed(2)
    built = build_model(run.config.model, tokenizers)
    with contextlib.closing(run):
        run.checkpoint(1).parent.mkdir(parents=True)
        write_checkpoint(run.checkpoint(1), {MODEL: weights_of(built)}, {"update": 1})
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_imported_as_the_run_it_was(tmp_path, kind):
    run, out, back = a_run(tmp_path, **KINDS[kind]), tmp_path / "out", tmp_path / "back"
    assert main(["export", str(run.path), "--to", "transformers", str(out)]) == 0
    assert main(["import", str(out), str(back)]) == 0
    again = RunFolder.open(back)
    assert again.config.model == run.config.model
    assert again.config.decoding == run.config.decoding
    assert (again.config.data.source, again.config.data.target) == ("de", "en")
    assert again.tokenizers.sha256 == run.tokenizers.sha256
    assert again.tokenizers.joint == run.tokenizers.joint
    before, after = (read_group(r.weights_folder("last"), MODEL) for r in (run, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert main(["export", str(back), "--to", "transformers", str(tmp_path / "twice")]) == 0
    for file in out.iterdir():
        assert (tmp_path / "twice" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("settings", TOKENIZERS)
@pytest.mark.parametrize("kind", ["default", "post", "two vocabularies"])
def test_messy_text_is_cut_and_joined_alike(tmp_path, kind, settings):
    run = a_run(tmp_path, TOKENIZERS[settings], **KINDS[kind])
    assert main(["export", str(run.path), "--to", "transformers", str(tmp_path / "out")]) == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = run.tokenizers
    for line in messy("hund katze"):
        if kind == "two vocabularies" and line.startswith(">>"):
            continue  # a language's code to Marian's tokenizer, the only one with two
        ids = [*ours.source.encode([line])[0], ours.source.eos_id]
        assert theirs(line)["input_ids"] == ids, line
        row = ours.target.encode([line])[0]
        if ours.target.unk_id in row:
            continue  # which a translation never holds
        text = theirs.decode([*row, ours.target.eos_id], skip_special_tokens=True)
        assert text.strip() == ours.target.decode([row])[0].strip(), line


def test_a_foreign_m2m100_is_refused(tmp_path, capsys):
    run, out = a_run(tmp_path), tmp_path / "out"
    assert main(["export", str(run.path), "--to", "transformers", str(out)]) == 0
    vocabulary = (out / "vocab.json").read_text(encoding="utf-8")
    (out / "vocab.json").write_text(vocabulary.replace('"<mask>"', '"<other>"'), encoding="utf-8")
    assert main(["import", str(out), str(tmp_path / "back")]) == 2
    assert "a vocabulary that a run's tokenizer cannot have" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_an_import_that_was_killed_is_begun_anew(tmp_path, monkeypatch, capsys):
    run, out, back = a_run(tmp_path), tmp_path / "out", str(tmp_path / "back")
    assert main(["export", str(run.path), "--to", "transformers", str(out)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(marian, "write_checkpoint", None)
        assert main(["import", str(out), back]) == 1
    assert (tmp_path / "back" / "run.json").exists()
    assert main(["import", str(out), back]) == 0
    assert RunFolder.open(back).weights_folder("last").is_dir()
    assert main(["import", str(out), back]) == 2
    assert "is not empty" in capsys.readouterr().err
