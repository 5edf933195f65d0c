"""Exported models, loaded by Transformers, against our own."""

import dataclasses

import pytest
import torch

from fastkd.config.load import validate
from fastkd.config.tree import ModelConfig, TokenizerConfig
from fastkd.data.tokenizer import train_tokenizers
from fastkd.decode.beam import beam_search
from fastkd.errors import InputError
from fastkd.export.ctranslate2 import export_ctranslate2
from fastkd.export.layout import from_transformers, to_transformers
from fastkd.export.transformers import export_transformers, refuse_what_does_not_fit
from fastkd.nn.build import build_model
from fastkd.runs.checkpoint import write_checkpoint
from fastkd.runs.folder import MODEL, RunFolder
from fastkd.runs.weights import weights_of

transformers = pytest.importorskip("transformers", minversion="5.1")

from tests.export.versions import two_vocabularies

LINES = ["ein hund sieht den mann", "kein mann", "der hund", "ja ja ja nein", "x"]
LINES += ["mann der hund ja", "den den", "nein", "sieht ein hund den hund", "hund ja mann", "der"]
LIMIT = 40
WIDTHS = {"encoder_layers": 2, "decoder_layers": 2, "width": 16, "ffn": 24, "heads": 2}


def text_file(folder, name):
    path = folder / name
    words = ["ein", "hund", "sieht", "den", "mann", "kein", "der", "ja", "nein"]
    lines = [" ".join(words[i % 9 :] + words[: (7 * i) % 5]) for i in range(60)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def a_run(folder, **model):
    """A run with a random model that is sharp enough to have opinions."""
    text = text_file(folder, "text.de")
    joint = model.get("share_embeddings", True)
    tokenizers = train_tokenizers(TokenizerConfig(vocabulary=26, joint=joint), text, text, 60)
    data = {"source": "de", "target": "dsb", "train": "t", "dev": "d", "prepared": "p"}
    tree = {
        "run": str(folder / "run"),
        "data": data,
        "model": {**WIDTHS, **model},
        "decoding": {"beam": 4},
    }
    run = RunFolder.create(validate(tree, "test"), tokenizers)
    torch.manual_seed(3)
    built = build_model(run.config.model, tokenizers)
    for name, parameter in built.named_parameters():
        if parameter.dim() > 1 and "embedding" not in name:
            torch.nn.init.normal_(parameter, std=0.35)
        elif name == "output_bias":
            torch.nn.init.normal_(parameter)
    # So that sentences end now and then.
    with torch.no_grad():
        built.output_weight[tokenizers.target.eos_id] *= 4
    run.checkpoint(1).parent.mkdir(parents=True)
    write_checkpoint(run.checkpoint(1), {MODEL: weights_of(built)}, {"update": 1})
    return run


LAYOUTS = {
    "m2m100": {"norm": "pre"},
    "m2m100 from eos": {"norm": "pre", "decoder_start": "eos"},
    "marian": {"norm": "post"},
    "marian with bias": {"norm": "post", "output_bias": True, "decoder_start": "pad"},
    "marian with two vocabularies": {"norm": "post", "share_embeddings": False},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=two_vocabularies if "two" in n else ()) for n in LAYOUTS]
)
def test_same_states_and_same_translations(tmp_path, name):
    run = a_run(tmp_path, **LAYOUTS[name])
    export_transformers(run, tmp_path / "out")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours, tokenizers = run.load_model(), run.tokenizers

    batch = tokenizer(LINES, return_tensors="pt", padding=True)
    lengths = batch["attention_mask"].sum(1)
    pieces = tokenizers.source.encode(LINES)
    assert [row[:n].tolist() for row, n in zip(batch["input_ids"], lengths, strict=True)] == [
        [*row, tokenizers.source.eos_id] for row in pieces
    ]
    start = getattr(tokenizers.target, f"{run.config.model.decoder_start}_id")
    decoder_input = torch.randint(5, tokenizers.target.size, (len(LINES), 4))
    decoder_input[:, 0] = start
    with torch.no_grad():
        logits = theirs(**batch, decoder_input_ids=decoder_input).logits
        output = ours(batch["input_ids"], lengths, decoder_input, torch.full((len(LINES),), 4))
        torch.testing.assert_close(logits, ours.logits(output.hidden), rtol=1e-4, atol=1e-4)
        generated = theirs.generate(**batch, max_length=LIMIT + 1)
    target = tokenizers.target
    expected = beam_search(
        ours,
        batch["input_ids"],
        lengths,
        bos=start,
        eos=target.eos_id,
        pad=target.pad_id,
        beam=run.config.decoding.beam,
        length_penalty=run.config.decoding.length_penalty,
        max_lengths=torch.full((len(LINES),), LIMIT),
        banned=(target.bos_id, target.mask_id),
    ).tokens
    ended = 0
    for row, wanted in zip(generated.tolist(), expected, strict=True):
        if target.eos_id in row[1:]:
            assert row[1 : row.index(target.eos_id, 1)] == wanted
            ended += 1
    assert ended >= 3  # the others ran into the limit, where each search ends as it likes


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_lead_back(tmp_path, name):
    run = a_run(tmp_path, **LAYOUTS[name])
    tensors = weights_of(run.load_model())
    config = run.config.model
    back = from_transformers(config, to_transformers(config, tensors))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"kind": "cmlm"}, "model.kind"),
        ({"tie_output": False}, "model.tie_output"),
        ({"output_bias": True}, "model.output_bias"),
        ({"share_embeddings": False}, "model.share_embeddings"),
        ({"decoder_start": "pad"}, "model.decoder_start"),
    ],
)
def test_what_no_layout_holds_is_refused(change, key):
    with pytest.raises(InputError, match=key):
        refuse_what_does_not_fit(dataclasses.replace(ModelConfig(), **change))


def test_masked_models_have_no_layout_anywhere(tmp_path):
    pytest.importorskip("ctranslate2")
    run = a_run(tmp_path, kind="cmlm")
    for export in (export_transformers, export_ctranslate2):
        with pytest.raises(InputError, match=r"model\.kind: cmlm has no layout in"):
            export(run, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export", [export_transformers, export_ctranslate2])
def test_only_an_earlier_export_is_replaced(tmp_path, export):
    if export is export_ctranslate2:
        pytest.importorskip("ctranslate2")
    run, out = a_run(tmp_path, norm="post"), tmp_path / "out"
    export(run, out)
    export(run, out)
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"out: would be replaced, but thesis\.tex in it"):
        export(run, out)
    with pytest.raises(InputError, match="run: would be replaced, but"):
        export(run, run.path)
    assert run.load_model() and (out / "thesis.tex").read_text() == "mine"
