"""Inputs with weights that are no numbers, or too large for the output."""

from pathlib import Path

import numpy as np
import pytest

from recover.errors import PlanError
from recover.estimators import method_names
from tests.support.gguf_files import F32Array, Stored, read_weights, stored
from tests.support.merging import COMBINING, UP, Make, Q, merge, merged


class TestTooLarge:
    @pytest.fixture
    def large(self, make: Make, truth: dict[str, F32Array]) -> list[Path]:
        x = truth[UP].copy()
        x[-1, -1] = 1e5
        return [make(kind, {UP: stored(kind, x)}) for kind in ("Q8_0", "Q4_0")]

    @pytest.mark.parametrize("method", method_names())
    def test_beyond_half_precision(self, large: list[Path], tmp_path: Path, method: str) -> None:
        output = tmp_path / "out.gguf"
        with pytest.raises(PlanError, match="beyond the range") as caught:
            merge(large, output, method=method)
        assert UP in str(caught.value)
        assert "F16" in str(caught.value)
        assert "--outtype bf16" in str(caught.value)
        assert sorted(tmp_path.iterdir()) == sorted(large)

    @pytest.mark.parametrize("outtype", ["bf16", "f32"])
    def test_other_types_hold_it(self, large: list[Path], tmp_path: Path, outtype: str) -> None:
        weights = merged(large, tmp_path / "out.gguf", outtype=outtype)
        assert weights[UP][-1, -1] == pytest.approx(1e5, rel=0.01)

    def test_an_older_output_survives(self, large: list[Path], tmp_path: Path) -> None:
        output = tmp_path / "out.gguf"
        output.write_bytes(b"older")
        with pytest.raises(PlanError):
            merge(large, output)
        assert output.read_bytes() == b"older"


# Where a type keeps the f16 scale of its first block.
SCALE_AT = {"Q5_K": 0, "Q4_K": 0, "Q2_K": 80}
KINDS = tuple(SCALE_AT)
# A network serves one set of inputs: without one of them it is the posterior that is left.
WITHOUT_ONE = {"joint": "posterior"}


class TestBrokenScales:
    def broken(self, kind: str, x: F32Array, bits: int = 0x7E00) -> Stored:
        tensor = stored(kind, x)
        at = SCALE_AT[kind]
        tensor.rows[0, at : at + 2] = bits & 255, bits >> 8
        return tensor

    @pytest.mark.parametrize("bits", [0x7E00, 0xFE00, 0x7C00], ids=["nan", "-nan", "inf"])
    @pytest.mark.parametrize("method", COMBINING)
    @pytest.mark.parametrize("kind", KINDS)
    def test_one_broken_block_is_left_to_the_others(
        self,
        make: Make,
        tmp_path: Path,
        truth: dict[str, F32Array],
        kind: str,
        method: str,
        bits: int,
    ) -> None:
        whole = {k: make(k, name=f"{k}-whole") for k in KINDS}
        inputs = [make(kind, {UP: self.broken(kind, truth[UP], bits)})]
        inputs += [whole[k] for k in KINDS if k != kind]
        output = tmp_path / "out.gguf"
        result = merge(inputs, output, method=method, outtype="f32")
        assert result.expected_mse_ratio is not None
        assert np.isfinite(result.expected_mse_ratio)
        (warning,) = result.warnings
        assert f"tensor '{UP}' holds NaN or infinite weights in {inputs[0]}: on 256" in warning
        weights = read_weights(output)
        of_all = merged(list(whole.values()), output, method=method, outtype="f32")
        without = WITHOUT_ONE.get(method, method)
        of_others = merged(inputs[1:], output, method=without, outtype="f32")
        np.testing.assert_array_equal(weights[Q], of_all[Q])
        flat, all_three = weights[UP].reshape(-1), of_all[UP].reshape(-1)
        np.testing.assert_array_equal(flat[256:], all_three[256:])
        # But for rounding: the others are reckoned from where the broken one would have been.
        left = of_others[UP].reshape(-1)[:256]
        np.testing.assert_allclose(flat[:256], left, rtol=1e-5, atol=1e-6 * np.abs(left).max())

    @pytest.mark.parametrize("method", COMBINING)
    def test_a_broken_block_that_the_others_contradict_each_other_on(
        self, make: Make, tmp_path: Path, truth: dict[str, F32Array], method: str
    ) -> None:
        broken = self.broken("Q5_K", truth[UP])
        others = [make("Q4_K"), make("Q2_K", {UP: stored("Q2_K", truth[UP][::-1])})]
        inputs = [make("Q5_K", {UP: broken}), *others]
        output = tmp_path / "out.gguf"
        assert np.isfinite(merged(inputs, output, method=method, force=True)[UP]).all()

    @pytest.mark.parametrize("method", COMBINING)
    def test_a_broken_block_of_zeros(
        self, make: Make, tmp_path: Path, truth: dict[str, F32Array], method: str
    ) -> None:
        x = truth[UP].copy()
        x.reshape(-1)[:256] = 0
        first = make("Q5_K", {UP: self.broken("Q5_K", x)})
        second = make("Q4_K", {UP: stored("Q4_K", x)})
        weights = merged([first, second], tmp_path / "out.gguf", method=method)
        np.testing.assert_array_equal(weights[UP].reshape(-1)[:256], 0)

    @pytest.mark.parametrize("outtype", ["f16", "bf16", "f32"])
    @pytest.mark.parametrize("method", method_names())
    def test_broken_in_all_inputs(
        self, make: Make, tmp_path: Path, truth: dict[str, F32Array], method: str, outtype: str
    ) -> None:
        inputs = [make(kind, {UP: self.broken(kind, truth[UP])}) for kind in KINDS]
        output = tmp_path / "out.gguf"
        with pytest.raises(PlanError, match="NaN") as caught:
            merge(inputs, output, method=method, outtype=outtype)
        assert UP in str(caught.value)
        assert str(inputs[0]) in str(caught.value)
        assert not output.exists()
