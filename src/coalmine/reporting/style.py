"""The look that every figure shares: sizes, colours, markers, percent axes, titles and direct labels.

Figures are built on Matplotlib's object interface, without ``pyplot`` state and whatever the reader's own
``matplotlibrc`` says. Colours are seaborn's colour-blind-safe palette; every series also has its own marker and
dashes, so that it can be told apart in a black-and-white print.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

WIDTH = 6.9
"""Width of a full-width figure in inches (two columns of a paper)."""

INK = "#222222"
QUIET = "#6b6e74"
FAINT = "#d9dbdf"

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "text.parse_math": False,  # dollars in names are dollars
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 6.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "coalmine",
    "figure.dpi": 100,
}

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_HUES = (0, 1, 2, 3, 4, 5, 6, 9)
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p", "h")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1, 3, 1, 1, 1)))


@dataclass(frozen=True)
class Look:
    """How one series is drawn."""

    colour: tuple[float, float, float]
    marker: str
    dashes: Any


def look(index: int) -> Look:
    """Return the look of the ``index``-th series; no two of the first 88 share both colour and marker."""
    import seaborn as sns

    palette = sns.color_palette("colorblind")
    return Look(palette[_HUES[index % len(_HUES)]], _MARKERS[index % len(_MARKERS)], _DASHES[index % len(_DASHES)])


@contextmanager
def context() -> Iterator[None]:
    """Apply the style, from Matplotlib's defaults, to everything built or saved inside."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)  # type: ignore[arg-type]
        yield


def new_figure(
    height: float, panels: tuple[int, int] = (1, 1), width: float = WIDTH, **sharing: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row; :func:`set_title` then adds the room that a title needs on top.

    Args:
        height: inches, without the title.
        panels: number of rows and columns.
        width: inches.
        sharing: ``sharex`` and ``sharey`` of ``Figure.subplots``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    return figure, list(figure.subplots(*panels, squeeze=False, **sharing).flat)


def set_title(figure: Figure, title: str, subtitle: str) -> None:
    """Write a bold title and quieter lines underneath, flush left and wrapped, and make the figure higher by them."""
    width, height = figure.get_size_inches()
    heading = _wrapped(figure, title, fontsize=11, fontweight="bold")
    remark = _wrapped(figure, subtitle, fontsize=8, color=QUIET, linespacing=1.3)
    margin, gap = 0.09, 0.07
    sizes = [each.get_window_extent().height / figure.dpi for each in (heading, remark)]
    total = height + sum(sizes) + margin + 2 * gap
    figure.set_size_inches(width, total)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, height / total), w_pad=0.06, h_pad=0.06)
    heading.set_position((margin / width, 1 - margin / total))
    remark.set_position((margin / width, 1 - (margin + sizes[0] + gap) / total))


def _wrapped(figure: Figure, words: str, **font: Any) -> Text:
    """Add text to the top left, broken into lines that fit the figure's width."""
    lines: list[str] = []
    text = figure.text(0, 1, "", va="top", ha="left", **font)
    limit = figure.get_size_inches()[0] * figure.dpi * 0.97
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        text.set_text(longer)
        if lines and text.get_window_extent().width <= limit:
            lines[-1] = longer
        else:
            lines.append(word)
    text.set_text("\n".join(lines))
    return text


def percent_label(fraction: float, _: object = None) -> str:
    """Tick label of a fraction: ``0.01 %``, ``10 %``."""
    return f"{100 * fraction:.6g} %"


def power_label(value: float, _: object = None) -> str:
    """Tick label of a power of ten: ``10⁻³``."""
    return "10" + str(round(math.log10(value))).translate(_RAISED)


def log_percent_axis(axis: Any, low: float, high: float = 1.0) -> None:
    """Make an axis of fractions logarithmic from ``low`` to ``high`` with a label in percent at every decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log", nonpositive="clip")
    getattr(axis.axes, f"set_{axis.axis_name}lim")(low, high)
    axis.set_major_locator(LogLocator(base=10, numticks=12))
    axis.set_major_formatter(FuncFormatter(percent_label))
    axis.set_minor_formatter(NullFormatter())


def percent_axis(axis: Any) -> None:
    """Label the ticks of a linear axis of fractions in percent."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(percent_label))
