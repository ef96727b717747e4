"""Print a finished table to the terminal: ``python -m coalmine.reporting.show results/table1.csv``."""

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
    frame = pd.read_csv(path)
    module = importlib.import_module(f"coalmine.reporting.{path.stem}")
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    text = format_table(frame, module.layout(frame), width)
    page, typeset = path.with_suffix(".html"), path.with_suffix(".tex")
    return f"\n{text}\n\nWith every column: {path} (numbers), {page} (a page), {typeset} (LaTeX)"


if __name__ == "__main__":
    try:
        print(show(Path(sys.argv[1])))
    except CoalmineError as error:
        sys.exit(f"error: {error}")
