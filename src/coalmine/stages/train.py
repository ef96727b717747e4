"""Train the audited models of a batch of shadow models, on their synthetic sets or as the method does it itself."""

from __future__ import annotations

from pathlib import Path

from coalmine.artefacts import read_safetensors, write_safetensors
from coalmine.progress import reporter
from coalmine.stages import _command, _models
from coalmine.stages._batch import Batch
from coalmine.stages._methods import load_method, method_module


def main() -> None:
    """Train and write each model as soon as it is there."""
    command = _command.parser(__doc__)
    _models.add_private_data(command)
    _models.add_guarantee(command)
    _models.add_execution(command)
    command.add_argument("--synthetic", type=Path, nargs="*", default=[], help="synthetic sets of the shadow models")
    arguments = command.parse_args()
    spec = arguments.spec
    outputs = [path for path in arguments.out if path.suffix == ".safetensors"]
    numbers = [_command.shadow_number(path) for path in outputs]
    progress = reporter(f"{spec['method']} {_command.describe(numbers)}")
    device, mode = _models.execution(arguments)
    data = _models.private_data(arguments)
    design = data.digests()["design"]
    synthetic = _models.by_shadow(arguments.synthetic, ".npz")
    base = _command.header("train", spec, method_module(spec) if "module" in spec else None, shape=data.shape)
    mechanism = _models.mechanism(arguments, spec["method"], design)
    inputs = _models.made_from(data, mechanism)

    def header(shadow: int) -> dict[str, object]:
        replaced = {"synthetic": _models.digest_of_set(synthetic[shadow])} if synthetic else {}
        return {**base, "shadow": shadow, "inputs": {**inputs, **replaced}}

    batch = Batch(outputs, header, lambda path: read_safetensors(path)[0], progress)
    setup = _models.setup(
        spec, len(data.classes), device, mode, progress, mechanism=mechanism, checkpoint=batch.checkpoint
    )
    shadows = [data.shadow(number) for number in batch.waiting]
    if "module" in spec:
        method, settings = load_method(spec)
        trained_models = method.train(shadows, settings, setup)
    else:
        paths = [synthetic[shadow.number] for shadow in shadows]
        sets = [
            _models.read_synthetic(path, spec.get("set", spec["method"]), shadow.number, design)
            for path, shadow in zip(paths, shadows, strict=True)
        ]
        trained_models = setup.train(sets, shadows)
    for trained in trained_models:
        shadow = batch.waiting[trained.position]
        weights = {name: tensor.numpy() for name, tensor in trained.state.items()}
        write_safetensors(batch.stash(shadow), batch.headers[shadow], weights)
        size = batch.stash(shadow).stat().st_size
        batch.finish(shadow, _models.measurements(trained.seconds, device, size))
    batch.publish()


if __name__ == "__main__":
    _command.run(main)
