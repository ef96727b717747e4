"""The command line beside Snakemake: ``coalmine plan`` says what a run will cost, ``coalmine verify`` what it has made.

Snakemake makes the files; nothing here wraps it. Each command is a module of this package with ``describe`` (its
arguments) and ``execute`` (its exit status), imported when it is asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from coalmine.errors import CoalmineError

COMMANDS = {
    "plan": "jobs, device-hours, memory and disk of a target, before a run starts",
    "verify": "whether a folder of results is whole, and belongs to this configuration, code and data",
}
FAULT = 2
"""Exit status of a command that could not be carried out; 1 is an answer that a script should stop at."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = argparse.ArgumentParser("coalmine", description="What Snakemake's runs of Coalmine cost and have made.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = [name for name in (sys.argv[1:] if arguments is None else arguments) if name in COMMANDS][:1]
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"Say {summary}.")
        if name in asked:
            module = import_module(f"coalmine.{name}")
            module.describe(command)
    parsed = parser.parse_args(arguments)
    try:
        status: int = module.execute(parsed)
    except CoalmineError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAULT
    return status


if __name__ == "__main__":
    sys.exit(main())
