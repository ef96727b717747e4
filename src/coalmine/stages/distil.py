"""Distil the students of a batch of shadow models, and the images that they learn from, out of their teachers alone.

A student is made from the trained model of another method, its teacher, and from nothing else: this stage is given no
private data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from coalmine.artefacts import (
    Header,
    check_header,
    read_npz,
    read_safetensors,
    read_safetensors_header,
    write_npz,
    write_safetensors,
)
from coalmine.errors import CoalmineError
from coalmine.models.settings import ModelSettings
from coalmine.progress import reporter
from coalmine.shadows import Distilled, Teacher
from coalmine.stages import _command, _models
from coalmine.stages._batch import Batch
from coalmine.stages._methods import load_method, method_module
from coalmine.training.whitening import split

SET, STUDENT = ".npz", ".safetensors"
"""The two files of a shadow model."""


def main() -> None:
    """Give the method its teachers and write each student and its images as soon as they are there."""
    command = _command.parser(__doc__)
    _models.add_execution(command)
    command.add_argument(
        "--teachers", type=Path, nargs="+", required=True, help="models of the shadow models' teachers"
    )
    arguments = command.parse_args()
    spec = arguments.spec
    numbers = [*dict.fromkeys(map(_command.shadow_number, arguments.out))]
    progress = reporter(f"{spec['method']} {_command.describe(numbers)}")
    device, mode = _models.execution(arguments)
    teachers = _models.by_shadow(arguments.teachers, STUDENT)
    learned = {number: _read_header(teachers[number], number, spec) for number in numbers}
    classes = _common_shape(teachers, learned)["classes"]
    method, settings = load_method(spec)
    base = _command.header("distil", spec, method_module(spec))

    def header(shadow: int) -> Header:
        made_from = {name: learned[shadow]["inputs"][name] for name in ("private", "design")}
        return {**base, "shadow": shadow, "inputs": {**made_from, "teacher": learned[shadow]}}

    batch = Batch(arguments.out, header, _header_of, progress)
    setup = _models.setup(spec, classes, device, mode, progress, checkpoint=batch.checkpoint)
    waiting = [_read_teacher(teachers[number], learned[number], spec) for number in batch.waiting]
    students = method.distil(waiting, settings, setup)
    for finished, (teacher, student) in enumerate(zip(waiting, students, strict=True), start=1):
        _write(batch, teacher.number, student, spec["method"], device)
        kept = len(student.synthetic.labels)
        progress(f"{finished} of {len(waiting)} students: {kept:,} images of shadow model {teacher.number} are kept")
    batch.publish()


def _write(batch: Batch, shadow: int, student: Distilled, method: str, device: torch.device) -> None:
    """Write the two files of a shadow model."""
    if (student.synthetic.source != -1).any():
        raise CoalmineError(
            f"{method} names private samples as the source of its images, but is given none: `source` of a data-free "
            "method must be -1 for every image."
        )
    write_npz(batch.stash(shadow, SET), batch.headers[shadow], student.synthetic.arrays())
    weights = {name: tensor.numpy() for name, tensor in student.state.items()}
    write_safetensors(batch.stash(shadow, STUDENT), batch.headers[shadow], weights)
    for suffix, seconds in ((SET, student.synthesis_seconds), (STUDENT, student.training_seconds)):
        size = batch.stash(shadow, suffix).stat().st_size
        batch.finish(shadow, _models.measurements(seconds, device, size), suffix)


def _read_header(path: Path, shadow: int, spec: dict[str, Any]) -> Header:
    """Read the header of a teacher; refuse another method's, architecture's or shadow model's."""
    header = read_safetensors_header(path)
    teacher = spec["teacher"]
    check_header(
        path,
        header,
        stage="train",
        spec__method=teacher["method"],
        spec__model=teacher["model"],
        spec__normalisation=spec["normalisation"],
        shadow=shadow,
    )
    return header


def _common_shape(paths: dict[int, Path], headers: dict[int, Header]) -> dict[str, int]:
    """Return channels, size and number of classes of the images that all teachers of a job were trained on."""
    first, *others = headers
    inputs = headers[first]["inputs"]
    shape: dict[str, int] = headers[first]["shape"]
    for number in others:
        check_header(paths[number], headers[number], shape=shape, inputs__private=inputs["private"])
        check_header(paths[number], headers[number], inputs__design=inputs["design"])
    return shape


def _read_teacher(path: Path, header: Header, spec: dict[str, Any]) -> Teacher:
    """Read a teacher's weights; refuse one that was trained on whitened images."""
    tensors = {name: torch.from_numpy(array) for name, array in read_safetensors(path)[1].items()}
    state, whitening = split(tensors)
    if whitening is not None:
        raise CoalmineError(
            f"{path} was trained on whitened images, but a data-free method makes images that are not; name another "
            f"teacher (methods.{spec['method']}.teacher)."
        )
    return Teacher(
        number=header["shadow"],
        model=TypeAdapter(ModelSettings).validate_json(json.dumps(spec["teacher"]["model"])),
        state=state,
        **header["shape"],
    )


def _header_of(path: Path) -> Header:
    """Read the header of a finished file, and all of its content, so that a damaged one is not taken over."""
    return (read_npz(path) if path.suffix == SET else read_safetensors(path))[0]


if __name__ == "__main__":
    _command.run(main)
