"""``python -m coalmine.costs collect results/demo …``: write the records that predictions rest on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from coalmine.costs import records
from coalmine.errors import CoalmineError


def main() -> int:
    """Collect records from folders of results and write them."""
    parser = argparse.ArgumentParser("python -m coalmine.costs", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("collect", help="write the records of finished runs")
    command.add_argument("folders", type=Path, nargs="+", help="results/<run> or results/published/<run>")
    command.add_argument("--out", type=Path, default=records.SHIPPED, help="the file to write")
    arguments = parser.parse_args()
    try:
        found = [one for folder in arguments.folders for one in records.collect(folder)]
        records.write(arguments.out, found)
    except CoalmineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(found)} records from {len(arguments.folders)} folders in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
