"""Write envs/coalmine.yaml, the conda environment of the rules, from the one lock file.

Run it after the lock has changed (`make lock` does); a test compares the file with what this prints.
"""

from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = """\
# Generated from requirements.lock by envs/generate.py; do not edit.
# The environment of every rule when Snakemake runs with `--sdm conda`.
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def pins(lock: str) -> list[str]:
    """Return the requirements of a lock file, with their environment markers and without their hashes."""
    lines = (line.removesuffix("\\").strip() for line in lock.splitlines() if line[:1].isalnum())
    return [line for line in lines if line]


def environment(lock: str) -> str:
    """Return the text of the conda environment file."""
    return HEADER + "".join(f'      - "{pin}"\n' for pin in pins(lock))


if __name__ == "__main__":
    (HERE / "coalmine.yaml").write_text(environment((HERE.parent / "requirements.lock").read_text()))
