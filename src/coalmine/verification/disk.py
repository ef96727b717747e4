"""What lies in a folder of results: each file read once, and what has been found about it kept."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from coalmine import checksums
from coalmine.artefacts import read_npy
from coalmine.audit.design import Design
from coalmine.errors import CoalmineError
from coalmine.run_files import design_digest, read_design
from coalmine.verification import content
from coalmine.verification.content import Content, DamageError


class File:
    """One file of the results.

    Args:
        folder: the one that paths are relative to.
        path: the file.
        quick: look at size and structure only, not at all bytes. (Times tell nothing: Snakemake touches what it made.)
    """

    def __init__(self, folder: Path, path: Path, *, quick: bool = False) -> None:
        self.path, self._place, self._quick = path, folder / path, quick

    @cached_property
    def exists(self) -> bool:
        """Whether it is there."""
        return self._place.is_file()

    @cached_property
    def _recorded(self) -> tuple[checksums.Record | None, str]:
        try:
            return checksums.read(self._place), ""
        except CoalmineError as error:
            return None, str(error)

    @property
    def record(self) -> checksums.Record | None:
        """What was written, if a readable record says so."""
        return self._recorded[0]

    @property
    def record_damage(self) -> str:
        """What is wrong with its record; empty if nothing is."""
        return self._recorded[1]

    @cached_property
    def now(self) -> checksums.Record:
        """What its bytes are now."""
        with open(self._place, "rb") as file:
            return checksums.measure(file)

    @cached_property
    def content(self) -> Content:
        """What it says about itself.

        Raises:
            DamageError: it is not what its suffix says.
        """
        return content.read(self._place)

    @cached_property
    def damage(self) -> str:
        """What is wrong with its bytes; empty if nothing is."""
        size = self._place.stat().st_size
        if self.record is not None:
            if size != self.record.size:
                return f"{size:,} bytes, but {self.record.size:,} were written"
            if not self._quick and self.now.sha256 != self.record.sha256:
                return "other bytes than were written (SHA-256)"
        try:
            whole = self.content
            if not self._quick:
                content.check_numbers(whole)
        except DamageError as error:
            return str(error)
        return ""


class Disk:
    """The files in a folder by path.

    Args:
        folder: the one that paths are relative to.
        run: the run's folder under it.
        quick: see :class:`File`.

    Attributes:
        misplaced: files that have turned out to be others', which nothing is held against.
    """

    def __init__(self, folder: Path, run: Path, *, quick: bool = False) -> None:
        self.folder, self.run, self.quick = folder, run, quick
        self._files: dict[Path, File] = {}
        self._digests: dict[Path, str | None] = {}
        self.misplaced: set[Path] = set()

    def __getitem__(self, path: Path) -> File:
        """Return a file, be it there or not."""
        return self._files.setdefault(path, File(self.folder, path, quick=self.quick))

    def says(self, path: Path) -> dict[str, Any] | None:
        """Return the header of a file (of JSON, its content); None if there is none to be believed."""
        return self[path].content.header if self._is_believed(path) else None

    def digest(self, path: Path, names: Iterable[str] | None = None, *, but: str = "") -> str | None:
        """Return the digest of arrays of a file: these in this order, or all but one by name; None if it is broken."""
        if not self._is_believed(path):
            return None
        fields = self[path].content.fields
        chosen = sorted(set(fields) - {but}) if names is None else names
        return content.digest(fields[name] for name in chosen)

    def images(self, part: str) -> str | None:
        """Return the digest of images and labels of ``private``, ``test`` or ``public`` data; None if they are broken.

        Where it was noted when they were prepared, that is what other files are compared with.
        """
        folder = self.run / "data" / (part if part == "public" else "")
        return self._noted(folder / "classes.json", part) or self.images_now(part)

    def images_now(self, part: str) -> str | None:
        """Return the digest of the images and labels that lie there; None if they are broken."""
        folder = self.run / "data" / part
        if folder not in self._digests:
            files = [self[folder / f"{name}.npy"] for name in ("images", "labels")]
            broken = not all(self._is_believed(file.path) for file in files)
            fields = (field for file in files for field in file.content.fields.values())
            self._digests[folder] = None if broken else content.digest(fields)
        return self._digests[folder]

    def design(self, folder: Path) -> str | None:
        """Return the digest of the audit design in a folder, as noted when it was drawn; None if it is broken."""
        noted = self._noted(folder / "design.json", "design")
        if noted is None and folder not in self._digests:
            found = self.design_now(folder)
            self._digests[folder] = None if isinstance(found, str) else design_digest(found)
        return noted or self._digests[folder]

    def design_now(self, folder: Path) -> Design | str:
        """Return the audit design that lies in a folder, or what is wrong with it."""
        labels = self.folder / self.run / "data/private/labels.npy"
        try:
            return read_design(
                self.folder / folder / "canaries.csv",
                self.folder / folder / "membership.npy",
                read_npy(labels, "int64", (None,)),
            )
        except CoalmineError as error:
            return str(error)

    def _is_believed(self, path: Path) -> bool:
        file = self[path]
        return file.exists and not file.damage and path not in self.misplaced

    def _noted(self, path: Path, key: str) -> str | None:
        """Return a digest that a file notes of what was made with it."""
        digests = (self.says(path) or {}).get("digests")
        noted = digests.get(key) if isinstance(digests, dict) else None
        return noted if isinstance(noted, str) else None
