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
        ("--speed 3", "--speed"),
        ("--seconds -1", "--seconds: expected a number of seconds, not '-1'"),
        ("--dtype int8", "--dtype"),
        ("--op linear-ce --shapes T=3", "--shapes"),
        ("--against somebody", "--against"),
        ("--op training --shapes huge", "--shapes"),
        ("--op linear-ce --op training --shapes N=16", "--shapes"),
        ("--predict h200 --op training", "--predict: expected a loss with --op, not 'training'"),
        ("--predict h200 --op linear-ce --op training", "not 'training'"),
        ("--predict h200 --op linear-ce --dtype float32", "--dtype, not 'float32'"),
        ("--predict h200 --op linear-ce --out nowhere", "--out"),
        ("--predict h200 --op linear-ce --against torch", "--against"),
        ("--predict h200 --op linear-ce --seconds 1", "--seconds"),
        ("--predict h200 --op linear-ce --no-memory", "--memory"),
    ],
)
def test_wrong_input_is_one_line(arguments, complaint, capsys):
    assert main(["bench", "--device", "cpu", *arguments.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert "\n" not in error


def test_help_and_list(capsys):
    assert main(["bench", "--help"]) == 0
    assert "--no-memory" in capsys.readouterr().out
    assert main(["bench", "--list"]) == 0
    assert "alignment-row" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "bench " in capsys.readouterr().out


def test_the_command_of_the_group_takes_the_same_arguments(capsys):
    """`fastkd.__main__` never asks it, what calls the group does."""
    from click.testing import CliRunner

    from fastkd.cli.bench import command

    answer = CliRunner().invoke(command, ["--device", "cpu", "--list"])
    assert answer.exit_code == 0 and "providers: reference" in answer.output
