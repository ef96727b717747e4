"""Containers that several tests read."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

TAR_MODES = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


@pytest.fixture
def pack(tmp_path: Path) -> Callable[[str, dict[str, bytes]], Path]:
    """Return a function that writes files as ``data.<kind>``: a folder, zip or tar of whatever compression."""

    def packed(kind: str, files: dict[str, bytes]) -> Path:
        path = tmp_path / f"data.{kind}"
        if kind == "folder":
            for name, data in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)
        elif kind == "zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in files.items():
                    archive.writestr(name, data)
        else:
            with tarfile.open(path, TAR_MODES[kind]) as tar:  # type: ignore[call-overload]
                for name, data in files.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return path

    return packed
