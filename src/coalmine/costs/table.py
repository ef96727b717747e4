"""What table 7 shows beside what was measured: predictions by method and stage, for this run and for presets.

They enter the table's spec: the same configuration and the same records of this package give the same numbers, rounded
to the two digits that are known, whatever lies in ``results/`` on this machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from coalmine.costs.presets import preset_run
from coalmine.costs.pricing import Draws, Estimate, Portion, Prices, Sum, main_device
from coalmine.costs.records import shipped
from coalmine.costs.scenes import RunScene
from coalmine.costs.stages import Part, parts
from coalmine.crosscheck import methods_of
from coalmine.problems import ConfigurationError

if TYPE_CHECKING:
    from coalmine.config import Run

TABLE = "table7"
TOTAL = "total"
UNSCALED = "unscaled"


class _Priced(NamedTuple):
    """One line of table 7 with its price."""

    stage: str
    part: Part
    estimate: Estimate


def predictions(run: Run, methods: Iterable[str], presets: Sequence[str]) -> list[dict[str, Any]]:
    """Return predicted costs per model by method and stage, as table 7's settings ``predicted`` have them.

    Args:
        run: whose table it is; its rows are predicted without records of the very same computations.
        methods: of the table; controls have no cost of their own.
        presets: names of presets, whose own table 7 says which of their methods are predicted.
    """
    prices = _prices()
    if prices is None:
        return []
    rows = _of_run(run, [name for name in methods if name in run.audited], prices, None)
    return rows + [row for name in presets for row in _of_preset(name)]


@cache
def _prices() -> Prices | None:
    """Return prices on the device that the package's records are mostly of."""
    records = shipped()
    device = main_device(records)
    return None if device is None else Prices(records, device)


@cache
def _of_preset(name: str) -> list[dict[str, Any]]:
    """Return a preset's rows; none where ``config.yaml`` was changed so that the preset no longer goes with it."""
    prices = _prices()
    assert prices, "asked for only where there are records"
    try:
        run = preset_run(name)
    except ConfigurationError:  # told in full to whoever runs that preset; this run has nothing to do with it
        return []
    tables = run.reports("tables")
    shown = methods_of(run.report_settings("tables", TABLE)) if TABLE in tables else run.methods
    return _of_run(run, [method for method in shown if method in run.methods], prices, name)


def _of_run(run: Run, methods: Sequence[str], prices: Prices, name: str | None) -> list[dict[str, Any]]:
    scene, draws, rows = RunScene(run), Draws(), []
    for method in methods:
        made = list(_made_for(run, method))
        priced = [
            _Priced(stage, part, estimate)
            for stage, program, owner in made
            for part in parts(program, scene.spec(program, owner), scene)
            if part.folder == {"teacher": "models"}.get(stage, stage)
            if (estimate := prices.price(part, without=name is None)) is not None
        ]
        head = {"preset": name, "method": method, "label": run.method(method).label, "models": run.shadows_of(method)}
        rows += [{**head, **_row(one.stage, [one], draws, prices)} for one in priced]
        # Where a part has no price, neither has the whole.
        if len(priced) == len(made):
            rows.append({**head, **_row(TOTAL, priced, draws, prices)})
    return rows


def _made_for(run: Run, method: str) -> Iterable[tuple[str, str, str]]:
    """Yield what a method's audit needs, in the order of the table: its stage, the program, and of whom."""
    owner = run.set_of(method)
    experts, teacher = run.experts_of(owner or method), run.teacher_of(method)
    generator = run.generator_of(owner or method)
    if teacher:
        yield "teacher", "train", teacher
    if experts:
        yield "experts", "experts", experts
    if generator:
        yield "generators", "fit", generator
    if owner:
        yield "synthetic", "distil" if run.kind(owner) == "distil" else "synthesize", owner
    yield "models", "distil" if run.kind(method) == "distil" else "train", method
    yield "logits", "logits", method


def _row(stage: str, priced: Sequence[_Priced], draws: Draws, prices: Prices) -> dict[str, Any]:
    """Return one line, per model: its seconds with their interval, its memory, and the bytes on its disk."""
    total = draws.total([Portion((one.part.folder, one.part.module), 1, one.estimate) for one in priced])
    # Of one estimate the median is known as it is; of a sum, from draws.
    middle = priced[0].estimate.seconds if len(priced) == 1 else total.median
    seconds = Sum(middle, total.low, total.high)
    peaks = [peak for one in priced if (peak := prices.memory(one.part)) is not None]
    disks = [one.part.disk for one in priced]
    known = all(one.estimate.level for one in priced)
    return {
        "stage": stage,
        "seconds": _known_digits(seconds.median),
        "low": _known_digits(seconds.low),
        "high": _known_digits(seconds.high),
        "scaled_from": (priced[0].estimate.level or UNSCALED) if len(priced) == 1 else (None if known else UNSCALED),
        "peak_memory_mb": _known_digits(max(peaks)) if peaks else None,
        "disk_mb": None if None in disks else _known_digits(sum(one or 0.0 for one in disks) / 1e6),
        "device": prices.device,
    }


def _known_digits(value: float) -> float:
    return float(f"{value:.2g}")
