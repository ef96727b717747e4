"""Measure the audit of one method: scores, all attacks and all metrics, on one thread.

    python bench/audit.py [--json FILE] [--runs N] [--canaries N] [--models N] [--views N] [--classes N]

The default is the size of the papers' audit: 500 canaries, 32 models, 18 views, 10 classes. Besides the parts, the
table has LiRA as a loop over targets and canaries, the way that audits of this protocol have been written so far, for
one of the 16 variants.
"""

from __future__ import annotations

import os

THREADS = "1"
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = THREADS  # before NumPy is imported, or it has no effect

import argparse  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import scipy  # noqa: E402

from coalmine.audit.attacks import LIRA, attack_scores, primary_attack  # noqa: E402
from coalmine.audit.bootstrap import bootstrap  # noqa: E402
from coalmine.audit.design import shuffled_membership  # noqa: E402
from coalmine.audit.inputs import BoolArray, FloatArray  # noqa: E402
from coalmine.audit.lira import leave_one_out  # noqa: E402
from coalmine.audit.metrics import evaluate  # noqa: E402
from coalmine.audit.scores import margins  # noqa: E402

FPRS = (0.001, 0.01)


def naive_lira(scores: FloatArray, membership: BoolArray) -> FloatArray:
    """Online LiRA with per-sample variance, one (target, canary) at a time."""
    canaries, models, _ = scores.shape
    result = np.empty((canaries, models))
    for target in range(models):
        shadows = np.delete(scores, target, axis=1)
        inside = np.delete(membership, target, axis=1)
        for canary in range(canaries):
            log_density = []
            for side in (inside[canary], ~inside[canary]):
                fitted = shadows[canary, side]
                deviation = fitted.std(axis=0, ddof=1) + 1e-30
                z = (scores[canary, target] - fitted.mean(axis=0)) / deviation
                log_density.append(-np.log(deviation) - z * z / 2)
            result[canary, target] = np.mean(log_density[0] - log_density[1])
    return result


def milliseconds(function: Callable[[], object], runs: int) -> dict[str, float]:
    """Return the median and the extremes of several runs, after one that is not counted."""
    function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return {"median": float(np.median(times)), "min": min(times), "max": max(times)}


def processor() -> str:
    """Return the processor's name as the system states it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Measure, print a table and save it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the measurements")
    for name, default in (("runs", 7), ("canaries", 500), ("models", 32), ("views", 18), ("classes", 10)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default: {default}")
    options = parser.parse_args()
    canaries, models, views, classes = options.canaries, options.models, options.views, options.classes

    rng = np.random.default_rng(0)
    member = shuffled_membership(np.tile([True, False], (canaries, models // 2)), rng)
    labels = rng.integers(classes, size=canaries)
    logits = rng.normal(size=(canaries, models, views, classes)).astype(np.float32)
    leak = rng.exponential(size=canaries)[:, None] * member
    logits[np.arange(canaries), :, :, labels] += leak[..., None].astype(np.float32)

    scores = margins(logits, labels)
    attacks = attack_scores(logits, labels, member)
    primary = attacks[primary_attack(views)]
    difference = float(np.max(np.abs(naive_lira(scores.logit, member) - primary)))

    def lira_from_scores() -> None:
        for score in scores:
            inside, outside = leave_one_out(score, member, "IN"), leave_one_out(score, member, "OUT")
            for lira in LIRA:
                lira.per_view(outside, inside).mean(axis=-1)

    def metrics() -> None:
        for attack in attacks.values():
            evaluate(attack, member, fprs=FPRS, replicates=0, seed=0)

    def logits_to_metrics() -> None:
        for attack in attack_scores(logits, labels, member).values():
            evaluate(attack, member, fprs=FPRS, replicates=0, seed=0)

    def replicates(two_way: bool) -> Callable[[], object]:
        return lambda: bootstrap(primary, member, FPRS, 1000, seed=0, two_way=two_way)

    def all_replicates() -> None:
        for attack in attacks.values():
            bootstrap(attack, member, FPRS, 1000, seed=0)

    n = len(attacks)
    parts: list[tuple[str, Callable[[], object]]] = [
        ("logit and hinge scores from logits", lambda: margins(logits, labels)),
        ("all LiRA variants from scores", lira_from_scores),
        (f"all {n} attacks from logits", lambda: attack_scores(logits, labels, member)),
        (f"metrics of {n} attacks, no bootstrap", metrics),
        (f"logits to metrics of {n} attacks, no bootstrap", logits_to_metrics),
        ("1,000 bootstrap replicates, one attack", replicates(two_way=False)),
        ("1,000 two-way replicates, one attack", replicates(two_way=True)),
        (f"1,000 bootstrap replicates, {n} attacks", all_replicates),
    ]
    measured = {name: milliseconds(function, options.runs) for name, function in parts}
    measured["naive loop, one LiRA variant from scores"] = milliseconds(lambda: naive_lira(scores.logit, member), 1)

    report = {
        "size": {"canaries": canaries, "models": models, "views": views, "classes": classes},
        "runs": options.runs,
        "threads": int(THREADS),
        "processor": processor(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "largest_difference_from_naive_loop": difference,
        "milliseconds": measured,
    }
    print(f"{canaries} canaries x {models} models x {views} views x {classes} classes, median of {options.runs} runs")
    print(f"{report['processor']}, {THREADS} thread, " + ", ".join(f"{k} {v}" for k, v in report["versions"].items()))
    print(f"largest difference from the naive loop: {difference:.1e}\n")
    print(f"{'part':<46}{'median':>12}{'min':>12}{'max':>12}")
    for name, timing in measured.items():
        print(f"{name:<46}" + "".join(f"{timing[key]:>9.1f} ms" for key in ("median", "min", "max")))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
