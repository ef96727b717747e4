"""Train a denoiser on public data, for methods to start from: made once, shared by all shadow models."""

from __future__ import annotations

import json
from pathlib import Path

from coalmine.artefacts import digest, sidecar, write_json, write_safetensors
from coalmine.checkpoint import Checkpoint
from coalmine.diffusion.network import ConditionalUNet
from coalmine.diffusion.objective import build
from coalmine.diffusion.settings import Pretraining
from coalmine.diffusion.training import Examples, Ordinary, Streams, train
from coalmine.progress import reporter
from coalmine.run_files import read_images
from coalmine.seeds import torch_generator
from coalmine.stages import _command, _models


def main() -> None:
    """Read the public images, train, write weights and measurements."""
    command = _command.parser(__doc__)
    _models.add_execution(command)
    command.add_argument("--public", type=Path, nargs=2, metavar=("IMAGES", "LABELS"), required=True, help="its data")
    arguments = command.parse_args()
    spec = arguments.spec
    seed, name = spec["seed"], spec["name"]
    progress = reporter(f"pretrain {name}")
    device, _ = _models.execution(arguments)
    public = read_images(*arguments.public)
    shape = {
        "channels": public.images.shape[3],
        "image_size": public.images.shape[1],
        "classes": int(public.labels.max(initial=0)) + 1,
    }
    own = Pretraining.model_validate_json(json.dumps(spec["settings"]))
    (weights,) = (path for path in arguments.out if path.suffix == ".safetensors")
    inputs = {"public": digest(public.images, public.labels)}
    header = _command.header("pretrain_denoiser", spec, shape=shape, inputs=inputs)
    # Snakemake deletes the declared outputs of a job that is killed, so the checkpoint is none of them.
    checkpoint = Checkpoint(weights.parent / ".unfinished" / f"{name}.npz", header)

    initial = torch_generator(seed, "pretrain", name, "initialisation")
    network = ConditionalUNet(own.network, shape["channels"], shape["image_size"], shape["classes"], initial).to(device)
    streams = Streams(device, seed, "pretrain", name)
    data = Examples.put(public.images, public.labels, shape["classes"], device)
    update = Ordinary(network, build(own.objective), data, own, streams)
    state, seconds = train(network, update, own, streams, checkpoint, progress, name)
    write_safetensors(weights, header, {key: tensor.numpy() for key, tensor in state.items()})
    write_json(sidecar(weights), _models.measurements(seconds, device, weights.stat().st_size))
    checkpoint.remove()
    progress(f"trained on {len(public.labels):,} public images of {shape['classes']} classes in {seconds:.0f} s")


if __name__ == "__main__":
    _command.run(main)
