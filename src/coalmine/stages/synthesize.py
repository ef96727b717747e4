"""Make the synthetic sets of a batch of shadow models with one method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coalmine.artefacts import Header, check_header, read_npz, read_safetensors_header, write_npz
from coalmine.errors import CoalmineError
from coalmine.progress import reporter
from coalmine.run_files import read_images
from coalmine.stages import _command, _models
from coalmine.stages._batch import Batch
from coalmine.stages._methods import load_method, method_module


def main() -> None:
    """Give the method its shadow models' private data and write each synthetic set as soon as it is there."""
    command = _command.parser(__doc__)
    _models.add_private_data(command)
    _models.add_guarantee(command)
    _models.add_execution(command)
    command.add_argument("--public", type=Path, nargs="*", default=[], help="public images and labels, if needed")
    command.add_argument("--experts", type=Path, nargs="*", default=[], help="experts of the shadow models, if needed")
    command.add_argument(
        "--generators", type=Path, nargs="*", default=[], help="generative models of the shadow models, if needed"
    )
    arguments = command.parse_args()
    spec = arguments.spec
    outputs = [path for path in arguments.out if path.suffix == ".npz"]
    progress = reporter(f"{spec['method']} {_command.describe([_command.shadow_number(path) for path in outputs])}")
    device, mode = _models.execution(arguments)
    data = _models.private_data(arguments)
    public = read_images(*arguments.public) if arguments.public else None
    mechanism = _models.mechanism(arguments, spec["method"], data.digests()["design"])
    inputs = _models.made_from(data, mechanism)
    method, settings = load_method(spec)
    experts = _models.by_shadow(arguments.experts, ".safetensors")
    generators = _models.by_shadow(arguments.generators, ".safetensors")

    base = _command.header("synthesize", spec, method_module(spec))

    def header(shadow: int) -> Header:
        given = {
            **({"experts": _made_for(experts[shadow], shadow, inputs, "experts")} if experts else {}),
            **({"generator": _generator_of(generators[shadow], shadow, inputs, spec)} if generators else {}),
        }
        return {**base, "shadow": shadow, "inputs": {**inputs, **given}}

    batch = Batch(outputs, header, lambda path: read_npz(path)[0], progress)
    setup = _models.setup(
        spec,
        len(data.classes),
        device,
        mode,
        progress,
        mechanism,
        public=public,
        experts=(lambda shadow: experts[shadow.number]) if experts else None,
        generator=(lambda shadow: generators[shadow.number]) if generators else None,
        class_names=data.classes,
        checkpoint=batch.checkpoint,
    )
    shadows = [data.shadow(number) for number in batch.waiting]
    canaries = data.design.index[data.design.mislabelled]
    watch = _command.Stopwatch()
    sets = method.synthesize(shadows, settings, setup)
    at_once, together = 1, None
    if mode == "stacked" and shadows:
        # Made together, so each takes an equal share of the time.
        sets = list(sets)
        at_once, together = len(shadows), watch.lap()
    for finished, (shadow, synthetic) in enumerate(zip(shadows, sets, strict=True), start=1):
        _check(synthetic.source, shadow.index, spec["method"])
        write_npz(batch.stash(shadow.number), batch.headers[shadow.number], synthetic.arrays())
        seconds = (watch.lap() if together is None else together) + batch.before(shadow.number)
        size = batch.stash(shadow.number).stat().st_size
        batch.finish(shadow.number, _models.measurements(seconds / at_once, device, size))
        taken = np.isin(canaries, synthetic.source).sum()
        progress(
            f"{finished} of {len(shadows)} synthetic sets: {len(synthetic.labels):,} images, made from {taken} of the "
            f"{np.isin(canaries, shadow.index).sum()} canaries of shadow model {shadow.number}"
        )
    batch.publish()


def _made_for(path: Path, shadow: int, inputs: dict[str, Any], stage: str) -> Header:
    """Return the header of a file that a stage made, which determines its weights; refuse another shadow model's."""
    header = read_safetensors_header(path)
    check_header(path, header, stage=stage, shadow=shadow, inputs__private=inputs["private"])
    check_header(path, header, inputs__design=inputs["design"])
    return header


def _generator_of(path: Path, shadow: int, inputs: dict[str, Any], spec: dict[str, Any]) -> Header:
    """Return the header of a generative model; refuse another shadow model's or method's."""
    header = _made_for(path, shadow, inputs, "fit")
    check_header(path, header, spec__method=spec["generator"])
    return header


def _check(source: np.ndarray, allowed: np.ndarray, method: str) -> None:
    """Refuse a synthetic set that names private samples which its shadow model must not see."""
    foreign = np.setdiff1d(source[source >= 0], allowed)
    if foreign.size:
        raise CoalmineError(
            f"{method} names {foreign.size} private samples as sources that its shadow model must not see (first: "
            f"{foreign[0]}). A method may use the samples of its own shadow model only."
        )


if __name__ == "__main__":
    _command.run(main)
