"""Runs trained for a moment on the invented language, written for other libraries."""

import pytest
import torch
import yaml

from fastkd.__main__ import main
from fastkd.decode.translate import translate
from fastkd.demo.language import write_corpus
from fastkd.runs.folder import RunFolder
from fastkd.runs.translation import translate_lines

transformers = pytest.importorskip("transformers", minversion="5.1")
ctranslate2 = pytest.importorskip("ctranslate2")
sentencepiece = pytest.importorskip("sentencepiece")

LIMIT = 48  # pieces a translation
KINDS = {
    "pre": {"norm": "pre"},
    "post": {"norm": "post", "output_bias": True, "decoder_start": "pad", "activation": "swish"},
}


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """A run, and test sentences."""
    folder = tmp_path_factory.mktemp(request.param)
    write_corpus(folder, pairs=1500, dev=10, test=40)
    tree = {
        "run": str(folder / "run"),
        "data": {
            "source": "qlo",
            "target": "qtu",
            **{split: str(folder / split) for split in ("train", "dev", "test")},
            "prepared": str(folder / "prepared"),
        },
        "tokenizer": {"vocabulary": 300, "model": "bpe"},
        "model": {
            "encoder_layers": 1,
            "decoder_layers": 1,
            "width": 64,
            "ffn": 128,
            "heads": 4,
            "max_positions": 64,
            **KINDS[request.param],
        },
        "training": {
            "updates": 200,
            "batch_tokens": 768,
            "bleu_sentences": 0,
            "validate_every": 200,
            "device": "cpu",
            "precision": "float32",
            "optimizer": {"lr": 5e-3, "warmup": 30, "schedule": "cosine"},
        },
        # The same limit for every sentence, as other libraries have it.
        "decoding": {"beam": 4, "max_length_ratio": 1e-6, "max_length_extra": LIMIT},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert main(["prepare", str(config)]) == 0
    assert main(["train", str(config)]) == 0
    lines = (folder / "test.qlo").read_text(encoding="utf-8").splitlines()
    run = RunFolder.open(folder / "run")
    ours = list(translate_lines(run, lines, device="cpu"))
    assert len(set(ours)) > 15
    return run, lines, ours


def test_transformers_translates_the_same(trained, tmp_path):
    run, lines, ours = trained
    assert main(["export", str(run.path), "--to", "transformers", str(tmp_path / "out")]) == 0
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        batch = tokenizer(lines, return_tensors="pt", padding=True)
        generated = model.generate(**batch, max_length=LIMIT + 1)
    theirs = tokenizer.batch_decode(generated, skip_special_tokens=True)
    ended = (generated[:, 1:] == tokenizer.eos_token_id).any(1).tolist()
    assert_same([line.strip() for line in theirs], ours, ended)


def assert_same(theirs, ours, ended):
    """What runs into the limit ends there in each library's own way."""
    assert sum(ended) >= 34
    for one, other, compared in zip(theirs, ours, ended, strict=True):
        assert one == other or not compared


def by_ctranslate2(folder, lines, run, **options):
    source, target = (
        sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        for side in ("source", "target")
    )
    translator = ctranslate2.Translator(str(folder), device="cpu", intra_threads=1, **options)
    never = run.tokenizers.target
    results = translator.translate_batch(
        source.encode(lines, out_type=str),
        beam_size=run.config.decoding.beam,
        length_penalty=run.config.decoding.length_penalty,
        max_decoding_length=LIMIT,
        min_decoding_length=0,
        disable_unk=True,
        suppress_sequences=[[never.piece(index)] for index in never.never_text],
    )
    written = [result.hypotheses[0] for result in results]
    return [target.decode(row).strip() for row in written], [len(row) < LIMIT for row in written]


def test_ctranslate2_translates_the_same(trained, tmp_path):
    run, lines, ours = trained
    assert main(["export", str(run.path), "--to", "ctranslate2", str(tmp_path / "out")]) == 0
    theirs, ended = by_ctranslate2(tmp_path / "out", lines, run, compute_type="float32")
    assert_same(theirs, ours, ended)


def by_rounded_weights(run, lines):
    """Our translations with what CTranslate2's int8 keeps of a matrix: 8 bits, a scale a row."""
    model = run.load_model()
    with torch.no_grad():
        for matrix in (p for p in model.parameters() if p.dim() == 2):
            scale = 127 / matrix.abs().amax(1, keepdim=True)
            matrix.copy_((matrix * scale).round() / scale)
    return translate(model, run.tokenizers, lines, run.config.decoding, torch.device("cpu"))


def test_quantized_for_ctranslate2(trained, tmp_path):
    """What it keeps is the same everywhere; its products of 8 bits are right on some processors."""
    run, lines, _ = trained
    arguments = ["--to", "ctranslate2", str(tmp_path / "out"), "--quantization", "int8"]
    assert main(["export", str(run.path), *arguments]) == 0
    whole = sum(p.numel() * 4 for p in run.load_model().parameters())
    assert (tmp_path / "out" / "model.bin").stat().st_size < 0.5 * whole
    theirs, ended = by_ctranslate2(tmp_path / "out", lines, run, compute_type="float32")
    assert_same(theirs, by_rounded_weights(run, lines), ended)
    assert len(by_ctranslate2(tmp_path / "out", lines, run)[0]) == len(lines)
