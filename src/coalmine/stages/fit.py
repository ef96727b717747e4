"""Fit the generative models of a batch of shadow models, each to its shadow model's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coalmine.artefacts import Header, check_header, read_safetensors, read_safetensors_header, write_safetensors
from coalmine.progress import reporter
from coalmine.stages import _command, _models
from coalmine.stages._batch import Batch
from coalmine.stages._methods import load_fit, method_module


def main() -> None:
    """Fit and write each model as soon as it is there."""
    command = _command.parser(__doc__)
    _models.add_private_data(command)
    _models.add_guarantee(command)
    _models.add_execution(command)
    command.add_argument("--pretrained", type=Path, nargs="*", default=[], help="network that public data have trained")
    arguments = command.parse_args()
    spec = arguments.spec
    outputs = [path for path in arguments.out if path.suffix == ".safetensors"]
    progress = reporter(f"fit {spec['method']} {_command.describe([_command.shadow_number(path) for path in outputs])}")
    device, mode = _models.execution(arguments)
    data = _models.private_data(arguments)
    mechanism = _models.mechanism(arguments, spec["method"], data.digests()["design"])
    method, own = load_fit(spec)
    pretrained = next((path for path in arguments.pretrained if path.suffix == ".safetensors"), None)
    given = {"pretrained": _pretrained(pretrained, spec)} if pretrained else {}
    inputs = {**_models.made_from(data, mechanism), **given}

    # Names of classes are what prompts are made of.
    inputs["classes"] = list(data.classes)
    base = _command.header("fit", spec, method_module(spec), shape=data.shape, inputs=inputs)

    def header(shadow: int) -> Header:
        return {**base, "shadow": shadow}

    batch = Batch(outputs, header, lambda path: read_safetensors(path)[0], progress)
    setup = _models.setup(
        spec,
        len(data.classes),
        device,
        mode,
        progress,
        mechanism,
        pretrained=pretrained,
        class_names=data.classes,
        checkpoint=batch.checkpoint,
    )
    shadows = [data.shadow(number) for number in batch.waiting]
    fitted_models = method.fit(shadows, own, setup)
    for finished, (shadow, fitted) in enumerate(zip(shadows, fitted_models, strict=True), start=1):
        stash = batch.stash(shadow.number)
        write_safetensors(
            stash, batch.headers[shadow.number], {name: one.numpy() for name, one in fitted.state.items()}
        )
        batch.finish(shadow.number, _models.measurements(fitted.seconds, device, stash.stat().st_size))
        progress(f"{finished} of {len(shadows)} shadow models: the generative model of model {shadow.number}")
    batch.publish()


def _pretrained(path: Path, spec: dict[str, Any]) -> Header:
    """Return the header of a pre-trained network; refuse another one than the spec says, which later stages go by."""
    header = read_safetensors_header(path)
    named = spec["pretrained"] or {}
    check_header(path, header, stage="pretrain_denoiser", spec__name=named.get("name"))
    check_header(path, header, spec__settings=named.get("settings"))
    return header


if __name__ == "__main__":
    _command.run(main)
