"""Calibrations looked up, stored, refused, and on the command line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recover import CalibrationError, calibrate, load_calibration
from recover.calibration.weights import Calibration
from recover.cli import main
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.support.calibrations import SETS
from tests.support.gguf_files import read_weights, stored, write_gguf
from tests.support.models import TINY


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

    def test_roles_and_depths(self, tiny: list[Path], calibration: Calibration) -> None:
        found = calibrate(tiny, TINY, by_role=True, n_depths=3)
        general = found.weights_for(SETS[0])
        assert general == calibration.weights_for(SETS[0])
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

    def test_what_a_merge_estimated(self, tiny: list[Path], tmp_path: Path) -> None:
        plan = plan_merge(tiny[:2], tmp_path / "merged.gguf")
        execute_merge(plan, n_threads=1)
        with pytest.raises(CalibrationError, match=r"merged\.gguf: a merge estimated its weights"):
            calibrate(tiny[:2], plan.output)


class TestFile:
    def test_comes_back_as_it_was(
        self, tiny: list[Path], calibration: Calibration, tmp_path: Path
    ) -> None:
        path = tmp_path / "c.json"
        free = calibrate(tiny, TINY, constrained=False, by_role=True, n_depths=2)
        for found in (calibration, free):
            found.save(path)
            assert load_calibration(path) == found
            assert path.read_bytes() == found.to_bytes()
        document = json.loads(path.read_text())
        assert (document["format"], document["version"]) == ("recover.calibration", 3)
        assert [each["name"] for each in document["inputs"]] == [each.name for each in tiny]
        assert document["truth"]["n_bytes"] == TINY.stat().st_size
        assert str(TINY.parent) not in path.read_text()

    def test_does_not_depend_on_the_threads(
        self, tiny: list[Path], calibration: Calibration
    ) -> None:
        """One, and three."""
        assert calibrate(tiny, TINY, n_threads=1).to_bytes() == calibration.to_bytes()


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
