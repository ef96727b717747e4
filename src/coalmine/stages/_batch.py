"""A job that makes the files of several shadow models, and loses none of them when it is interrupted.

Snakemake deletes all declared outputs of a job that fails or is killed. Each finished file is therefore kept, with
its measurements, in a folder that is not declared (``.finished`` beside the output) until the whole job is done. The
next run takes such a file over only if its header (spec, code hash, digests of the inputs) is exactly the one that it
would write itself, and says so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from coalmine.artefacts import Header, sidecar, write_json
from coalmine.checkpoint import Checkpoint
from coalmine.errors import CoalmineError
from coalmine.stages._command import shadow_number


class Batch:
    """The outputs of one job, by shadow model.

    A job may make several files of each shadow model, which then differ in their suffix. Either all files of a shadow
    model are taken over from an interrupted job, or none.

    Args:
        outputs: ``<shadow>.<suffix>`` files. Their measurements, ``<shadow>.json`` beside them, need not be listed.
        header: returns the header that the files of a shadow model will carry.
        read_header: reads the header of a finished file.
        progress: prints a line.

    Attributes:
        headers: what ``header`` returned, by shadow model.
        waiting: the shadow models that are still to be made, in the order of ``outputs``.
    """

    def __init__(
        self,
        outputs: Sequence[Path],
        header: Callable[[int], Header],
        read_header: Callable[[Path], Header],
        progress: Callable[[str], None],
    ) -> None:
        self._outputs: dict[int, list[Path]] = {}
        for path in outputs:
            if path.suffix != ".json":
                self._outputs.setdefault(shadow_number(path), []).append(path)
        self.headers = {shadow: header(shadow) for shadow in self._outputs}
        kept = [shadow for shadow in self._outputs if self._is_finished(shadow, read_header)]
        if kept:
            progress(f"{len(kept)} of {len(self._outputs)} were finished by an interrupted job and are kept")
        self.waiting = [shadow for shadow in self._outputs if shadow not in kept]
        self._forget_measurements()

    def stash(self, shadow: int, suffix: str | None = None) -> Path:
        """Return where the finished file of a shadow model is to be written: the one with ``suffix``, or its only one.

        Args:
            shadow: the shadow model.
            suffix: such as ``.npz``; needed where a shadow model has several files.
        """
        (output,) = [path for path in self._outputs[shadow] if suffix in (None, path.suffix)]
        return _stashed(output)

    def checkpoint(self, shadow: int) -> Checkpoint:
        """Return where the computation of a shadow model saves its state until all of its files are finished."""
        return Checkpoint(_stashed(self._outputs[shadow][0]).with_suffix(".checkpoint.npz"), self.headers[shadow])

    def finish(self, shadow: int, measured: dict[str, Any], suffix: str | None = None) -> None:
        """Note the measurements of a file of a shadow model, once all of its files have been written.

        With those of its last file the shadow model is finished.

        Args:
            shadow: the shadow model.
            measured: what lies beside the file.
            suffix: which file, see :meth:`stash`.
        """
        write_json(sidecar(self.stash(shadow, suffix)), measured)
        if all(kept.is_file() for kept, _ in self._files(shadow)):
            self.checkpoint(shadow).remove()

    def publish(self) -> None:
        """Put all finished files where Snakemake expects them, then drop the copies that were kept."""
        files = [pair for shadow in self._outputs for pair in self._files(shadow)]
        for kept, target in files:
            _copy(kept, target)
        for kept, _ in files:
            kept.unlink()
        for folder in {kept.parent for kept, _ in files}:
            with suppress(OSError):  # another job of the same method may be using it
                folder.rmdir()

    def _files(self, shadow: int) -> list[tuple[Path, Path]]:
        """Return where all files of a shadow model are kept, measurements included, and where they are published."""
        pairs = [(_stashed(output), output) for output in self._outputs[shadow]]
        return [*pairs, *((sidecar(kept), sidecar(output)) for kept, output in pairs)]

    def _is_finished(self, shadow: int, read_header: Callable[[Path], Header]) -> bool:
        kept = [stash for stash, _ in self._files(shadow)]
        if not all(path.is_file() for path in kept):
            return False
        try:
            return all(read_header(path) == self.headers[shadow] for path in kept if path.suffix != ".json")
        except CoalmineError:
            return False

    def _forget_measurements(self) -> None:
        """Drop measurements of files that are made anew: beside the new files they would pass for theirs."""
        for shadow in self.waiting:
            for output in self._outputs[shadow]:
                sidecar(_stashed(output)).unlink(missing_ok=True)


def _stashed(output: Path) -> Path:
    return output.parent / ".finished" / output.name


def _copy(source: Path, target: Path) -> None:
    """Put ``source`` at ``target`` atomically; a hard link where the file system has them."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
