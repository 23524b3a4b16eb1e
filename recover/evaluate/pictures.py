"""From an evaluation to its pictures: which there are, what they show, and files of them."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recover._text import printable
from recover.containers.gguf.names import layer_of, role_of
from recover.errors import EvaluationError, OutputError
from recover.evaluate.errors import ModelErrors
from recover.evaluate.histograms import (
    WEIGHT_SHIFT,
    ModelDistributions,
    TypeDistribution,
    magnitude_edges,
    quantile_curve,
    rebin,
)
from recover.execution.output import OutputFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recover.evaluate.plots import Grid, Panel, Series
    from recover.evaluate.token_figures import PerToken

F64Array = NDArray[np.float64]

_N_BINS = 101
_N_POINTS = 401
_N_POSITIONS = 32
_MOST_ROLES = 24
_FEWEST_WEIGHTS = 20
_OF_PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg")
_TINY = 1e-30
_DPI = 200


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure and what it shows.

    Attributes
    ----------
    name : str
        For its file: lower case, with hyphens.
    title, caption : str
        For people.
    figure : Figure
        To be drawn.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"


def require_matplotlib() -> None:
    """Refuse to begin what needs pictures without the library that draws them.

    Raises
    ------
    EvaluationError
        If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise EvaluationError(
            "pictures and reports need matplotlib, which is not installed; install it with"
            " `pip install 'matplotlib>=3.9,<4'`, or this package with its extra `plot`"
        ) from None


def draw_pictures(
    results: Sequence[ModelErrors], distributions: Sequence[ModelDistributions]
) -> Iterator[Picture]:
    """Draw all pictures for which there is something to show, one after the other.

    Parameters
    ----------
    results : sequence of ModelErrors
        From `evaluate_models`, with divergences if a text was read.
    distributions : sequence of ModelDistributions
        From `collect_distributions`, in the same order.

    Yields
    ------
    Picture

    Raises
    ------
    EvaluationError
        If matplotlib is not installed.
    """
    require_matplotlib()
    names = short_names([each.path for each in results])
    yield from _of_types(names, distributions)
    yield from _of_tensors(names, results, distributions)
    yield from _of_tokens(names, results)


def short_names(paths: Sequence[str]) -> list[str]:
    """File names, or whole paths where files are called the same."""
    names = [Path(path).name for path in paths]
    n_called = Counter(names)
    return [path if n_called[name] > 1 else name for path, name in zip(paths, names, strict=True)]


def _of_types(names: Sequence[str], models: Sequence[ModelDistributions]) -> Iterator[Picture]:
    from recover.evaluate.plots import (
        Panel,
        Series,
        error_against_weight,
        error_histogram,
        interval_widths,
        quantile_curves,
    )

    def panels(curves: "Callable[[ModelDistributions], list[Series]]") -> "list[Panel]":
        drawn = zip(names, map(curves, models), strict=True)
        return [Panel(name, series) for name, series in drawn if series]

    limit = _limit(models)
    yield Picture(
        "error-histogram",
        "Errors",
        "How often which error occurs, per type. The scale of density is logarithmic; the frame"
        " holds 99.9% of the errors of the coarsest type, and is the same for all models.",
        error_histogram(
            panels(lambda model: [Series(t.type, *_density(t, limit)) for t in model.types])
        ),
    )
    yield Picture(
        "error-quantiles",
        "Quantiles of the error",
        "The size of the error that a given share of the weights does not exceed, per type. Where a"
        " line begins, weights are exact up to there.",
        quantile_curves(
            panels(lambda model: [Series(t.type, *_quantiles(t)) for t in model.types])
        ),
    )
    yield Picture(
        "error-against-weight",
        "Error against weight",
        "Root mean square error of the weights of about one size, per type. On the thin line errors"
        " are as large as the weights.",
        error_against_weight(
            panels(lambda model: [Series(t.type, *_by_weight(t)) for t in model.types])
        ),
    )
    widths = panels(
        lambda model: [Series(t.type, *_widths(t)) for t in model.types if t.widths.any()]
    )
    if widths:
        yield Picture(
            "interval-widths",
            "Proven intervals",
            "Share of the weights of which the stored code proves that they lie in an interval at"
            " most so wide. Where a line ends below 100%, the intervals of the others are open on a"
            " side.",
            interval_widths(widths),
        )


def _limit(models: Sequence[ModelDistributions]) -> float:
    """What 99.9% of the errors of any type do not exceed: where all histograms end."""
    sizes = [t.magnitudes() for model in models for t in model.types]
    limit = max(float(quantile_curve(each, np.array([0.999]))[0]) for each in sizes)
    return limit if limit > _TINY else 1.0


def _density(own: TypeDistribution, limit: float) -> tuple[F64Array, F64Array]:
    """Edges and densities, on the same bins for all types of all models."""
    edges = np.linspace(-1, 1, _N_BINS + 1) * limit
    return edges, rebin(own.errors, edges) / (own.n_weights * np.diff(edges))


def _quantiles(own: TypeDistribution) -> tuple[F64Array, F64Array]:
    shares = np.linspace(0, 1, _N_POINTS)
    sizes = quantile_curve(own.magnitudes(), shares)
    return shares, np.where(sizes > _TINY, sizes, np.nan)


def _by_weight(own: TypeDistribution) -> tuple[F64Array, F64Array]:
    """Sizes of weights and errors; not where there are next to no weights."""
    n, edges = own.n_by_weight, magnitude_edges(WEIGHT_SHIFT)[:-1]
    n = n[: edges.size - 1]
    squares = own.square_by_weight[: n.size]
    shown = (np.cumsum(n) > 1e-3 * n.sum()) & (n >= _FEWEST_WEIGHTS) & (edges[:-1] > 0)
    sizes = np.sqrt(edges[:-1][shown] * edges[1:][shown])
    errors = np.sqrt(squares[shown] / n[shown])
    return sizes, np.where(errors > _TINY, errors, np.nan)


def _widths(own: TypeDistribution) -> tuple[F64Array, F64Array]:
    shares = np.linspace(0.001, 0.999, _N_POINTS)
    bounded = int(own.widths[:-1][: magnitude_edges().size - 1].sum())
    return quantile_curve(own.widths, shares), shares * bounded / int(own.widths.sum())


def _of_tensors(
    names: Sequence[str], results: Sequence[ModelErrors], models: Sequence[ModelDistributions]
) -> Iterator[Picture]:
    from recover.evaluate.plots import (
        Bars,
        Series,
        exact_shares,
        expected_against_measured,
        heat_map,
    )

    yield Picture(
        "rmse-by-layer",
        "Errors by layer",
        "Root mean square error of each tensor: roles in rows, layers in columns; tensors outside"
        " of the layers come first.",
        heat_map([_grid(name, result) for name, result in zip(names, results, strict=True)]),
    )
    points: dict[str, list[tuple[float, float]]] = {}
    for result, model in zip(results, models, strict=True):
        for each in result.tensors:
            pair = model.expected_rmse.get(each.name, 0.0), each.errors.rmse
            if min(pair) > 0:
                points.setdefault(each.type, []).append(pair)
    if points:
        yield Picture(
            "expected-against-measured",
            "Expected and measured errors",
            "A point per quantized tensor: the root mean square error that its type and its scales"
            " let expect without the truth, the measured one, and the ratio of both.",
            expected_against_measured(
                [Series(name, *np.array(pairs).T) for name, pairs in sorted(points.items())]
            ),
        )
    yield Picture(
        "exact-weights",
        "Exact weights",
        "Share of the weights that are exactly those of the original, per type.",
        exact_shares(
            [
                Bars(f"{name}: {result.total.exact_fraction:.2%} of all", _exact_by_type(result))
                for name, result in zip(names, results, strict=True)
            ]
        ),
    )


def _grid(name: str, result: ModelErrors) -> "Grid":
    from recover.evaluate.plots import Grid

    weights: dict[str, int] = {}
    for each in result.tensors:
        role = role_of(each.name)
        weights[role] = weights.get(role, 0) + each.errors.n_weights
    most = set(sorted(weights, key=lambda role: -weights[role])[:_MOST_ROLES])
    roles = [role for role in weights if role in most]
    layers = sorted({_layer(each.name) for each in result.tensors if role_of(each.name) in most})
    values = np.full((len(roles), len(layers)), np.nan)
    rows = {role: i for i, role in enumerate(roles)}
    columns = {layer: i for i, layer in enumerate(layers)}
    for each in result.tensors:
        role = role_of(each.name)
        if role in most:
            values[rows[role], columns[_layer(each.name)]] = each.errors.rmse
    return Grid(name, roles, ["-" if layer < 0 else str(layer) for layer in layers], values)


def _layer(name: str) -> int:
    layer = layer_of(name)
    return -1 if layer is None else layer


def _exact_by_type(result: ModelErrors) -> dict[str, float]:
    exact: dict[str, float] = {}
    n_weights: dict[str, int] = {}
    for each in result.tensors:
        n = each.errors.n_weights
        exact[each.type] = exact.get(each.type, 0.0) + n * each.errors.exact_fraction
        n_weights[each.type] = n_weights.get(each.type, 0) + n
    return {name: exact[name] / n_weights[name] for name in sorted(exact)}


def _of_tokens(names: Sequence[str], results: Sequence[ModelErrors]) -> Iterator[Picture]:
    from recover.evaluate.plots import Series, divergence_by_position, sorted_divergence

    known = [
        (name, result.divergence.per_token)
        for name, result in zip(names, results, strict=True)
        if result.divergence is not None
    ]
    if not known:
        return
    shares = np.linspace(0, 1, _N_POINTS)
    yield Picture(
        "divergence-per-token",
        "Divergence per token",
        "KL divergence of the model from the original for each scored token, sorted.",
        sorted_divergence(
            [Series(name, shares, np.quantile(each.kl, shares)) for name, each in known]
        ),
    )
    yield Picture(
        "divergence-by-position",
        "Divergence by position",
        "Mean KL divergence by how many tokens of context the model had seen.",
        divergence_by_position([Series(name, *_by_position(each)) for name, each in known]),
    )


def _by_position(own: "PerToken") -> tuple[F64Array, F64Array]:
    """Mean position and divergence in bins of positions."""
    first, last = int(own.position.min()), int(own.position.max())
    step = -(-(last + 1 - first) // _N_POSITIONS)
    bins = (own.position - first) // step
    n = np.bincount(bins)
    used = n > 0
    position, kl = (
        np.bincount(bins, weights=values)[used] / n[used] for values in (own.position, own.kl)
    )
    return position, kl


def check_folder(folder: Path) -> None:
    """Refuse a folder that pictures cannot be written to, before the work.

    Raises
    ------
    OutputError
        If it is a file or called like a picture, or the folder that it is to be made in does not
        exist.
    """
    shown = printable(folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{shown}: is no folder; name one for the pictures")
        if folder.suffix.lower() in _OF_PICTURES and not folder.exists():
            raise OutputError(f"{shown}: is the name of a picture; name a folder for several")
        if not folder.resolve().parent.is_dir():
            raise OutputError(f"{shown}: the folder that it is to be made in does not exist")
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL character
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{shown}: cannot be used: {reason}") from None


def save_pictures(
    pictures: Iterable[Picture], folder: Path, inputs: Iterable[Path] = ()
) -> list[Path]:
    """Write pictures as PNG files, each of which appears when it is complete.

    Parameters
    ----------
    pictures : iterable of Picture
        From `draw_pictures`.
    folder : Path
        Made if it is not there.
    inputs : iterable of Path
        Files that must not be overwritten.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    OutputError
        If the folder cannot be made or a file not be written; a folder that was made goes again.
    """
    check_folder(folder)
    inputs = list(inputs)
    paths: list[Path] = []
    with _made(folder):
        for picture in pictures:
            buffer = io.BytesIO()
            picture.figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
            path = folder / f"{picture.name}.png"
            with OutputFile(path, buffer.tell(), inputs) as output:
                output.write_at(0, buffer.getbuffer())
            paths.append(path)
    return paths


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder if it is not there; after an error, one that was made goes again."""
    is_new = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{printable(folder)}: cannot be made: {error.strerror}") from None
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):
                for path in folder.glob("*.png"):
                    path.unlink()
                folder.rmdir()
        raise
