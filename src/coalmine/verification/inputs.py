"""What the header of an artefact says it was made from, against what lies there now.

Each stage writes digests of its inputs, or their whole headers, into ``inputs`` of what it makes. One function a key
says what it would write today; None means that this cannot be told, since the input is gone or damaged (which is said
of the input, not of all that was made from it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from coalmine.dag import Job
from coalmine.verification.disk import Disk

IMAGES_OF = {"resemble": ("images", "source"), "quality": ("images", "labels")}
"""Arrays of a synthetic set that a stage's digest of it covers; otherwise all but where its images came from."""


def differences(job: Job, shadow: int | None, noted: dict[str, Any], disk: Disk) -> list[str]:
    """Return the inputs that are others now than an artefact notes, with old and new value.

    Args:
        job: makes the artefact.
        shadow: the shadow model that the artefact is of; None for one of all shadow models.
        noted: ``inputs`` of its header.
        disk: the results.
    """
    found = []
    for key, was in noted.items():
        now = CHECKED[key](job, shadow, disk) if key in CHECKED else None
        if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
            now = [new if new is not None else old for old, new in zip(was, now, strict=True)]
        if now is not None and now != was:
            found += changed(was, now, f"inputs.{key}")
    return found


def changed(was: Any, now: Any, name: str = "") -> list[str]:
    """Return the keys that two blocks of JSON differ in, each with both values, shortly."""
    if isinstance(was, dict) and isinstance(now, dict):
        return [
            told
            for key in sorted({*was, *now})
            if was.get(key) != now.get(key)
            for told in changed(was.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if was == now else [f"{name} {_short(was)}, now {_short(now)}"]


def _short(value: Any, width: int = 40) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else str(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def of_shadow(paths: Iterable[Path], shadow: int | None) -> list[Path]:
    """Return those inputs that an artefact of a shadow model depends on: none of other shadow models'."""
    return [path for path in paths if shadow is None or not path.stem.isdecimal() or int(path.stem) == shadow]


def _images(part: str) -> Callable[[Job, int | None, Disk], Any]:
    return lambda job, shadow, disk: disk.images(part)


def _design(job: Job, shadow: int | None, disk: Disk) -> str | None:
    folder = next((path.parent for path in job.inputs if path.name == "canaries.csv"), None)
    return disk.design(folder) if folder else None


def _classes(job: Job, shadow: int | None, disk: Disk) -> Any:
    return (disk.says(disk.run / "data/classes.json") or {}).get("classes")


def _mechanism(job: Job, shadow: int | None, disk: Disk) -> Any:
    for path in _inputs(job, disk, "privacy", ".json", None):
        guarantee: Any = (disk.says(path) or {}).get("guarantee", {})
        return guarantee.get("mechanism")
    return None


def _synthetic(job: Job, shadow: int | None, disk: Disk) -> Any:
    paths = _inputs(job, disk, "synthetic", ".npz", shadow)
    names = IMAGES_OF.get(job.program)
    digests = [disk.digest(path, names, but="source") for path in paths]
    if shadow is not None:
        return digests[0] if digests else None
    measured = (job.spec or {}).get("shadows")
    return digests[:measured] if isinstance(measured, int) else digests


def _header_of(folder: str) -> Callable[[Job, int | None, Disk], Any]:
    def header(job: Job, shadow: int | None, disk: Disk) -> Any:
        return next((disk.says(path) for path in _inputs(job, disk, folder, ".safetensors", shadow)), None)

    return header


def _inputs(job: Job, disk: Disk, folder: str, suffix: str, shadow: int | None) -> list[Path]:
    inside = disk.run / folder
    paths = [path for path in job.inputs if path.is_relative_to(inside) and path.suffix == suffix]
    return sorted(of_shadow(paths, shadow))


CHECKED: dict[str, Callable[[Job, int | None, Disk], Any]] = {
    "private": _images("private"),
    "test": _images("test"),
    "public": _images("public"),
    "design": _design,
    "classes": _classes,
    "mechanism": _mechanism,
    "synthetic": _synthetic,
    "experts": _header_of("experts"),
    "generator": _header_of("generators"),
    "pretrained": _header_of("pretrained"),
    "features": _header_of("pretrained"),
    "teacher": _header_of("models"),
    "model": _header_of("models"),
}
