"""Densities that calibrations count."""

import json
from pathlib import Path

import numpy as np
import pytest

from recover import calibrate, execute_merge, execute_quantize, open_gguf, plan_merge, plan_quantize
from recover.calibration import moments
from recover.calibration.moments import Survey, survey
from recover.calibration.simulate import Counts
from recover.calibration.weights import Calibration
from recover.evidence.buffer import EvidenceBuffer, Source
from recover.evidence.densities import ABOVE, ATOM, BELOW, DEGREE, density
from recover.quants import ScalarType, dequantize, type_by_name
from recover.quants import quantize as encode
from tests.support.gguf_files import read_tensors, read_weights, stored, write_gguf
from tests.support.kinds import scalar
from tests.support.models import TINY

pytestmark = pytest.mark.quality


class TestDensities:
    def test_what_trained_weights_show(self, calibration: Calibration) -> None:
        """Close to the simulation for llama.cpp's encoders."""
        for each in calibration.densities:
            kind = scalar(each.type)
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

    def test_counts_are_those_of_numpy(self, tiny: list[Path], surveyed: Survey) -> None:
        """All weights of this model, of every class of code; and the fit to all at once."""
        (q3,) = (each for each in surveyed.places if each.kind.name == "Q3_K")
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
        self, tiny: list[Path], surveyed: Survey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bounded number of weights, evenly spaced, give about the same densities."""
        whole = {each.kind.name: each.counts for each in surveyed.places}
        monkeypatch.setattr(moments, "_COUNTED", 1 << 12)
        monkeypatch.setattr(moments, "_MOST_COUNTED", 1 << 20)
        for each in survey(tiny, TINY).places:
            all_weights, sampled = sum(whole[each.kind.name].n_weights), sum(each.counts.n_weights)
            assert sampled <= 1 << 20
            assert sampled >= min(all_weights, 1 << 19)
            some_shares = np.array(each.counts.n_weights) / sampled
            shares = np.array(whole[each.kind.name].n_weights) / all_weights
            np.testing.assert_allclose(some_shares, shares, atol=0.005)

    def test_codes_that_prove_nothing(self) -> None:
        """A normal density is found again, as wide as it is."""
        kind = scalar("Q4_0")
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
        kind = scalar("Q4_0")
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
        kind = scalar("Q8_0")
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
        kind = scalar("Q5_K")
        rows = tuple(map(tuple, density(kind, weighted=True).astype(np.float64).tolist()))
        x = np.random.default_rng(0).standard_normal((1, 256)).astype(np.float32)
        given_, shipped = (
            EvidenceBuffer([Source(kind, weighted=True, density=each)] * 3)
            .load([encode(x, kind)] * 3, 256)
            .density
            for each in (rows, None)
        )
        np.testing.assert_allclose(given_, shipped, rtol=1e-6)

    def test_simulated_rows_change_nothing(
        self, tiny: list[Path], calibration: Calibration, tmp_path: Path
    ) -> None:
        """A calibration that holds the shipped densities gives the bytes of a merge without."""
        document = json.loads(calibration.to_bytes())
        for each in document["densities"]:
            kind = type_by_name(each["type"])
            assert isinstance(kind, ScalarType)
            each["rows"] = density(kind).astype(np.float64).tolist()
        path = tmp_path / "c.json"
        path.write_text(json.dumps(document))
        outs = [tmp_path / "with.gguf", tmp_path / "without.gguf"]
        for out, given_ in zip(outs, (path, None), strict=True):
            execute_merge(plan_merge(tiny, out, calibration=given_))
        one, other = (read_tensors(out) for out in outs)
        assert all(one[name].rows.tobytes() == other[name].rows.tobytes() for name in one)

    def test_they_help_where_codes_prove_nothing(
        self, tmp_path: Path, rng: np.random.Generator
    ) -> None:
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
        original = read_weights(folders[1] / "t.gguf")
        errors = []
        for given_ in (None, calibration):
            out = tmp_path / "out.gguf"
            execute_merge(plan_merge(inputs[1], out, outtype="f32", calibration=given_))
            merged = read_weights(out)
            errors.append(sum(np.square(merged[name] - original[name]).sum() for name in merged))
        assert errors[1] < 0.995 * errors[0]
