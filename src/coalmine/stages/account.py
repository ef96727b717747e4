"""Account for the privacy of a method: its guarantee, and the noise that the guarantee needs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from coalmine.artefacts import read_npy, write_json
from coalmine.audit.design import population
from coalmine.progress import reporter
from coalmine.run_files import design_digest, read_design
from coalmine.stages import _command
from coalmine.stages._methods import load_fit, load_method, method_module


def main() -> None:
    """Ask the method for its guarantee and write it."""
    command = _command.parser(__doc__)
    _command.add_design(command)
    command.add_argument("--labels", type=Path, required=True, help="data/private/labels.npy")
    arguments = command.parse_args()
    spec = arguments.spec
    labels = read_npy(arguments.labels, "int64", (None,))
    canaries, membership = arguments.design
    design = read_design(canaries, membership, labels)
    fits = [*spec["settings"]] == ["fit"]
    method, settings = load_fit(spec) if fits else load_method(spec)
    own = spec["settings"]["fit"] if fits else spec["settings"]
    size = population(design, len(labels))
    guarantee = method.guarantee(settings, size)
    (out,) = arguments.out
    header = _command.header("account", spec, method_module(spec), inputs={"design": design_digest(design)})
    write_json(out, {**header, "population": size, "clip": own["clip"], "guarantee": asdict(guarantee)})
    mechanism = guarantee.mechanism
    reporter(f"account {spec['method']}")(
        f"epsilon {guarantee.epsilon:.4g} at delta {guarantee.delta:g} ({guarantee.accountant}) with noise multiplier "
        f"{mechanism.noise_multiplier:g}, sampling rate {mechanism.sampling_rate:.4g}, {mechanism.steps:,} steps"
        + (f"; {guarantee.note}" if guarantee.note else "")
    )


if __name__ == "__main__":
    _command.run(main)
