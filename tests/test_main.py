"""The command line beside Snakemake."""

from __future__ import annotations

import argparse
import subprocess
import sys
from types import ModuleType

import pytest

from coalmine import __main__ as command
from coalmine.errors import CoalmineError


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A command ``verify`` that returns its argument, and notes it."""
    seen: list[int] = []
    module = ModuleType("coalmine.verify")

    def execute(arguments: argparse.Namespace) -> int:
        if arguments.number < 0:
            raise CoalmineError("below 0")
        seen.append(arguments.number)
        return int(arguments.number)

    module.describe = lambda parser: parser.add_argument("number", type=int)  # type: ignore[attr-defined]
    module.execute = execute  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "coalmine.verify", module)
    return seen


@pytest.mark.parametrize("status", [0, 1])
def test_the_exit_status_is_that_of_the_command(counting: list[int], status: int) -> None:
    assert command.main(["verify", str(status)]) == status
    assert counting == [status]


def test_what_could_not_be_done_is_one_sentence_and_status_2(
    counting: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["verify", "--", "-1"]) == command.FAULT == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "error: below 0\n")
    assert counting == []


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["verify", "one"]])
def test_wrong_arguments_are_refused_with_status_2(
    counting: list[int], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert "usage: coalmine" in capsys.readouterr().err


def test_help_lists_the_commands_and_loads_neither_snakemake_nor_torch() -> None:
    program = (
        "import sys; from coalmine.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'snakemake', 'torch', 'numpy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("[]")
    for name, summary in command.COMMANDS.items():
        assert name in done.stdout
        assert " ".join(summary.split()[:3]) in " ".join(done.stdout.split())
