"""A results folder with simulated audits, small enough to check by hand and real enough to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from coalmine.artefacts import digest, read_npz, write_npy, write_npz
from coalmine.audit.design import Design, draw_design, training_indices
from coalmine.audit.inheritance import inheritance
from coalmine.audit.metrics import evaluate, max_over_variants
from coalmine.reporting.common import ReportSettings
from coalmine.reporting.results import Results, load_results
from coalmine.run_files import design_digest, write_design
from coalmine.seeds import numpy_generator

PRIMARY = "lira-online-persample-logit-18v"
VARIANTS = {
    PRIMARY: 1.0,
    "lira-online-fixed-logit-18v": 0.9,
    "lira-offline-persample-logit-18v": 0.6,
    "lira-online-persample-hinge-18v": 1.05,
    "lira-online-persample-logit-1v": 0.8,
    "rmia-online-1v": 0.7,
    "global-logit-1v": 0.3,
}


METRICS = ("pixel", "ssim", "features")


class ResultsFolder:
    """Writes the files of one run below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def write(self, path: str, content: Any) -> Path:
        """Write JSON at a path below the root."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
        return file

    def results(self, settings: ReportSettings) -> Results:
        """Open the folder as the stages do that build tables and figures."""
        facts = ("experts", "generators", "sets", "teachers")
        known = {name: getattr(settings, name) for name in facts}
        return load_results(self.root, settings.needed, visual=settings.visual, **known)

    def metrics(self, method: str, **changes: Any) -> None:
        """Write metrics with plain known numbers; ``changes`` replace top-level fields."""
        self.write(f"metrics/{method}.json", {**known_metrics(method), **changes})

    def costs(self, method: str, **stages: list[float]) -> None:
        """Write one measurement per stage and shadow model: the seconds given."""
        for stage, seconds in stages.items():
            for shadow, value in enumerate(seconds):
                self.write(
                    f"{stage}/{method}/{shadow:03d}.json",
                    {
                        "seconds": value,
                        "device": "cpu",
                        "peak_memory_mb": 100.0 + shadow,
                        "bytes": 500_000,
                        "started": "2026-01-01",
                    },
                )

    def data(
        self, *, shape: tuple[int, int, int] = (8, 8, 1), canaries: int = 12, clean: int = 4, models: int = 4
    ) -> Design:
        """Write random private and public images, two classes and an audit design; return the design."""
        rng = numpy_generator(0, "data")
        for role, n in (("private", 60), ("public", 20)):
            write_npy(self.root / f"data/{role}/images.npy", rng.integers(0, 256, (n, *shape), dtype=np.uint8))
            write_npy(self.root / f"data/{role}/labels.npy", rng.integers(0, 3, n))
        self.write("data/classes.json", {"classes": ["cat", "dog", "owl"]})
        design = draw_design(self.load("data/private/labels"), 3, models, canaries, clean)
        write_design(self.root / "audit/canaries.csv", self.root / "audit/membership.npy", design)
        return design

    def load(self, name: str) -> np.ndarray:
        """Read an array below the root."""
        return np.load(self.root / f"{name}.npy")

    def images(
        self,
        method: str,
        design: Design,
        sources: list[list[int]],
        *,
        noise: float = 0.0,
        public: bool = True,
        metrics: tuple[str, ...] = METRICS,
        soft: bool = False,
    ) -> None:
        """Write the synthetic sets of a method, what is nearest to each image, and the models' logits.

        Image ``i`` of shadow model ``n`` is the private image ``sources[n][i]`` (grey, if that is -1) with noise on
        top; the distance by the second metric is twice the first's, by the third thrice. Logits are standard normal.
        """
        rng = numpy_generator(0, "images", method)
        private, labels = self.load("data/private/images"), self.load("data/private/labels")
        pool = self.load("data/public/images") / 255
        inputs = {"private": digest(private, labels), "design": design_digest(design)}
        header = {"spec": {"method": method}, "inputs": inputs}
        rows: list[dict[str, Any]] = []
        digests = []
        for shadow, chosen in enumerate(sources):
            source = np.array(chosen, dtype=np.int64)
            started = np.where((source >= 0)[:, None, None, None], private[source] / 255, 0.5)
            made = (started + noise * rng.normal(size=started.shape)).astype(np.float32)
            classes = rng.integers(0, 3, len(source))
            arrays = {
                "images": made,
                "labels": np.eye(3, dtype=np.float32)[classes] if soft else classes,
                "source": source,
            }
            write_npz(self.root / f"synthetic/{method}/{shadow:03d}.npz", {**header, "shadow": shadow}, arrays)
            digests.append(digest(made, source))
            seen = training_indices(design, len(private), shadow)
            held_out = design.index[~design.membership[:, shadow]]
            for position in rng.permutation(len(source)):
                row: dict[str, Any] = {"shadow": shadow, "position": position, "source": source[position]}
                for factor, metric in enumerate(metrics, start=1):
                    kinds = {"private": (private / 255, seen), "held_out": (private / 255, held_out)}
                    kinds |= {"public": (pool, np.arange(len(pool)))} if public else {}
                    for kind, (images, index) in kinds.items():
                        distances = factor * np.sqrt(((images[index] - made[position]) ** 2).sum(axis=(1, 2, 3)))
                        row[f"{metric}/{kind}"] = distances.min()
                        row[f"{metric}/{kind}_index"] = index[distances.argmin()]
                    row[f"{metric}/p"] = rng.random()
                rows.append(row)
            logits = {
                "canary_logits": rng.normal(size=(len(design.index), 2, 3)).astype(np.float32),
                "synthetic_logits": rng.normal(size=(len(source), 3)).astype(np.float32),
            }
            write_npz(self.root / f"logits/{method}/{shadow:03d}.npz", {**header, "shadow": shadow}, logits)
        arrays = {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}
        compared = {**header, "inputs": {**inputs, "synthetic": digests}}
        write_npz(self.root / f"visual/{method}.npz", compared, arrays)
        shares = {metric: 0.1 * number for number, metric in enumerate(metrics, start=1)}
        self.visual(method, models=len(sources), **shares)

    def taught(
        self, method: str, teacher: str, design: Design, *, copying: float = 0.7, easy: float = 1.0, images: int = 6
    ) -> None:
        """Simulate models that ``teacher``'s taught: images from nothing with soft labels, logits of both, metrics.

        The logit of a canary's wrong label is a teacher's own; its student's is that, by the share ``copying``, plus
        noise of its own. The larger ``easy``, the more IN canaries teachers memorise. A teacher's logits do not depend
        on the method.
        """
        audited, models = design.membership.shape
        self.images(method, design, [[-1] * images] * models, noise=0.3, soft=True)
        of_teacher, own = numpy_generator(0, "teacher", teacher), numpy_generator(0, "student", method)
        hard = of_teacher.normal(size=(audited, 1))
        surer = easy + 5 * design.membership - 3.5 + hard + of_teacher.normal(size=(audited, models))
        answers = {teacher: surer, method: copying * (surer + own.normal(size=(audited, models)))}
        rows, logits = np.arange(audited), {}
        for name, wrong in answers.items():
            logits[name] = np.full((audited, models, 3), -2.0, dtype=np.float32)
            logits[name][rows, :, design.true_label] = 0.0
            logits[name][rows, :, design.canary_label] = wrong
        inputs = {"design": design_digest(design)}
        for shadow in range(models):
            for name, few in ((teacher, 0), (method, images)):
                arrays = {
                    "canary_logits": logits[name][:, shadow, None],
                    "synthetic_logits": 2 * own.normal(size=(few, 3)).astype(np.float32),
                }
                header = {"spec": {"method": name}, "inputs": inputs, "shadow": shadow}
                write_npz(self.root / f"logits/{name}/{shadow:03d}.npz", header, arrays)
            path = self.root / f"synthetic/{method}/{shadow:03d}.npz"
            header, arrays = read_npz(path)
            odds = np.exp(2 * own.normal(size=(images, 3)))
            labels = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
            write_npz(path, header, {**arrays, "labels": labels})
        chosen = design.mislabelled
        own_labels, membership = design.canary_label[chosen], design.membership[chosen]
        pair = (logits[name][chosen] for name in (teacher, method))
        found = inheritance(*pair, own_labels, membership, replicates=200, seed=0)
        group = known_metrics(method)["groups"]["mislabelled"]
        size = {"models": models, "canaries": int(chosen.sum()), "clean": int((~chosen).sum()), "views": 1}
        inherited = {**group, "inheritance": {"teacher": teacher, **found}}
        self.metrics(method, groups={"mislabelled": inherited}, design=size)

    def visual(self, method: str, *, level: float = 0.05, models: int = 4, **shares: float) -> None:
        """Write how large a share of a method's images is flagged by each distance."""
        metrics = {
            name: {"share": {"value": share, "low": share - 0.01, "high": share + 0.02}, "per_model": [share] * models}
            for name, share in shares.items()
        }
        content = {"method": method, "images": 10, "level": level, "held_out": 6.0, "metrics": metrics}
        self.write(f"visual/{method}.json", content)

    def quality(self, method: str, distance: float, /, *, models: int = 4, **changes: Any) -> None:
        """Write what was measured of a method's images: so large a distance, and known numbers that follow from it."""

        def over(value: float) -> dict[str, Any]:
            return over_models([value * (1 + 0.02 * (model - (models - 1) / 2)) for model in range(models)])

        content = {
            "method": method,
            "space": {"name": "FD, small-cnn on public data", "inception": False},
            "images": 1000,
            "reference": 1400,
            "neighbours": 3,
            "shadows": list(range(models)),
            "distance": over(distance),
            "precision": over(0.9 / (1 + distance / 20)),
            "recall": over(0.7 / (1 + distance / 10)),
            "nearest": over(1.02),
        }
        self.write(f"quality/{method}.json", {**content, **changes})

    def sizes(self, method: str, accuracies: dict[int, list[float]]) -> None:
        """Write the accuracies of shadow models by the number of synthetic images."""
        sizes = [{"size": size, "accuracy": over_models(values)} for size, values in accuracies.items()]
        models = [*range(len(next(iter(accuracies.values()))))]
        self.write(f"sizes/{method}.json", {"method": method, "shadows": models, "sizes": sizes})

    def recipes(self, method: str, recipes: list[dict[str, Any]], synthetic: Any, real: Any) -> None:
        """Write what recipes reach on synthetic and on real images, accuracies (recipe, model)."""
        content = {"method": method, "shadows": [*range(np.shape(real)[1])], "validation": 200, "recipes": recipes}
        accuracies = {"synthetic": np.asarray(synthetic).tolist(), "real": np.asarray(real).tolist()}
        self.write(f"recipes/{method}.json", {**content, **accuracies})

    def audit(self, method: str, strengths: dict[str, float], **changes: Any) -> None:
        """Simulate an audit: ``strengths`` maps group to the shift of members' scores; writes scores and metrics.

        All methods are audited on the same canaries with the same membership. ``taken`` (bool, an entry per canary)
        says which canaries every model that holds them takes; these alone leak if ``only_taken``.
        """
        taken, only_taken = changes.pop("taken", None), changes.pop("only_taken", False)
        n_canaries, n_models = changes.pop("n_canaries", 200), changes.pop("n_models", 32)
        arrays: dict[str, np.ndarray] = {}
        groups: dict[str, Any] = {}
        for group, strength in strengths.items():
            rng, canaries = numpy_generator(0, "simulated", method, group), numpy_generator(0, "canaries", group)
            membership = canaries.random((n_canaries, n_models)).argsort(axis=1) < n_models // 2
            exposed = canaries.gamma(1.5, 1 / 1.5, size=(n_canaries, 1))
            if only_taken:
                exposed *= np.asarray(taken)[:, None]
            results = {}
            for name, power in VARIANTS.items():
                shift = strength * power * exposed * membership
                scores = rng.normal(size=membership.shape) + shift
                if name == "global-logit-1v":
                    base = -4.0 if group == "mislabelled" else 6.0
                    scores = base + 2.0 * rng.normal(size=membership.shape) + 1.6 * strength * exposed * membership
                arrays[f"{group}/{name}"] = scores.astype(np.float64)
                results[name] = evaluate(scores, membership, replicates=100, seed=1)
            arrays[f"{group}/membership"] = membership
            arrays[f"{group}/taken"] = (
                membership & np.broadcast_to(True if taken is None else taken, n_canaries)[:, None]
            )
            pairs, members = membership.size, int(membership.sum())
            for result in results.values():
                result.pop("pairs"), result.pop("members")
            groups[group] = {
                "pairs": pairs,
                "members": members,
                "variants": results,
                "max_over_variants": {f"{fpr:g}": max_over_variants(results, fpr) for fpr in (0.001, 0.01)},
                "facts": changes.pop(
                    "facts", {"selected": None, "initialised": None, "memorised": 0.8, "memorised_out": 0.02}
                ),
            }
        design = {"models": n_models, "canaries": n_canaries, "clean": n_canaries, "views": 18}
        write_npz(self.root / "scores" / f"{method}.npz", {"stage": "score"}, arrays)
        self.metrics(method, groups=groups, design=design, **changes)


def over_models(per_model: list[float]) -> dict[str, Any]:
    """Mean and standard error over models, as stages write them."""
    error = float(np.std(per_model, ddof=1) / len(per_model) ** 0.5) if len(per_model) > 1 else None
    return {"value": float(np.mean(per_model)), "se": error, "per_model": per_model}


def known_metrics(method: str) -> dict[str, Any]:
    """Metrics in which every number is different and known."""

    def variant(shift: float) -> dict[str, Any]:
        return {
            "auc": {"value": 0.7 + shift, "low": 0.65 + shift, "high": 0.75 + shift},
            "tpr": {
                "0.001": {
                    "value": 0.4 + shift,
                    "low": 0.35 + shift,
                    "high": 0.45 + shift,
                    "false_positives": 7,
                    "allowed": 8,
                },
                "0.01": {
                    "value": 0.5 + shift,
                    "low": 0.45 + shift,
                    "high": 0.55 + shift,
                    "false_positives": 79,
                    "allowed": 80,
                },
            },
            "epsilon": {"lower": 2.5 + shift, "confidence": 0.95, "delta": 1e-5, "ceiling": 4.25, "canaries": 400},
        }

    def group(shift: float) -> dict[str, Any]:
        return {
            "pairs": 16_000,
            "members": 8_000,
            "variants": {"global-logit-1v": variant(shift - 0.1), PRIMARY: variant(shift)},
            "max_over_variants": {
                "0.001": {"value": 0.4 + shift, "variant": PRIMARY},
                "0.01": {"value": 0.5 + shift, "variant": PRIMARY},
            },
            "facts": {"selected": 0.41, "initialised": None, "memorised": 0.83, "memorised_out": 0.02},
        }

    return {
        "method": method,
        "membership": "true",
        "design": {"models": 4, "canaries": 500, "clean": 300, "views": 18},
        "accuracy": {"mean": 0.9125, "se": 0.0025, "per_model": [0.91, 0.915, 0.91, 0.915]},
        "claimed": {"epsilon": None, "delta": None, "accountant": None},
        "primary": PRIMARY,
        "groups": {"mislabelled": group(0.0), "clean": group(-0.15)},
    }
