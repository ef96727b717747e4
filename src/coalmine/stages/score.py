"""Score every attack against one method and compute all metrics with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coalmine.artefacts import check_header, read_npy, read_npz, write_json, write_npz
from coalmine.audit.attacks import attack_scores, primary_attack
from coalmine.audit.design import Design, first_models, shuffled_membership
from coalmine.audit.inheritance import inheritance
from coalmine.audit.metrics import evaluate, max_over_variants, memorised
from coalmine.errors import CoalmineError
from coalmine.progress import reporter
from coalmine.run_files import design_digest, read_account, read_design, read_images
from coalmine.seeds import numpy_generator, seed_sequence
from coalmine.stages import _command

FPRS = (0.001, 0.01)
"""The false-positive rates of the papers' tables."""


def read_logits(paths: list[Path], method: str, design: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the logits of all shadow models: float32 (canary, model, view, class) and (model, test, class)."""
    canaries: list[np.ndarray] = []
    tests: list[np.ndarray] = []
    for number, path in enumerate(paths):
        header, arrays = read_npz(
            path, canary_logits=("float32", (None, None, None)), test_logits=("float32", (None, None))
        )
        check_header(path, header, spec__method=method, shadow=number, inputs__design=design)
        shapes = arrays["canary_logits"].shape, arrays["test_logits"].shape
        if canaries and shapes != (canaries[0].shape, tests[0].shape):
            raise CoalmineError(
                f"{path}: logits of shapes {shapes[0]} and {shapes[1]}, but those of {paths[0]} are of shapes "
                f"{canaries[0].shape} and {tests[0].shape}. Delete both files and run Snakemake again."
            )
        canaries.append(arrays["canary_logits"])
        tests.append(arrays["test_logits"])
    return np.stack(canaries, axis=1), np.stack(tests)


def read_teachers(paths: list[Path], spec: dict[str, Any], students: np.ndarray, design: str) -> np.ndarray | None:
    """Read what the teachers make of the audited samples as they are: float32 (canary, model, class).

    Args:
        paths: logits of the teachers of all shadow models, none for a method without a teacher.
        spec: of this stage; ``teacher`` is the teachers' method, or None.
        students: (canary, model, view, class), logits of the models that they taught.
        design: digest of the design.

    Returns:
        None for a method without a teacher.

    Raises:
        CoalmineError: teachers are missing, not wanted, or of another method, shadow model, design or size.
    """
    teacher = spec["teacher"]
    if (teacher is None) != (not paths):
        wanted = (
            f"those of {teacher}, which taught its models" if teacher else "none, as no other models taught its own"
        )
        raise CoalmineError(
            f"--teacher lists {len(paths)} files of logits for {spec['method']}, but the spec calls for {wanted}. "
            "Give both or neither."
        )
    if teacher is None:
        return None
    logits, _ = read_logits(paths, teacher, design)
    unchanged, own = logits[:, :, 0], students[:, :, 0]
    if unchanged.shape != own.shape:
        raise CoalmineError(
            f"{paths[0].parent}: logits (canary, model, class) of shape {unchanged.shape}, but those of the models "
            f"that {teacher} taught have {own.shape}. Run Snakemake again for both, with the same number of shadow "
            "models."
        )
    return unchanged


def taken_by(paths: list[Path], design: Design) -> np.ndarray:
    """Return bool (canary, model): the synthetic set of the model holds something made from that very sample."""
    taken = np.zeros(design.membership.shape, dtype=bool)
    for number, path in enumerate(paths):
        _, arrays = read_npz(path, source=("int64", (None,)))
        taken[:, number] = np.isin(design.index, arrays["source"])
    if (taken & ~design.membership).any():
        raise CoalmineError(f"{paths[0].parent}: synthetic sets hold samples that their shadow models must not see.")
    return taken


def taken_share(taken: np.ndarray, membership: np.ndarray, source: str) -> dict[str, float | None]:
    """Return the share of member pairs that the synthetic sets were made from, under the name that it has for them.

    Args:
        taken: bool (canary, model), see :func:`taken_by`.
        membership: bool (canary, model), the true one.
        source: ``copied``: images are private ones (selected); ``initialised``: they only started as private ones.
    """
    share = float(taken[membership].mean())
    names = {"copied": "selected", "initialised": "initialised"}
    return {name: share if kind == source else None for kind, name in names.items()}


def accuracy(test_logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return test accuracy per model, its mean and its standard error over models."""
    per_model = (test_logits.argmax(axis=-1) == labels).mean(axis=-1)
    error = per_model.std(ddof=1) / np.sqrt(len(per_model))
    return {"mean": float(per_model.mean()), "se": float(error), "per_model": per_model.tolist()}


def claimed(paths: list[Path], method: str, design: str) -> dict[str, Any]:
    """Return the guarantee that a method claims, and by which mechanism; all None without one."""
    names = ("epsilon", "delta", "accountant", "noise_multiplier", "sampling_rate", "steps", "clip", "note")
    if not paths:
        return dict.fromkeys(names)
    account = read_account(paths[0], method, design)
    guarantee = account["guarantee"]
    found = {**guarantee, **guarantee["mechanism"], "clip": account["clip"], "note": guarantee["note"] or None}
    return {name: found[name] for name in names}


def inherited(
    teacher: np.ndarray,
    student: np.ndarray,
    labels: np.ndarray,
    membership: np.ndarray,
    spec: dict[str, Any],
    group: str,
) -> dict[str, Any]:
    """Return what the models of a method take over from their teachers, on one group of audited samples.

    See :func:`coalmine.audit.inheritance.inheritance` for the arrays.
    """
    found = inheritance(
        teacher,
        student,
        labels,
        membership,
        replicates=spec["bootstrap"],
        confidence=spec["confidence"],
        seed=seed_sequence(spec["seed"], spec["method"], group, "inheritance", "bootstrap"),
    )
    return {"teacher": spec["teacher"], **found}


def told(found: dict[str, Any]) -> str:
    """Return one line about what models take over from their teachers."""
    sides = ((name, found[key]) for name, key in (("IN", "members"), ("OUT", "nonmembers")))
    rates = ", ".join(f"{name} teacher {side['teacher']:.1%}, student {side['student']:.1%}" for name, side in sides)
    scores = found["members"]["scores"]
    return f"query label predicted: {rates}; " + (
        f"IN scores correlate with the teacher's by {scores['value']:.2f}"
        if scores
        else "IN scores do not vary, so nothing correlates"
    )


def main() -> None:
    """Read logits and design, score, write scores and metrics."""
    command = _command.parser(__doc__)
    _command.add_design(command)
    _command.add_test_data(command)
    command.add_argument("--labels", type=Path, required=True, help="data/private/labels.npy")
    command.add_argument("--logits", type=Path, nargs="+", required=True, help="logits of all shadow models")
    command.add_argument("--privacy", type=Path, nargs="*", default=[], help="privacy/<method>.json, if there is one")
    command.add_argument("--synthetic", type=Path, nargs="*", default=[], help="synthetic sets of all shadow models")
    command.add_argument("--teacher", type=Path, nargs="*", default=[], help="logits of all teachers, if it has any")
    arguments = command.parse_args()
    spec = arguments.spec
    progress = reporter(f"score {spec['method']}")
    canaries, membership_file = arguments.design
    whole = read_design(canaries, membership_file, read_npy(arguments.labels, "int64", (None,)))
    drawn_for = design_digest(whole)
    design = first_models(whole, spec["shadows"])
    if len(arguments.logits) != spec["shadows"]:
        raise CoalmineError(f"--logits lists {len(arguments.logits)} files for {spec['shadows']} shadow models.")
    canary_logits, test_logits = read_logits(arguments.logits, spec["of"], drawn_for)
    teacher_logits = read_teachers(arguments.teacher, spec, canary_logits, drawn_for)
    test = read_images(*arguments.test)

    membership = design.membership
    if spec["membership"] == "shuffled":
        membership = shuffled_membership(membership, numpy_generator(spec["seed"], spec["method"], "membership"))
    synthetic = [path for path in arguments.synthetic if path.suffix == ".npz"]
    taken = taken_by(synthetic, design) if synthetic else design.membership

    views = canary_logits.shape[2]
    metrics: dict[str, Any] = {
        **_command.header("score", spec, inputs={"design": drawn_for}),
        "method": spec["method"],
        "membership": spec["membership"],
        "design": {
            "models": membership.shape[1],
            "canaries": int(design.mislabelled.sum()),
            "clean": int((~design.mislabelled).sum()),
            "views": views,
        },
        "accuracy": accuracy(test_logits, test.labels),
        "claimed": claimed(arguments.privacy, spec["method"], drawn_for),
        "primary": primary_attack(views),
        "groups": {},
    }
    arrays: dict[str, np.ndarray] = {}
    for group, rows in (("mislabelled", design.mislabelled), ("clean", ~design.mislabelled)):
        if not rows.any():
            continue
        labels, included, logits = design.canary_label[rows], membership[rows], canary_logits[rows]
        scores = attack_scores(logits, labels, included)
        variants = {}
        for name, score in scores.items():
            arrays[f"{group}/{name}"] = score
            seed = seed_sequence(spec["seed"], spec["method"], group, name, "bootstrap")
            variants[name] = evaluate(
                score,
                included,
                fprs=FPRS,
                replicates=spec["bootstrap"],
                confidence=spec["confidence"],
                delta=spec["delta"],
                seed=seed,
            )
        arrays[f"{group}/membership"] = included
        arrays[f"{group}/taken"] = taken[rows]
        fits = memorised(logits, labels, included)
        metrics["groups"][group] = {
            "pairs": int(included.size),
            "members": int(included.sum()),
            "variants": variants,
            "max_over_variants": {str(fpr): max_over_variants(variants, fpr) for fpr in FPRS},
            "facts": {
                **taken_share(taken[rows], design.membership[rows], spec["source"]),
                "memorised": fits["members"],
                "memorised_out": fits["nonmembers"],
            },
            "inheritance": None,
        }
        main_result = variants[primary_attack(views)]
        progress(
            f"{group}: TPR {main_result['tpr'][str(FPRS[0])]['value']:.1%} at FPR {FPRS[0]:.1%}, "
            f"AUC {main_result['auc']['value']:.3f}"
        )
        if teacher_logits is not None:
            found = inherited(teacher_logits[rows], logits[:, :, 0], labels, included, spec, group)
            metrics["groups"][group]["inheritance"] = found
            progress(f"{group}: {told(found)}")
    scores_file, metrics_file = arguments.out
    write_npz(scores_file, {key: metrics[key] for key in ("stage", "spec", "code", "inputs")}, arrays)
    write_json(metrics_file, metrics)


if __name__ == "__main__":
    _command.run(main)
