"""`fastkd bench` from the command line."""

import pytest

from fastkd.__main__ import main
from fastkd.bench.record import read


def test_a_table_a_file_and_a_picture(tmp_path, capsys):
    status = main(
        f"bench --op linear-ce --device cpu --shapes smoke --seconds 0 --no-memory "
        f"--against reference,torch,cce --out {tmp_path}".split()
    )
    printed = capsys.readouterr().out
    assert status == 0
    assert "linear-ce N=16" in printed
    assert "cce: absent" in printed
    rows = [row for _, row in read(tmp_path / "cpu.csv")]
    assert {row.provider for row in rows} == {"reference", "torch", "cce"}
    assert (tmp_path / "linear-ce-cpu.png").exists()


def test_training_steps_of_every_method(tmp_path, capsys):
    status = main(
        f"bench --op training --device cpu --shapes smoke --no-memory --against torch "
        f"--out {tmp_path}".split()
    )
    assert status == 0
    rows = [row for _, row in read(tmp_path / "cpu.csv")]
    assert [row.status for row in rows] == ["ok"] * 6
    assert all(row.tokens_per_second > 0 for row in rows)
    assert "DiMS, torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--op nothing", "--op"),
        ("--op linear-ce --shapes T=3", "--shapes"),
        ("--against somebody", "--against"),
        ("--op training --shapes huge", "--shapes"),
        ("--op linear-ce --op training --shapes N=16", "--shapes"),
    ],
)
def test_wrong_input_is_one_line(arguments, complaint, capsys):
    assert main(["bench", "--device", "cpu", *arguments.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert "\n" not in error
