"""Copies of finished files that jobs keep until Snakemake has noted that they are done."""

from contextlib import suppress
from pathlib import Path

from coalmine import checksums


def drop_kept(run: Path) -> None:
    """Drop the kept copies of files that are published, once every job of a run of Snakemake has succeeded.

    Not sooner: Snakemake deletes what a job has published if it was killed before it noted the job's success.
    """
    for kept in run.glob("*/*/.finished/*"):
        if kept.is_file() and (kept.parent.parent / kept.name).is_file():
            kept.unlink()
            checksums.forget(kept)
    for folder in run.glob("*/*/.finished"):
        for emptied in (folder / checksums.FOLDER, folder):
            with suppress(OSError):  # something in it is not published, or another job is using it
                emptied.rmdir()
