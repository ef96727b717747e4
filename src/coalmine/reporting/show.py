"""Print a finished table to the terminal: ``python -m coalmine.reporting.show results/table1.csv``."""

import argparse
import shutil
import sys
from pathlib import Path

from coalmine.errors import CoalmineError

WIDTH = 150
"""Columns that are used where the terminal has them, or where there is none."""


def show(path: Path) -> str:
    """Return the brief form of a finished table and where its files lie.

    Raises:
        CoalmineError: there is no such table.
    """
    import importlib

    import pandas as pd

    from coalmine.reporting.writers import format_table

    if not path.is_file():
        raise CoalmineError(f"There is no table {path}. Make it: snakemake {path} --cores all")
    try:
        layout = importlib.import_module(f"coalmine.reporting.{path.stem}").layout
    except (ImportError, AttributeError):
        raise CoalmineError(f"{path} is no table of Coalmine's: there is no coalmine.reporting.{path.stem}") from None
    frame = pd.read_csv(path)
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    text = format_table(frame, layout(frame), width)
    page, typeset = path.with_suffix(".html"), path.with_suffix(".tex")
    return f"\n{text}\n\nWith every column: {path} (numbers), {page} (a page), {typeset} (LaTeX)"


def main() -> None:
    """Print the table that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m coalmine.reporting.show", description="Print a finished table.")
    parser.add_argument("table", type=Path, help="results/table1.csv")
    try:
        print(show(parser.parse_args().table))
    except CoalmineError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
