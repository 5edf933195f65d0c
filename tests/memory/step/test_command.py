"""`fastkd memory` from the command line."""

import pytest

from fastkd.__main__ import main
from fastkd.cli.memory import memory_size
from fastkd.errors import InputError

CONFIG = """
run: {0}/run
data: {{source: de, target: en, train: x, dev: y, prepared: {0}/prepared, max_length: 40}}
tokenizer: {{vocabulary: 300}}
model: {{encoder_layers: 1, decoder_layers: 1, width: 16, ffn: 32, heads: 2}}
training: {{batch_tokens: 128, backend: reference}}
"""


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(tmp_path))
    return str(file)


def test_predicted_for_a_gpu_that_is_not_there(config, tmp_path, capsys):
    plot = tmp_path / "timeline.png"
    status = main(
        f"memory {config} --predict 1GiB --batch-tokens 128 --batch-tokens 256 --no-largest "
        f"--plot {plot}".split()
    )
    printed = capsys.readouterr().out
    assert status == 0
    assert "256 tokens" in printed
    assert "peak reserved" in printed
    assert "not compared with a GPU" in " ".join(printed.split())
    assert plot.stat().st_size > 1000


def test_measured_on_the_cpu(config, capsys):
    assert main(["memory", config, "--device", "cpu", "--no-largest"]) == 0
    printed = capsys.readouterr().out
    assert "resident memory rose by" in printed
    assert "the prediction was" in printed


@pytest.mark.slow
def test_too_little_memory_for_any_batch(config, capsys):
    assert main(["memory", config, "--predict", "601MiB"]) == 0
    assert "Not even the smallest batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--predict", "much"], "--predict"),
        (["--predict", "1GiB", "--device", "cpu"], "--device"),
        (["--snapshot", "file", "--predict", "1GiB"], "--snapshot"),
        (["losses=[{name: word_kd}]", "--predict", "1GiB"], "teacher"),
        (["teacher.run=nowhere", "--predict", "1GiB"], "teacher.run"),
    ],
)
def test_wrong_input_is_one_line(config, arguments, complaint, capsys):
    assert main(["memory", config, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 << 30), ("1.5g", 3 << 29), ("512 MB", 512 << 20), ("8", 8 << 30)],
)
def test_memory_sizes(text, size):
    assert memory_size(text) == size


def test_a_memory_of_nothing_is_refused():
    with pytest.raises(InputError, match="--predict"):
        memory_size("0GiB")
