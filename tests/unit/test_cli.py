"""The command line as a process."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from retro_ops.cli import COMMANDS, main
from retro_ops.errors import EXIT_USAGE
from retro_ops.plan.parameters import PARAMETERS, Section, read_by


def test_sigterm_ends_a_stage_in_order(tmp_path: Path) -> None:
    """Process 1 of a container has no default handler, and an unfinished upload must be aborted."""
    out = tmp_path / "chunks.npy"
    words = ("tokenize-and-chunk", "--chunks-out", out, "--seq2chunk-index-out", f"{out}.s", "--chunk2seq-index-out")
    process = subprocess.Popen(
        [sys.executable, "-m", "retro_ops.cli", *words, f"{out}.c"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stderr is not None
        process.stderr.readline()
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["build", "--reciep", "pile"], "retro-ops build: error: unknown argument --reciep; did you mean --recipe?"),
        (
            ["validate", "--zz=1"],
            "retro-ops validate: error: unknown argument --zz=1; `retro-ops validate --help` lists",
        ),
    ],
)
def test_an_unknown_flag_is_reported_for_its_command(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == EXIT_USAGE
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_parameters_under_the_sections_of_the_form(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    taken = [PARAMETERS[name] for name in (PARAMETERS if command in ("build", "plan") else read_by(command))]
    positions = {section: shown.find(f"\n{section}:\n") for section in get_args(Section)}
    assert {section for section, position in positions.items() if position >= 0} == {of.section for of in taken}
    for parameter in taken:
        flag = shown.rfind(f"\n  {parameter.flag}")
        assert positions[parameter.section] < flag
        assert all(not positions[parameter.section] < other < flag for other in positions.values())


def test_messages_have_the_format_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "--root", str(tmp_path), "--dataset", "none", "--log-format", "text"])
    assert "dataset 'none' was never published\n  What to do: " in capsys.readouterr().err
    main(["list", "--root", str(tmp_path), "--dataset", "none"])
    assert "dataset 'none' was never published" in json.loads(capsys.readouterr().err)["message"]


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    shown = capsys.readouterr().out
    assert [command for command in COMMANDS if f"\n    {command}" not in shown] == []
