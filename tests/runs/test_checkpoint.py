import pytest
import torch

from fastkd.errors import InputError
from fastkd.runs.checkpoint import META, read_group, read_meta, write_checkpoint

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(3)}


def test_round_trip_keeps_bits_and_meta(tmp_path):
    write_checkpoint(tmp_path / "one", {"model": TENSORS}, {"update": 7})
    read = read_group(tmp_path / "one", "model")
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert read_meta(tmp_path / "one")["update"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_overwrites_a_checkpoint_and_a_left_over_temporary(tmp_path):
    (tmp_path / ".one.tmp").mkdir()
    (tmp_path / ".one.tmp" / "junk").write_text("half")
    write_checkpoint(tmp_path / "one", {"model": TENSORS}, {"update": 1})
    write_checkpoint(tmp_path / "one", {"model": TENSORS}, {"update": 2})
    assert read_meta(tmp_path / "one")["update"] == 2
    assert not (tmp_path / "one" / "junk").exists()


def test_a_changed_number_is_recognised(tmp_path):
    write_checkpoint(tmp_path / "one", {"model": TENSORS}, {"update": 10, "best": 0.1})
    assert read_meta(tmp_path / "one")["best"] == 0.1
    text = (tmp_path / "one" / META).read_text()
    (tmp_path / "one" / META).write_text(text.replace("10", "11"))
    with pytest.raises(InputError, match="one"):
        read_meta(tmp_path / "one")


@pytest.mark.parametrize("file", ["model.safetensors", META])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damage_is_recognised(tmp_path, file, damage):
    folder = tmp_path / "one"
    write_checkpoint(folder, {"model": TENSORS}, {"update": 1})
    content = (folder / file).read_bytes()
    if damage == "remove":
        (folder / file).unlink()
    else:
        flipped = bytes([content[0] ^ 255]) + content[1:]
        (folder / file).write_bytes(content[:-5] if damage == "cut" else flipped)
    with pytest.raises(InputError, match="one"):
        read_group(folder, "model")
