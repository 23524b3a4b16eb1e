"""What the pictures show, against numpy on whole arrays decoded by gguf-py; and the pictures."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from recover import EvaluationError, OutputError, evaluate_models
from recover.cli import main
from recover.evaluate import plots
from recover.evaluate.divergence import summarize
from recover.evaluate.errors import ModelErrors
from recover.evaluate.histograms import (
    TypeDistribution,
    collect_distributions,
    magnitude_edges,
    quantile_curve,
    rebin,
)
from recover.evaluate.pictures import draw_pictures, save_pictures, short_names
from tests.support.gguf_files import read_tensors, read_weights, stored, write_gguf
from tests.support.models import TINY
from tests.support.pictures import NAMES, per_token

F64Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def results(tiny: list[Path]) -> list[ModelErrors]:
    return evaluate_models(tiny, TINY)


def errors_by_type(path: Path) -> dict[str, tuple[F64Array, F64Array]]:
    """Errors and true weights of the tensors of each quantized type."""
    truth, model = read_weights(TINY), read_weights(path)
    kinds = {name: tensor.kind for name, tensor in read_tensors(path).items()}
    found: dict[str, tuple[F64Array, F64Array]] = {}
    for kind in set(kinds.values()) - {"F32"}:
        names = [name for name in kinds if kinds[name] == kind]
        true = np.concatenate([truth[name].ravel() for name in names])
        error = np.concatenate([model[name].ravel() for name in names]) - true
        found[kind] = error.astype(np.float64), true.astype(np.float64)
    return found


def test_distributions(results: list[ModelErrors], tiny: list[Path]) -> None:
    collected = collect_distributions(results, TINY)
    assert [each.path for each in collected] == [str(path) for path in tiny]
    for model, path in zip(collected, tiny, strict=True):
        expected = errors_by_type(path)
        assert [each.type for each in model.types] == sorted(expected)
        for each in model.types:
            check_distribution(each, *expected[each.type])


def check_distribution(own: TypeDistribution, error: F64Array, true: F64Array) -> None:
    assert own.n_weights == error.size
    shares = np.array([0.01, 0.25, 0.5, 0.95, 0.999, 1])
    quantiles = np.quantile(np.abs(error), shares, method="inverted_cdf")
    np.testing.assert_allclose(quantile_curve(own.magnitudes(), shares), quantiles, rtol=1 / 128)
    limit = 2 * np.sqrt(np.mean(error**2))
    edges = np.linspace(-limit, limit, 24)  # 0 is inside a bin
    counts = np.histogram(error, edges)[0]
    np.testing.assert_allclose(rebin(own.errors, edges), counts, rtol=0.06)
    bins = magnitude_edges(21)
    n = np.histogram(np.abs(true), bins[:-1])[0]
    np.testing.assert_array_equal(own.n_by_weight[: n.size], n)
    square = np.histogram(np.abs(true), bins[:-1], weights=error**2)[0]
    np.testing.assert_allclose(own.square_by_weight[: n.size], square, rtol=1e-9, atol=1e-15)
    assert own.widths.sum() == error.size


def test_threads_do_not_change_distributions(results: list[ModelErrors]) -> None:
    one, three = (collect_distributions(results[:1], TINY, n_threads=n)[0] for n in (1, 3))
    assert one.expected_rmse == three.expected_rmse
    for a, b in zip(one.types, three.types, strict=True):
        for name in ("errors", "n_by_weight", "square_by_weight", "widths"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def model_files(
    folder: Path, tensors: dict[str, NDArray[np.float32]], kind: str, *, imatrix: bool = False
) -> tuple[Path, Path]:
    """A truth and what libggml makes of it."""

    def add(writer: GGUFWriter) -> None:
        if imatrix:
            writer.add_string("quantize.imatrix.file", "some")

    truth = write_gguf(folder / "truth.gguf", {n: stored("F32", x) for n, x in tensors.items()})
    quantized = {n: stored(kind, x, imatrix=imatrix) for n, x in tensors.items()}
    return write_gguf(folder / f"{kind}.gguf", quantized, add=add), truth


def test_widths_and_expected_errors_of_q8_0(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(0, 0.1, (64, 256)).astype(np.float32)
    path, truth = model_files(tmp_path, {"a": x}, "Q8_0")
    (model,) = collect_distributions(evaluate_models([path], truth), truth)
    raw = read_tensors(path)["a"].rows.reshape(-1, 34)
    d = np.repeat(raw[:, :2].copy().view(np.float16).astype(np.float64).ravel(), 32)
    (own,) = model.types
    shares = np.array([0.1, 0.5, 0.9])
    widths = quantile_curve(own.widths, shares)
    np.testing.assert_allclose(widths, np.quantile(d, shares), rtol=0.2)  # the cell is widened
    # Uniform errors in cells that are d wide.
    expected = np.sqrt(np.mean(d**2) / 12)
    assert model.expected_rmse["a"] == pytest.approx(expected, rel=0.03)


def test_open_intervals_are_those_of_the_end_codes(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    x = rng.normal(0, 0.1, (16, 256)).astype(np.float32)
    path, truth = model_files(tmp_path, {"a": x}, "Q4_K")
    (model,) = collect_distributions(evaluate_models([path], truth), truth)
    packed = read_tensors(path)["a"].rows.reshape(-1, 144)[:, 16:]
    codes = np.concatenate([packed & 15, packed >> 4])
    (own,) = model.types
    assert own.widths[0x7F80] == np.count_nonzero((codes == 0) | (codes == 15))


@pytest.mark.parametrize(("kind", "imatrix"), [("TQ2_0", False), ("Q4_0", True), ("F16", False)])
def test_types_that_prove_nothing(
    kind: str, imatrix: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    x = rng.normal(0, 0.1, (8, 256)).astype(np.float32)
    path, truth = model_files(tmp_path, {"a": x}, kind, imatrix=imatrix)
    results = evaluate_models([path], truth)
    (model,) = collect_distributions(results, truth)
    assert not np.isfinite(magnitude_edges()[np.flatnonzero(model.types[0].widths)]).any()
    assert ("a" in model.expected_rmse) == (kind != "F16")
    expected = {"interval-widths"} | ({"expected-against-measured"} if kind == "F16" else set())
    drawn = list(draw_pictures(results, [model]))
    assert [each.name for each in drawn] == [name for name in NAMES if name not in expected]


def test_a_file_that_changes_meanwhile(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(0, 0.1, (8, 256)).astype(np.float32)
    path, truth = model_files(tmp_path, {"a": x}, "Q8_0")
    results = evaluate_models([path], truth)
    for other in ({"b": stored("Q8_0", x)}, {"a": stored("Q4_0", x)}, {"a": stored("Q8_0", x[:4])}):
        write_gguf(path, other)
        with pytest.raises(EvaluationError, match=r"Q8_0\.gguf: tensor 'a' is not any more"):
            collect_distributions(results, truth)


@given(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=60))
def test_histogram_of_anything(values: list[float]) -> None:
    """Counts by the upper 16 bits, as the definition says, keep all errors in any bins."""
    x = np.array(values, np.float32)
    counts = np.bincount(x.view(np.uint32) >> 16, minlength=1 << 16)
    limit = 2.0 * max(np.abs(x).max(), np.finfo(np.float32).tiny)
    assert rebin(counts, np.linspace(-limit, limit, 8)).sum() == pytest.approx(x.size)
    magnitudes = counts[: 1 << 15] + counts[1 << 15 :]
    ends = quantile_curve(magnitudes, np.array([0.0, 1.0]))
    assert ends[0] <= np.abs(x).min() * (1 + 2.0**-7) + 1e-38
    assert ends[1] >= np.abs(x).max() * (1 - 2.0**-7)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=20)
    return buffer.getvalue()


def test_all_pictures(results: list[ModelErrors], tmp_path: Path, rng: np.random.Generator) -> None:
    measured = [replace(each, divergence=summarize(per_token(900, rng))) for each in results[::2]]
    pictures = list(draw_pictures(measured, collect_distributions(measured, TINY)))
    assert [each.name for each in pictures] == [
        *NAMES,
        "divergence-per-token",
        "divergence-by-position",
    ]
    folder = tmp_path / "new"
    paths = save_pictures(pictures, folder)
    assert paths == [folder / f"{each.name}.png" for each in pictures]
    assert sorted(folder.iterdir()) == sorted(paths)
    for picture, path in zip(pictures, paths, strict=True):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = (round(edge * 200) for edge in picture.figure.get_size_inches())
        assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (width, height)
        axes = picture.figure.axes
        assert any(ax.get_xlabel() for ax in axes)
        assert all(ax.get_xlabel() or ax.get_ylabel() or ax.get_title("left") for ax in axes)
        assert picture.title
        assert picture.caption.endswith(".")


def lines(figure: Figure) -> dict[str, tuple[F64Array, F64Array]]:
    """What is drawn, by what the legends say."""
    found = {}
    for legend in [*(ax.get_legend() for ax in figure.axes), *figure.legends]:
        if legend is None:
            continue
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            assert isinstance(handle, Line2D)
            drawn = [
                line
                for ax in figure.axes
                for line in ax.get_lines()
                if to_hex(line.get_color()) == to_hex(handle.get_color())
            ]
            x, y = drawn[0].get_data()
            found[text.get_text().strip()] = np.asarray(x), np.asarray(y)
    return found


def test_divergence_pictures_show_the_tokens(
    results: list[ModelErrors], rng: np.random.Generator
) -> None:
    tokens = [per_token(2000, rng) for _ in results]
    measured = [
        replace(each, divergence=summarize(own)) for each, own in zip(results, tokens, strict=True)
    ]
    collected = collect_distributions(results, TINY)
    drawn = {each.name: each.figure for each in draw_pictures(measured, collected)}
    per, by = lines(drawn["divergence-per-token"]), lines(drawn["divergence-by-position"])
    assert list(per) == list(by) == [Path(each.path).name for each in results]
    for each, own in zip(results, tokens, strict=True):
        shares, kl = per[Path(each.path).name]
        np.testing.assert_allclose(kl, np.quantile(own.kl, shares))
        position, mean = by[Path(each.path).name]
        near = np.abs(own.position[:, None] - position[None]).argmin(axis=1)
        expected = [own.kl[near == i].mean() for i in range(position.size)]
        np.testing.assert_allclose(mean, expected, rtol=0.5)
        n = np.bincount(near)
        assert np.average(mean, weights=n) == pytest.approx(own.kl.mean(), rel=0.02)


def test_expected_against_measured(results: list[ModelErrors]) -> None:
    collected = collect_distributions(results, TINY)
    drawn = {each.name: each.figure for each in draw_pictures(results, collected)}
    shown = lines(drawn["expected-against-measured"])
    measured = {
        kind: [t.errors.rmse for each in results for t in each.tensors if t.type == kind]
        for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
    }
    assert set(shown) == set(measured)
    for kind, values in measured.items():
        np.testing.assert_array_equal(shown[kind][1], values)
        np.testing.assert_allclose(shown[kind][0], values, rtol=0.03)


def test_heat_map_places_tensors(results: list[ModelErrors]) -> None:
    collected = collect_distributions(results, TINY)
    drawn = {each.name: each.figure for each in draw_pictures(results, collected)}
    axes = drawn["rmse-by-layer"].axes
    for ax, result in zip(axes, results, strict=False):
        rmse = {each.name: each.errors.rmse for each in result.tensors}
        roles = [text.get_text() for text in ax.get_yticklabels()]
        layers = [text.get_text() for text in ax.get_xticklabels()]
        drawn_values = ax.collections[0].get_array()
        assert drawn_values is not None
        shown = np.ma.filled(drawn_values, np.nan)
        assert layers == ["-", "0", "1", "2"]
        assert shown.shape == (len(roles), len(layers))
        for i, role in enumerate(roles):
            for j, layer in enumerate(layers):
                name = f"{role}.weight" if layer == "-" else f"blk.{layer}.{role}.weight"
                assert shown[i, j] == pytest.approx(rmse.get(name, np.nan), nan_ok=True)


def test_the_truth_itself(tmp_path: Path) -> None:
    results = evaluate_models([TINY], TINY)
    pictures = draw_pictures(results, collect_distributions(results, TINY))
    names = [path.stem for path in save_pictures(pictures, tmp_path / "p")]
    assert names == [
        name for name in NAMES if name not in ("interval-widths", "expected-against-measured")
    ]


@settings(max_examples=8)
@example("$\\frac{1}{0}$")
@example("\\$a$")
@example("_hidden")
@example("<b>&amp;</b>\n\x1b[31m")
@example("模型🦙.gguf")
@given(st.text(max_size=60))
def test_any_name_can_be_drawn(name: str) -> None:
    y = np.array([1.0, 2.0])
    figure = plots.sorted_divergence([plots.Series(name, np.array([0.0, 1.0]), y)])
    assert len(figure.legends[0].get_texts()) == 1
    figure.axes[0].set_title(plots.label(name))
    assert png(figure).startswith(b"\x89PNG")


def test_many_series_stay_apart() -> None:
    names = [f"model {number}" for number in range(20)]
    y = np.array([1.0, 2.0])
    figure = plots.sorted_divergence([plots.Series(each, y, y) for each in names])
    drawn = figure.axes[0].get_lines()
    dashes = "_unscaled_dash_pattern"  # which has no public name
    looks = {(to_hex(line.get_color()), str(vars(line)[dashes])) for line in drawn}
    assert len(looks) == len(names)


def test_long_names_keep_both_ends() -> None:
    shown = plots.label("model-" + 100 * "x" + "-Q4_K.gguf")
    assert len(shown) <= 44
    assert shown.startswith("model-")
    assert shown.endswith("-Q4_K.gguf")


def test_short_names() -> None:
    assert short_names(["a/x.gguf", "b/y.gguf"]) == ["x.gguf", "y.gguf"]
    assert short_names(["a/x.gguf", "b/x.gguf", "y.gguf"]) == ["a/x.gguf", "b/x.gguf", "y.gguf"]


def evaluate(tiny: list[Path], *options: object) -> int:
    return main(["evaluate", str(tiny[2]), "--truth", str(TINY), *map(str, options)])


def test_plot_option(tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tiny, "--plot", tmp_path / "pictures", "--json") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("{")
    assert "wrote 7 pictures into" in printed.err
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {f"{name}.png" for name in NAMES}


def test_folders_that_cannot_be_used(
    tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (file, tmp_path / "no" / "folder", tmp_path / "picture.PNG"):
        assert evaluate(tiny, "--plot", folder) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"recover: error: {folder}: ")
        assert printed.err.count("\n") == 1
    with pytest.raises(OutputError, match="is no folder"):
        save_pictures([], file)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "mine"


@pytest.mark.parametrize("option", ["--plot", "--report"])
def test_without_matplotlib(
    option: str,
    tiny: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert evaluate(tiny, option, tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "need matplotlib, which is not installed; install it with `pip install" in printed.err
    assert not list(tmp_path.iterdir())
