"""A results folder with simulated audits, small enough to check by hand and real enough to look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coalmine.artefacts import write_npz
from coalmine.audit.metrics import evaluate, max_over_variants
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

    def audit(self, method: str, strengths: dict[str, float], **changes: Any) -> None:
        """Simulate an audit: ``strengths`` maps group to the shift of members' scores; writes scores and metrics.

        All methods are audited on the same canaries with the same membership.
        """
        n_canaries, n_models = changes.pop("n_canaries", 200), changes.pop("n_models", 32)
        arrays: dict[str, np.ndarray] = {}
        groups: dict[str, Any] = {}
        for group, strength in strengths.items():
            rng, canaries = numpy_generator(0, "simulated", method, group), numpy_generator(0, "canaries", group)
            membership = canaries.random((n_canaries, n_models)).argsort(axis=1) < n_models // 2
            exposed = canaries.gamma(1.5, 1 / 1.5, size=(n_canaries, 1))
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


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    """An empty results folder."""
    return ResultsFolder(tmp_path / "results" / "test")


@pytest.fixture
def metrics_of() -> Callable[[str], dict[str, Any]]:
    """Return known metrics of a method, to be changed by the test."""
    return known_metrics
