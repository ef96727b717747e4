"""A job that makes the files of several shadow models, and loses none of them when it is interrupted.

Snakemake deletes all declared outputs of a job that fails or is killed. Each finished file is therefore kept, with
its measurements, in a folder that is not declared (``.finished`` beside the output), as a second name of the same file.
The next run takes such a file over only if its header (spec, code hash, digests of the inputs) is exactly the one that
it would write itself and its bytes are those that were written, and says so. Even what has been published is kept until
Snakemake has noted that the job is done: if it is killed before that, it deletes the outputs and starts the job again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coalmine import checksums
from coalmine.artefacts import Header, place, remove_leftovers, sidecar, sync_folder, write_json
from coalmine.checkpoint import Checkpoint, checkpoint_of
from coalmine.errors import CoalmineError
from coalmine.shadows import Numbered
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
        self._read_header = read_header
        self._opened: dict[int, list[Checkpoint]] = {}
        self.headers = {shadow: header(shadow) for shadow in self._outputs}
        kept = [shadow for shadow in self._outputs if self._are_made(shadow, [own for own, _ in self._files(shadow)])]
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

    def checkpoint(self, shadow: Numbered, purpose: str = "") -> Checkpoint:
        """Return where a computation on a shadow model saves its state until all files of that model are finished.

        Args:
            shadow: the shadow model.
            purpose: what the computation is for, where there are several; each has a file of its own.
        """
        path, header = _stashed(self._outputs[shadow.number][0]), self.headers[shadow.number]
        opened = checkpoint_of(path, header, purpose)
        self._opened.setdefault(shadow.number, []).append(opened)
        return opened

    def before(self, shadow: int) -> float:
        """Return the seconds that interrupted jobs had spent on what was taken up for a shadow model."""
        return sum(checkpoint.before for checkpoint in self._opened.get(shadow, []))

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
            self._forget_checkpoints(shadow)

    def publish(self) -> None:
        """Put all finished files where Snakemake expects them.

        The copies stay until Snakemake has noted all successes (:func:`coalmine.kept.drop_kept`): what was published
        before that, Snakemake deletes if it is killed and run again.
        """
        files = [pair for shadow in self._outputs for pair in self._files(shadow)]
        for shadow in self._outputs:
            self._publish(shadow)
        for folder in {target.parent for _, target in files}:
            sync_folder(folder)
        for shadow in self._outputs:
            self._forget_checkpoints(shadow)
        for folder in {kept.parent for kept, _ in files}:
            remove_leftovers(folder)

    def _publish(self, shadow: int) -> None:
        """Put the files of a shadow model where Snakemake expects them."""
        try:
            for kept, target in self._files(shadow):
                place(kept, target)
        except FileNotFoundError:
            # A job whose Snakemake was killed goes on by itself, and may have published the same files meanwhile.
            if not self._are_made(shadow, [target for _, target in self._files(shadow)]):
                raise

    def _files(self, shadow: int) -> list[tuple[Path, Path]]:
        """Return where all files of a shadow model are kept, measurements included, and where they are published."""
        pairs = [(_stashed(output), output) for output in self._outputs[shadow]]
        return [*pairs, *((sidecar(kept), sidecar(output)) for kept, output in pairs)]

    def _are_made(self, shadow: int, paths: Sequence[Path]) -> bool:
        """Tell whether all files of a shadow model are there, whole, and those that this job would write."""
        if not all(path.is_file() for path in paths):
            return False
        try:
            artefacts = [path for path in paths if path.suffix != ".json"]
            whole = all(checksums.holds(path) for path in paths)
            return whole and all(self._read_header(path) == self.headers[shadow] for path in artefacts)
        except CoalmineError:
            return False

    def _forget_checkpoints(self, shadow: int) -> None:
        """Drop what the computations on a shadow model have saved, those of former settings included."""
        stash = _stashed(self._outputs[shadow][0])
        for path in stash.parent.glob(f"{stash.stem}.checkpoint*"):
            path.unlink(missing_ok=True)

    def _forget_measurements(self) -> None:
        """Drop measurements of files that are made anew: beside the new files they would pass for theirs."""
        for shadow in self.waiting:
            for output in self._outputs[shadow]:
                measured = sidecar(_stashed(output))
                measured.unlink(missing_ok=True)
                checksums.forget(measured)


def _stashed(output: Path) -> Path:
    return output.parent / ".finished" / output.name
