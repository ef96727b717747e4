"""Direct labels that keep clear of each other, of points and of lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

FONT_SIZE = 8
DISTANCES = (7, 11, 16, 23, 32, 44, 60, 80)
"""Distances between a label and its point that are tried, in points."""
POINT_RADIUS = 6
LEADER_FROM = 14
"""From this distance on (points), and wherever another point is as near, a thin line joins a label to its point."""
ORDERS = 6
ROUNDS = 4


@dataclass(frozen=True)
class Label:
    """A direct label: its text and the point (data coordinates) that it names."""

    text: str
    x: float
    y: float


def place_labels(axes: Axes, labels: Sequence[Label], obstacles: Sequence[Any] = ()) -> list[Annotation]:
    """Write each label near its point, over no other label, point or obstacle and inside the axes where possible.

    Every label tries places around its point and takes the one that costs least: covering things, distance, a line to
    its point that crosses something, being nearer to another point than to its own. Some rounds let earlier labels
    make room for later ones; of several orders of the labels the cheapest outcome is kept.

    Args:
        axes: where the points are drawn; limits and scales must be final.
        labels: what to write.
        obstacles: artists (error bars, lines, texts) that labels should not cover.

    Returns:
        The texts, in the order of ``labels``.
    """
    from matplotlib.text import Text

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    point = figure.dpi / 72
    anchors = np.array([axes.transData.transform((label.x, label.y)) for label in labels]).reshape(-1, 2)
    notes = [_note(axes, label) for label in labels]
    sizes = [(box.width, box.height) for box in (Text.get_window_extent(note) for note in notes)]
    radius = POINT_RADIUS * point
    fixed = [(x - radius, y - radius, x + radius, y + radius) for x, y in anchors]
    fixed += [each.get_window_extent().padded(1.5 * point).extents for each in obstacles]
    problem = _Problem(
        anchors, sizes, np.array(fixed), np.array(axes.get_window_extent().padded(-3 * point).extents), point
    )
    for note, box, anchor, leader in zip(notes, *problem.solve(), strict=True):
        note.set_position(((box[0] - anchor[0]) / point, (box[1] - anchor[1]) / point))
        if not leader and note.arrow_patch is not None:
            note.arrow_patch.set_visible(False)
    return notes


def _note(axes: Axes, label: Label) -> Annotation:
    from matplotlib.patheffects import withStroke

    from coalmine.reporting.style import QUIET

    note = axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=FONT_SIZE,
        linespacing=1.15,
        ha="left",
        va="bottom",
        path_effects=[withStroke(linewidth=2, foreground="white")],
        arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4.5},
    )
    note.set_in_layout(False)
    return note


class _Problem:
    """Where to put boxes; everything in pixels, a box being ``(x0, y0, x1, y1)``."""

    def __init__(
        self, anchors: np.ndarray, sizes: list[tuple[float, float]], fixed: np.ndarray, frame: np.ndarray, point: float
    ) -> None:
        self.anchors, self.fixed, self.frame, self.point = anchors, fixed, frame, point
        self.places = [_places(anchor, size, point) for anchor, size in zip(anchors, sizes, strict=True)]
        self.own_costs = [self._own_cost(index) for index in range(len(anchors))]

    def solve(self) -> tuple[list[np.ndarray], np.ndarray, list[bool]]:
        """Return the boxes, their anchors, and which of them need a line to their anchor."""
        rng = np.random.default_rng(0)
        orders = [rng.permutation(len(self.anchors)) for _ in range(ORDERS)]
        best = min((self._descend(order) for order in orders), key=lambda outcome: outcome[0])[1]
        boxes = [places[chosen] for places, chosen in zip(self.places, best, strict=True)]
        return boxes, self.anchors, [bool(self._needs_leader(i, box[None])[0]) for i, box in enumerate(boxes)]

    def _descend(self, order: np.ndarray) -> tuple[float, list[int]]:
        chosen: dict[int, int] = {}
        total = 0.0
        for _ in range(ROUNDS):
            total = 0.0
            for index in order:
                others = [self.places[j][place] for j, place in chosen.items() if j != index]
                costs = self.own_costs[index] + self._cost_of_others(index, np.array(others).reshape(-1, 4))
                chosen[int(index)] = int(costs.argmin())
                total += float(costs.min())
        return total, [chosen[index] for index in range(len(self.anchors))]

    def _own_cost(self, index: int) -> np.ndarray:
        """Cost of each place by itself, in units of the label's area."""
        boxes = self.places[index]
        area = _area(boxes)
        covered = _overlap(boxes, self.fixed) / area[:, None]
        other_points = np.delete(np.arange(len(self.anchors)), index)
        crossed = _crossings(boxes, self.anchors[index], self.fixed[other_points])
        outside = 1 - _overlap(boxes, self.frame[None])[:, 0] / area
        distance = _gap(boxes, self.anchors[index]) / self.point
        return np.asarray(
            (2 * covered + 0.25 * (covered > 0)).sum(axis=1)
            + 12 * outside
            + distance / 100
            + 0.04 * self._ambiguity(index, boxes)
            + 0.5 * crossed * self._needs_leader(index, boxes)
        )

    def _cost_of_others(self, index: int, others: np.ndarray) -> np.ndarray:
        boxes = self.places[index]
        covered = _overlap(boxes, others).sum(axis=1) / _area(boxes)
        crossed = _crossings(boxes, self.anchors[index], others) * self._needs_leader(index, boxes)
        return np.asarray(8 * covered + 1.0 * crossed)

    def _ambiguity(self, index: int, boxes: np.ndarray) -> np.ndarray:
        """How much nearer, in points up to 8, a box would have to be to be clearly its own point's."""
        own = _gap(boxes, self.anchors[index])
        others = [_gap(boxes, anchor) for j, anchor in enumerate(self.anchors) if j != index]
        nearest = np.min(others, axis=0) if others else np.full(len(boxes), np.inf)
        return np.asarray(np.clip((own - nearest) / self.point + 6, 0, 8))

    def _needs_leader(self, index: int, boxes: np.ndarray) -> np.ndarray:
        far = _gap(boxes, self.anchors[index]) >= LEADER_FROM * self.point
        return np.asarray(far | (self._ambiguity(index, boxes) >= 3))


def _places(anchor: np.ndarray, size: tuple[float, float], point: float) -> np.ndarray:
    """Return boxes of ``size`` on all sides of ``anchor``, nearest first, ``(place, 4)``."""
    (x, y), (width, height) = anchor, size
    corners = []
    for distance in DISTANCES:
        step = distance * point
        for along in (0.0, -0.25, -0.5, -0.75, -1.0):
            corners += [(x + along * width, y + step), (x + along * width, y - step - height)]
        for along in (-0.5, -0.8, -0.2, -1.1, 0.1):
            corners += [(x + step, y + along * height), (x - step - width, y + along * height)]
    return np.array([(left, bottom, left + width, bottom + height) for left, bottom in corners])


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the shared areas, ``(box, other)``."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.clip(high - low, 0, None).prod(axis=-1))


def _gap(boxes: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """Return the distance of each box from a point."""
    beyond = np.maximum(boxes[:, :2] - anchor, anchor - boxes[:, 2:])
    return np.asarray(np.hypot(*np.clip(beyond, 0, None).T))


def _crossings(boxes: np.ndarray, anchor: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how many ``others`` the line from each box's centre to its anchor crosses."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    along = np.linspace(0, 1, 24)[:, None, None]
    line = centre * (1 - along) + anchor * along
    inside = (line[:, :, None] > others[None, None, :, :2]) & (line[:, :, None] < others[None, None, :, 2:])
    return np.asarray(inside.all(axis=-1).any(axis=0).sum(axis=-1))
