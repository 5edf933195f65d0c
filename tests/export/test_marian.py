"""Marian checkpoints, as Transformers saves them, made into runs."""

import io
import json

import pytest
import sentencepiece
import torch

from fastkd.__main__ import main
from fastkd.data.text import read_lines
from fastkd.export.marian import import_marian
from fastkd.runs.folder import RunFolder

transformers = pytest.importorskip("transformers", minversion="5.1")

from tests.export.versions import two_vocabularies

LINES = ["ein hund sieht den mann", "kein mann", "der hund", "ja ja ja nein", "qqq hund"]
LINES += ["mann der hund ja", "den den", "nein", "sieht ein hund den hund", "hund ja mann"]
LIMIT = 30


def spm_model(words, size):
    draw = torch.Generator().manual_seed(len(words))
    rows = torch.randint(len(words), (200, 5), generator=draw).tolist()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(words[i] for i in row) for row in rows),
        model_writer=model,
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def pieces(model):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(3, processor.vocab_size())]


def write_checkpoint(folder, separate=False, **settings):
    """A random model with opinions, its vocabulary without some pieces, as OPUS-MT's are."""
    folder.mkdir()
    source = spm_model(["ein", "hund", "sieht", "den", "mann", "kein", "der", "ja", "nein"], 32)
    target = spm_model(["jeden", "pjas", "wizi", "togo", "muža", "žeden", "ten", "jo", "ne"], 36)
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)

    def write_vocabulary(name, listed):
        listed = ["</s>", "<unk>", *dict.fromkeys(listed)]
        listed.insert(2 if separate else len(listed), "<pad>")
        content = {piece: index for index, piece in enumerate(listed)}
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        return len(listed)

    if separate:
        sizes = [
            write_vocabulary("vocab.json", pieces(source)),
            write_vocabulary("target_vocab.json", pieces(target)),
        ]
    else:
        sizes = [write_vocabulary("vocab.json", [*pieces(target)[2:], *pieces(source)[3:]])] * 2
    tokenizer = transformers.MarianTokenizer(
        str(folder / "source.spm"),
        str(folder / "target.spm"),
        str(folder / "vocab.json"),
        target_vocab_file=str(folder / "target_vocab.json") if separate else None,
        source_lang="de",
        target_lang="dsb",
        separate_vocabs=separate,
    )
    tokenizer.save_pretrained(folder)
    pad = 2 if separate else sizes[1] - 1
    config = transformers.MarianConfig(
        **{
            "vocab_size": sizes[0],
            "decoder_vocab_size": sizes[1],
            "share_encoder_decoder_embeddings": not separate,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_position_embeddings": 64,
            "activation_function": "swish",
            "static_position_embeddings": True,
            "scale_embedding": True,
            "pad_token_id": pad,
            "eos_token_id": 0,
            "decoder_start_token_id": pad,
            **settings,
        }
    )
    torch.manual_seed(7)
    model = transformers.MarianMTModel(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed_positions" not in name:
            torch.nn.init.normal_(parameter, std=0.4)
    model.final_logits_bias.normal_()
    model.final_logits_bias[0, 0] += 3.0  # so that sentences end
    model.generation_config = transformers.GenerationConfig(
        num_beams=4,
        length_penalty=1.0,
        early_stopping=True,
        renormalize_logits=True,
        max_length=LIMIT + 1,
        bad_words_ids=[[config.pad_token_id]],
        pad_token_id=config.pad_token_id,
        eos_token_id=0,
        decoder_start_token_id=config.decoder_start_token_id,
    )
    model.save_pretrained(folder)
    return model, tokenizer


def translations(model, tokenizer):
    with torch.no_grad():
        batch = tokenizer(LINES, return_tensors="pt", padding=True)
        return model.generate(**batch).tolist()


@pytest.mark.parametrize("separate", [False, pytest.param(True, marks=two_vocabularies)])
def test_same_pieces_and_same_beam_output(tmp_path, separate):
    model, tokenizer = write_checkpoint(tmp_path / "opus", separate)
    expected = translations(model, tokenizer)
    assert main(["import", str(tmp_path / "opus"), str(tmp_path / "run")]) == 0

    run = RunFolder.open(tmp_path / "run")
    ours = run.tokenizers
    assert (run.config.data.source, run.config.data.target) == ("de", "dsb")
    lacking = 0
    for line in LINES:
        written = tokenizer(line)["input_ids"][:-1]
        read = ours.source.encode([line])[0]
        assert len(read) == len(written)
        for one, other in zip(read, written, strict=True):
            wanted = tokenizer.encoder["<unk>"]
            if ours.source.piece(one) in tokenizer.encoder:
                wanted = tokenizer.encoder[ours.source.piece(one)]
            lacking += one != 1 and wanted == tokenizer.encoder["<unk>"]
            assert wanted == other
    assert separate or lacking  # pieces that the shared vocabulary does not list were met

    texts = tmp_path / "lines.de"
    texts.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    out = tmp_path / "lines.dsb"
    (run.path / "config.yaml").write_text(
        run.config_file.read_text(encoding="utf-8")
        .replace("max_length_ratio: 2.0", "max_length_ratio: 1.0e-06")
        .replace("max_length_extra: 10", f"max_length_extra: {LIMIT}"),
        encoding="utf-8",
    )
    assert main(["translate", str(run.path), "-i", str(texts), "-o", str(out)]) == 0
    ended = 0
    for line, row in zip(read_lines(out), expected, strict=True):
        if 0 in row[1:]:
            ids = row[1 : row.index(0, 1)]
            target = tokenizer.decoder
            theirs = tokenizer.spm_target.decode([target[i] for i in ids])
            assert line.strip() == theirs.strip()
            ended += 1
    assert ended >= 5


def test_logits_are_the_same(tmp_path):
    model, tokenizer = write_checkpoint(tmp_path / "opus")
    run = import_marian(tmp_path / "opus", tmp_path / "run")
    ours, tokenizers = run.load_model(), run.tokenizers
    back = [
        tokenizer.encoder.get(tokenizers.target.piece(i)) for i in range(tokenizers.target.size)
    ]
    kept = [i for i, row in enumerate(back) if row is not None]
    source = torch.tensor([[5, 7, 8, 11, 3]])
    target = torch.tensor([[0, 9, 6, 12]])
    lengths = torch.tensor([5]), torch.tensor([4])
    with torch.no_grad():
        output = ours(source, lengths[0], target, lengths[1])
        logits = ours.logits(output.hidden)
        rows = torch.tensor([row if row is not None else 1 for row in back])
        wanted = model(input_ids=rows[source], decoder_input_ids=rows[target]).logits
    torch.testing.assert_close(
        logits[..., kept], wanted[..., [back[i] for i in kept]], rtol=1e-4, atol=1e-4
    )
    others = [i for i in range(tokenizers.target.size) if i not in kept]
    assert (logits[..., others] == -torch.inf).all()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"activation_function": "gelu"}, "activation_function"),
        ({"decoder_ffn_dim": 32}, "decoder_ffn_dim"),
        ({"scale_embedding": False}, "scale_embedding"),
        ({"decoder_start_token_id": 4}, "decoder_start_token_id"),
    ],
)
def test_what_a_run_cannot_hold_is_refused(tmp_path, capsys, settings, complaint):
    write_checkpoint(tmp_path / "opus", **settings)
    assert main(["import", str(tmp_path / "opus"), str(tmp_path / "run")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def change(file, **keys):
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | keys), encoding="utf-8")


def test_bad_folders_are_refused(tmp_path, capsys):
    opus, run = tmp_path / "opus", tmp_path / "run"
    write_checkpoint(opus)

    def complaint():
        assert main(["import", str(opus), str(run)]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert "Traceback" not in "".join(lines)
        return lines[-1]

    change(opus / "generation_config.json", no_repeat_ngram_size=3)
    assert "no_repeat_ngram_size" in complaint()
    change(opus / "generation_config.json", no_repeat_ngram_size=0)
    size = len(json.loads((opus / "vocab.json").read_text(encoding="utf-8")))
    change(opus / "vocab.json", **{">>fra<<": size})
    assert "target languages' codes" in complaint()
    (opus / "source.spm").write_bytes(b"\xff\xff\xff")
    assert "not a sentencepiece model" in complaint()
    change(opus / "config.json", model_type="bart")
    assert "model_type" in complaint()
    (opus / "config.json").write_text("{}")
    assert "activation_function: required, but missing" in complaint()
    (opus / "config.json").unlink()
    assert "no such file" in complaint()
    run.mkdir()
    (run / "something").touch()
    assert "is not empty" in complaint()


def test_a_file_in_the_place_of_the_run_is_named(tmp_path, capsys):
    file = tmp_path / "run"
    file.write_text("mine")
    assert main(["import", str(tmp_path / "opus"), str(file)]) == 2
    assert capsys.readouterr().err == f"fastkd: {file}: cannot be written: Not a directory\n"
    assert file.read_text() == "mine"
