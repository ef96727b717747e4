"""Train the experts of a batch of shadow models, each on its shadow model's own data, and keep their trajectories."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from coalmine.artefacts import Header, read_safetensors_header
from coalmine.checkpoint import SECONDS_BETWEEN, Checkpoint
from coalmine.distillation import trajectories
from coalmine.distillation.experts import Training
from coalmine.distillation.settings import Experts
from coalmine.distillation.space import Space
from coalmine.progress import reporter
from coalmine.shadows import Shadow
from coalmine.stages import _command, _models
from coalmine.stages._batch import Batch
from coalmine.training import whitening
from coalmine.training.recipe import Normalisation


def main() -> None:
    """Train the experts of each shadow model and write them to one file as soon as they are there."""
    command = _command.parser(__doc__)
    _models.add_private_data(command)
    _models.add_execution(command)
    arguments = command.parse_args()
    spec = arguments.spec
    outputs = [path for path in arguments.out if path.suffix == ".safetensors"]
    numbers = [_command.shadow_number(path) for path in outputs]
    progress = reporter(f"experts {spec['experts']} {_command.describe(numbers)}")
    device, mode = _models.execution(arguments)
    data = _models.private_data(arguments)
    settings = Experts.model_validate_json(json.dumps(spec["settings"]))
    normalisation = Normalisation.model_validate_json(json.dumps(spec["normalisation"]))

    base = _command.header("experts", spec, shape=data.shape, inputs=data.digests())
    batch = Batch(outputs, lambda shadow: {**base, "shadow": shadow}, read_safetensors_header, progress)
    training = Training(spec["experts"], spec["seed"], settings, len(data.classes), mode, progress)
    for finished, number in enumerate(batch.waiting, start=1):
        shadow = data.shadow(number)
        kept = _Kept(batch.stash(number), batch.headers[number])
        whitened = whitening.fit(shadow.images) if settings.zca else None
        weights = _trained(training, shadow, Space(normalisation, device, whitened), kept)
        trajectories.write(batch.stash(number), batch.headers[number], weights, whitened)
        batch.finish(number, _models.measurements(kept.seconds(), device, batch.stash(number).stat().st_size))
        kept.remove()
        progress(f"{finished} of {len(batch.waiting)} shadow models: {settings.experts} experts of model {number}")
    batch.publish()


def _trained(training: Training, shadow: Shadow, space: Space, kept: _Kept) -> np.ndarray:
    """Return the trajectories of all experts of a shadow model, (expert, epoch + 1, weight)."""
    done = kept.load()
    if done:
        training.progress(
            f"model {shadow.number}: {len(done)} experts were finished by an interrupted job and are kept"
        )
    missing = [expert for expert in range(training.settings.experts) if expert not in done]
    for expert, trajectory in training.run(shadow, space, missing):
        done[expert] = trajectory
        kept.add(expert, trajectory)
    # One after the other leaves memory, so that the trajectories are never held twice.
    first = done[0]
    weights = np.empty((training.settings.experts, *first.shape), first.dtype)
    for expert in range(training.settings.experts):
        weights[expert] = done.pop(expert)
    return weights


class _Kept:
    """The finished experts of one shadow model, saved every minute until the file of all of them is written.

    Each save writes the experts finished since the last one to a file of its own, so that none is written twice.

    Args:
        stash: where the file of all experts will be written.
        header: the one that it will have.
    """

    def __init__(self, stash: Path, header: Header) -> None:
        self._stash, self._header = stash, header
        self._unsaved: dict[int, np.ndarray] = {}
        self._start = self._last = time.perf_counter()
        self._before = 0.0

    def load(self) -> dict[int, np.ndarray]:
        """Return the experts that an interrupted job has finished, by number."""
        parts = [part for path in self._paths() if (part := Checkpoint(path, self._header).load())]
        self._before = sum(float(part["seconds"]) for part in parts)
        return {int(one): own for part in parts for one, own in zip(part["experts"], part["weights"], strict=True)}

    def add(self, expert: int, trajectory: np.ndarray) -> None:
        """Take in a finished expert; save those that are not saved yet once a minute has passed."""
        self._unsaved[expert] = trajectory
        now = time.perf_counter()
        if now - self._last < SECONDS_BETWEEN:
            return
        arrays = {
            "experts": np.array(list(self._unsaved)),
            "weights": np.stack(list(self._unsaved.values())),
            "seconds": np.array(now - self._last),
        }
        path = self._stash.with_name(f"{self._stash.stem}.experts-{min(self._unsaved):03d}.npz")
        Checkpoint(path, self._header).save(arrays)
        self._unsaved, self._last = {}, now

    def seconds(self) -> float:
        """Return how long all experts took to train, those of an interrupted job included."""
        return self._before + time.perf_counter() - self._start

    def remove(self) -> None:
        """Forget what was saved: the file of all experts is written."""
        for path in self._paths():
            path.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self._stash.parent.glob(f"{self._stash.stem}.experts-*.npz"))


if __name__ == "__main__":
    _command.run(main)
