"""The pictures: one function each, from plain data to a matplotlib figure.

Figures are as wide as a phone's screen or half a desktop's, so that their text stays readable; what
belongs to different models is stacked. Series differ in colour and in line or marker. Nothing here
touches `pyplot` or a display.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, ParamSpec

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from recover._text import printable

F64Array = NDArray[np.float64]
_P = ParamSpec("_P")

INK = "#010203"
"""Colour of text and axes: one that occurs nowhere else, so that a page can put its own in."""

# Paul Tol's "vibrant" scheme: told apart whatever one's colour vision, on light and dark ground.
_COLOURS = ("#0077BB", "#EE7733", "#009988", "#EE3377", "#33BBEE", "#CC3311", "#888888")
_LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
_MARKERS = "osD^vPX"

_WIDTH = 4.8  # inches
_PANEL = 1.9
_LONGEST_LABEL = 44
_SMALLEST_KL = 1e-8
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "text.usetex": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True, eq=False)
class Series:
    """A line: a label and its points."""

    label: str
    x: F64Array
    y: F64Array


@dataclass(frozen=True, eq=False)
class Panel:
    """What belongs to one model."""

    title: str
    series: Sequence[Series]


@dataclass(frozen=True, eq=False)
class Grid:
    """A value for each layer and role of one model.

    Attributes
    ----------
    title : str
        Name of the model.
    rows : sequence of str
        Roles.
    columns : sequence of str
        Layers.
    values : float64 (n_rows, n_columns)
        NaN where there is no tensor.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: F64Array


@dataclass(frozen=True, eq=False)
class Bars:
    """A share for each type of one model."""

    title: str
    values: Mapping[str, float]


def _styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Draw with our style, whatever the user's own settings are."""

    @wraps(draw)
    def styled(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def error_histogram(panels: Sequence[Panel]) -> Figure:
    """Density of the signed errors per type; `Series.x` are edges, one more than `Series.y`."""
    figure, axes = _stacked(len(panels))
    style = _type_styles(series.label for panel in panels for series in panel.series)
    for ax, panel in zip(axes, panels, strict=True):
        middles = [
            Series(each.label, (each.x[1:] + each.x[:-1]) / 2, each.y) for each in panel.series
        ]
        _draw_lines(ax, middles, style)
        top = max(float(series.y.max()) for series in panel.series)
        ax.set_yscale("log")
        if top > 0:
            ax.set_ylim(top / 3e3, 2 * top)
        edges = panel.series[0].x
        ax.set_xlim(edges[0], edges[-1])
        _finish(ax, panel.title, "", "density")
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axes[-1].set_xlabel("error: decoded minus true weight (units of the weights)")
    return figure


@_styled
def quantile_curves(panels: Sequence[Panel]) -> Figure:
    """Size of the error that a share of the weights does not exceed."""

    def scale(ax: Axes) -> None:
        ax.set_yscale("log")
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter(PercentFormatter(1))

    x_label = "share of the weights whose error is at most this"
    return _lines_in_panels(panels, x_label, "size of the error", scale)


@_styled
def error_against_weight(panels: Sequence[Panel]) -> Figure:
    """Root mean square error of the weights of about one size."""

    def scale(ax: Axes) -> None:
        ax.set_xscale("log")
        ax.set_yscale("log")

    figure = _lines_in_panels(panels, "size of the true weight", "rmse", scale)
    for ax in figure.axes:
        low, high = ax.get_ylim()
        ax.plot([low, high], [low, high], color=INK, alpha=0.4, linewidth=1, scalex=False)
        ax.set_ylim(low, high)
    return figure


@_styled
def heat_map(grids: Sequence[Grid]) -> Figure:
    """Root mean square error by role (rows) and layer (columns), one colour scale for all."""
    heights = [0.4 + 0.2 * len(grid.rows) for grid in grids]
    height = sum(heights) + 0.8
    figure = Figure((_WIDTH, height), layout="constrained")
    axes = figure.subplots(len(grids), 1, squeeze=False, height_ratios=heights)[:, 0]
    values = np.concatenate([grid.values.ravel() for grid in grids])
    values = values[np.isfinite(values) & (values > 0)]
    low, high = (values.min(), values.max()) if values.size else (0.1, 1.0)
    norm = LogNorm(low, high if high > low else 1.01 * low)
    for ax, grid in zip(axes, grids, strict=True):
        shown = np.ma.masked_where(~(grid.values > 0), grid.values)
        mesh = ax.pcolormesh(shown, cmap="cividis", norm=norm, edgecolors="face", linewidth=0.2)
        ax.grid(visible=False)
        ax.set_title(label(grid.title))
        step = -(-len(grid.columns) // 16)
        places = np.arange(len(grid.columns))[::step]
        ax.set_xticks(places + 0.5, [label(grid.columns[i]) for i in places])
        ax.set_yticks(np.arange(len(grid.rows)) + 0.5, [label(each) for each in grid.rows])
        ax.tick_params(length=0)
        ax.invert_yaxis()
        ax.spines[:].set_visible(False)
    axes[-1].set_xlabel("layer")
    bar = figure.colorbar(
        mesh, ax=list(axes), location="bottom", aspect=25, fraction=0.15 / height, pad=0.1 / height
    )
    bar.set_label("rmse (units of the weights)")
    _number_log_axis(bar.ax.xaxis)
    bar.outline.set_visible(False)
    if bar.solids is not None:  # else an image in the page
        bar.solids.set(rasterized=False, edgecolor="face")
    return figure


@_styled
def expected_against_measured(series: Sequence[Series]) -> Figure:
    """A point per tensor: expected (x) and measured (y) root mean square error, and their ratio."""
    figure = Figure((_WIDTH, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    style = _type_styles(each.label for each in series)
    drawn = [above.plot(each.x, each.y, **style.points(each.label))[0] for each in series]
    for each in series:
        below.plot(each.x, each.y / each.x, **style.points(each.label))
    values = np.concatenate([np.concatenate([each.x, each.y]) for each in series])
    low, high = 0.8 * values.min(), 1.25 * values.max()
    above.plot([low, high], [low, high], color=INK, linewidth=1, zorder=1)
    below.axhline(1, color=INK, linewidth=1, zorder=1)
    above.set_xscale("log")
    above.set_yscale("log")
    above.set_xlim(low, high)
    above.set_ylim(low, high)
    bottom, top = below.get_ylim()
    below.set_ylim(min(bottom, 0.9), max(top, 1.1))
    _finish(above, "", "", "measured rmse")
    _finish(below, "", "expected rmse (units of the weights)", "measured / expected")
    _legend(above, drawn, series)
    return figure


@_styled
def interval_widths(panels: Sequence[Panel]) -> Figure:
    """Share of the weights whose proven interval is at most so wide."""

    def scale(ax: Axes) -> None:
        ax.set_xscale("log")
        ax.set_ylim(0, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1))

    x_label = "width of the proven interval (units of the weights)"
    return _lines_in_panels(panels, x_label, "share of weights", scale)


@_styled
def exact_shares(bars: Sequence[Bars]) -> Figure:
    """For each model, and each of its types, the share of weights that equal the truth."""
    n_lines = sum(len(each.values) + 1 for each in bars)
    figure = Figure((_WIDTH, 0.7 + 0.24 * n_lines), layout="constrained")
    ax = figure.subplots()
    style = _type_styles(name for each in bars for name in each.values)
    largest = max((value for each in bars for value in each.values.values()), default=0.0)
    names: dict[int, str] = {}
    at = 0
    for each in bars:
        title = ax.text(0, at, label(each.title), weight="bold", va="center")
        title.set_transform(ax.get_yaxis_transform())
        for line, (name, value) in enumerate(each.values.items(), at + 1):
            ax.barh(line, value, height=0.8, color=style.colour(name))
            ax.text(value, line, f" {value:.2%}", va="center")
            names[line] = label(name)
        at += len(each.values) + 1
    ax.set_yticks(list(names), list(names.values()))
    ax.set_ylim(at - 0.4, -0.6)
    ax.set_xlim(0, 1.25 * largest or 1)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("share of the weights that are exactly the true ones")
    return figure


@_styled
def sorted_divergence(series: Sequence[Series]) -> Figure:
    """KL divergence per token in ascending order; `Series.x` are shares of the tokens."""
    floored = [Series(each.label, each.x, np.maximum(each.y, _SMALLEST_KL)) for each in series]
    figure, ax = _one_with_models(floored)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    _finish(ax, "", "share of the tokens whose divergence is at most this", "KL divergence (nats)")
    return figure


@_styled
def divergence_by_position(series: Sequence[Series]) -> Figure:
    """Mean KL divergence by the position of the token in its context."""
    floored = [Series(each.label, each.x, np.maximum(each.y, _SMALLEST_KL)) for each in series]
    figure, ax = _one_with_models(floored)
    _finish(ax, "", "position in the context (tokens)", "mean KL divergence (nats)")
    return figure


def _lines_in_panels(
    panels: Sequence[Panel], x_label: str, y_label: str, scale: Callable[[Axes], None]
) -> Figure:
    """A line for each type in every panel; `scale` sets up the axes, which are the same in all."""
    figure, axes = _stacked(len(panels), same=True)
    style = _type_styles(series.label for panel in panels for series in panel.series)
    for ax, panel in zip(axes, panels, strict=True):
        _draw_lines(ax, panel.series, style)
        scale(ax)
        _finish(ax, panel.title, "", y_label)
    axes[-1].set_xlabel(x_label)
    return figure


def _one_with_models(series: Sequence[Series]) -> tuple[Figure, Axes]:
    """One panel with a line per model, whose long names are above it."""
    figure = Figure((_WIDTH, 3.1 + 0.2 * len(series)), layout="constrained")
    ax = figure.subplots()
    style = _Styles(each.label for each in series)
    drawn = [ax.plot(each.x, each.y, **style.line(each.label))[0] for each in series]
    figure.legend(drawn, _legend_names(series), loc="outside upper left")
    ax.set_yscale("log")
    return figure, ax


class _Styles:
    """The same colour, line and marker for a label in all panels of a picture."""

    def __init__(self, labels: Iterable[str]) -> None:
        self._index = {each: number for number, each in enumerate(dict.fromkeys(labels))}

    def colour(self, name: str) -> str:
        return _COLOURS[self._index[name] % len(_COLOURS)]

    def line(self, name: str) -> dict[str, Any]:
        return {"color": self.colour(name), "linestyle": self._turned(_LINES, name)}

    def points(self, name: str) -> dict[str, Any]:
        marker = self._turned(_MARKERS, name)
        return {
            "color": self.colour(name),
            "marker": marker,
            "markersize": 4.5,
            "linestyle": "none",
        }

    def _turned(self, choices: Sequence[Any], name: str) -> Any:
        """Another choice for a label that has the colour of an earlier one."""
        number = self._index[name]
        return choices[(number + number // len(_COLOURS)) % len(choices)]


def _type_styles(labels: Iterable[str]) -> _Styles:
    """Quantized types first, so that the same ones look alike in all pictures."""
    return _Styles(sorted(set(labels), key=lambda name: (name in ("BF16", "F16", "F32"), name)))


def _stacked(n: int, *, panel: float = _PANEL, same: bool = False) -> tuple[Figure, list[Axes]]:
    """Panels below each other, perhaps with the same limits."""
    figure = Figure((_WIDTH, panel * n + 0.5), layout="constrained")
    axes = figure.subplots(n, 1, squeeze=False, sharex=same, sharey=same)
    return figure, list(axes[:, 0])


def _finish(ax: Axes, title: str, x_label: str, y_label: str) -> None:
    if title:
        ax.set_title(label(title))
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    for axis, scale in ((ax.xaxis, ax.get_xscale()), (ax.yaxis, ax.get_yscale())):
        if scale == "log":
            if axis.get_view_interval()[0] <= 0:  # there is nothing to show
                axis.set_view_interval(0.1, 1, ignore=True)
            _number_log_axis(axis)


def _draw_lines(ax: Axes, series: Sequence[Series], style: _Styles) -> None:
    drawn = [ax.plot(each.x, each.y, **style.line(each.label))[0] for each in series]
    _legend(ax, drawn, series)


def _number_log_axis(axis: Axis) -> None:
    """Plain numbers at powers of ten; where there are few of those, at 2 and 5, too."""

    def text(value: float, _position: int | None) -> str:
        low, high = axis.get_view_interval()
        power = float(np.log10(value))
        return _number(value) if abs(power - round(power)) < 1e-6 or high < 30 * low else ""

    axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(text))
    axis.set_minor_formatter(FuncFormatter(text))


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def _legend(ax: Axes, drawn: Sequence[Artist], series: Sequence[Series]) -> None:
    ax.legend(drawn, _legend_names(series))


def _legend_names(series: Sequence[Series]) -> list[str]:
    # The space: names that begin with an underscore would be left out.
    return [f" {label(each.label)}" for each in series]


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(_STYLE["font.family"])).get_charmap())


def label(text: str) -> str:
    """A name as a picture shows it: in one line, not too long, never taken for a formula.

    Parameters
    ----------
    text : str
        It may hold anything; characters that the font lacks are escaped.

    Returns
    -------
    str
    """
    shown = "".join(
        each if ord(each) in _glyphs() else each.encode("ascii", "backslashreplace").decode()
        for each in printable(text)
    )
    if len(shown) > _LONGEST_LABEL:
        half = _LONGEST_LABEL // 2
        shown = f"{shown[: half - 1]}\N{HORIZONTAL ELLIPSIS}{shown[-half:]}"
    return shown.replace("$", r"\$")
