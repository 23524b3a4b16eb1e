"""Bounds are certified under a condition, and what the bytes say against it is found."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from numpy.typing import NDArray
from safetensors import safe_open

from recover.bounds.execute import BoundsResult, execute_bounds
from recover.bounds.plan import plan_bounds
from recover.cli import main
from recover.quants import quantize, type_by_name
from tests.support.gguf_files import Stored, stored, write_gguf

F32Array = NDArray[np.float32]
Make = Callable[..., Path]

UP, DOWN = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
         "IQ4_NL", "IQ4_XS", "MXFP4")  # fmt: skip
# Where the low four (or two) bits of the codes are: first and last byte, bits.
CODES = {"Q2_K": (16, 80, 2), "Q3_K": (32, 96, 2), "Q4_K": (16, 144, 4), "Q5_K": (48, 176, 4),
         "Q6_K": (0, 128, 4), "IQ4_XS": (8, 136, 4), "IQ4_NL": (2, 18, 4), "Q4_0": (2, 18, 4),
         "Q5_0": (6, 22, 4), "Q4_1": (4, 20, 4), "Q5_1": (8, 24, 4)}  # fmt: skip

CONDITION = "if these bytes are what ggml's encoder made of one original"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(name: str, tensors: dict[str, Stored], imatrix: bool = False) -> Path:
        def says_so(writer: GGUFWriter) -> None:
            writer.add_string("quantize.imatrix.file", "some.dat")

        path = tmp_path / f"{name}.gguf"
        return write_gguf(path, tensors, add=says_so if imatrix else None)

    return make


def bound(*paths: Path, output: Path | None = None) -> BoundsResult:
    return execute_bounds(plan_bounds(paths, output, n_threads=2), n_threads=2)


def moved(tensor: Stored, share: float, rng: np.random.Generator) -> Stored:
    """As of an encoder that gives some weights a code that is one higher or lower."""
    blocks = tensor.rows.reshape(-1, type_by_name(tensor.kind).type_size).copy()
    first, last, n_bits = CODES[tensor.kind]
    codes, top = blocks[:, first:last], 2**n_bits - 1
    out = np.zeros_like(codes)
    for shift in range(0, 8, n_bits):
        q = (codes >> shift).astype(np.int64) & top
        step = np.where(rng.random(q.shape) < share, rng.choice([-1, 1], q.shape), 0)
        out |= (np.clip(q + step, 0, top) << shift).astype(np.uint8)
    codes[:] = out
    return Stored(tensor.kind, blocks.reshape(tensor.rows.shape))


def weights_of_all_kinds(rng: np.random.Generator) -> dict[str, F32Array]:
    shape = (64, 1024)
    normal = rng.standard_normal(shape)
    kinds = {
        "normal": 0.02 * normal,
        "heavy tails": 0.02 * rng.standard_t(1.5, shape),
        "no tails": rng.uniform(-1, 1, shape),
        "sparse": np.where(rng.random(shape) < 0.9, 0, normal),
        "small": 1e-5 * normal,
        "positive": 1 + 0.05 * normal,
        "columns": 0.02 * normal * np.exp(rng.standard_normal(shape[1])),
        "grid": np.round(8 * normal) / 64,
    }
    return {name: x.astype(np.float32) for name, x in kinds.items()}


@pytest.mark.parametrize("kind", TYPES)
def test_what_ggml_makes_passes(
    make: Make, rng: np.random.Generator, real_rows: F32Array, kind: str
) -> None:
    weights = weights_of_all_kinds(rng) | {"trained": real_rows}
    path = make(kind, {f"{name}.weight": stored(kind, x) for name, x in weights.items()})
    result = bound(path)
    assert (result.plan.warnings, result.warnings) == ((), ())
    for tensor, found in zip(result.plan.tensors, result.to_json()["tensors"], strict=True):
        assert len(tensor.sources) == len(tensor.checks) == 1
        assert (found["certified"], found["failures"]) == (True, [])


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_an_importance_matrix_passes_where_the_metadata_name_it(
    make: Make, rng: np.random.Generator, real_rows: F32Array, kind: str
) -> None:
    importance = np.exp(rng.standard_normal(real_rows.shape[1])).astype(np.float32)
    raw = quantize(real_rows, type_by_name(kind), importance)
    tensors = {UP: Stored(kind, raw.reshape(len(real_rows), -1))}
    result = bound(make("named", tensors, imatrix=True))
    assert result.plan.warnings == ()
    assert result.plan.tensors[0].sources
    if kind in ("Q2_K", "Q4_K", "Q5_K"):
        (warning,) = bound(make("unnamed", tensors)).plan.warnings[1:]
        assert "lack the mark of ggml's encoder without an importance matrix" in warning


@pytest.mark.parametrize("kind", CODES)
def test_codes_of_another_encoder_prove_nothing(
    make: Make, rng: np.random.Generator, real_rows: F32Array, kind: str, tmp_path: Path
) -> None:
    good = stored(kind, np.concatenate([real_rows] * 2))
    path = make("moved", {UP: moved(good, 0.3, rng), DOWN: good})
    output = tmp_path / "bounds.safetensors"
    result = bound(path, output=output)
    assert result.plan.tensors[0].sources == ()
    assert len(result.failures(0)) == 1
    assert result.failures(1) == ()
    assert any(f"'{UP}' is not bounded by {path}: " in each for each in result.plan.warnings)
    assert result.tensors[0].certified_max_error is None
    assert result.tensors[1].certified_max_error is not None
    with safe_open(output, "numpy") as file:
        assert np.all(np.isneginf(file.get_tensor(f"{UP}.lower")))
        assert np.all(np.isposinf(file.get_tensor(f"{UP}.upper")))
        metadata = file.metadata()
    assert metadata["recover.condition"] == CONDITION
    assert json.loads(metadata["recover.not_certified"]) == [UP]


@pytest.mark.parametrize("quantizer", ["k-lsq", "q4_0-rmse"])
def test_other_quantizers_are_found(make: Make, real_rows: F32Array, quantizer: str) -> None:
    kind = "Q5_K" if quantizer == "k-lsq" else "Q4_0"
    raw = quantize(real_rows, type_by_name(kind), quantizer=quantizer)
    tensors = {UP: Stored(kind, raw.reshape(len(real_rows), -1))}
    result = bound(make("other", tensors))
    assert result.failures(0)
    if kind == "Q5_K":  # nor does a forged name of an importance matrix help
        assert bound(make("forged", tensors, imatrix=True)).failures(0)


def test_a_run_of_foreign_blocks_is_found(
    make: Make, rng: np.random.Generator, real_rows: F32Array
) -> None:
    """One of many experts, say: a sixteenth of the blocks."""
    rows = np.concatenate([real_rows] * 16)
    good = stored("Q5_K", rows)
    bad = good.rows.copy()
    quarter = Stored("Q5_K", bad[: len(bad) // 16])
    bad[: len(bad) // 16] = moved(quarter, 0.3, rng).rows
    (failure,) = bound(make("run", {UP: Stored("Q5_K", bad)})).failures(0)
    assert "consecutive blocks" in failure


@pytest.mark.parametrize(("kind", "at"), [("Q8_0", 2), ("Q4_0", 2), ("Q5_K", 4), ("Q6_K", 192)])
def test_one_broken_block_of_many_is_found(
    make: Make, real_rows: F32Array, kind: str, at: int
) -> None:
    """Wherever it is, if its mark is gone."""
    good = stored(kind, np.concatenate([real_rows] * 32))
    kind_size = type_by_name(kind).type_size
    blocks = good.rows.reshape(-1, kind_size)
    n_codes = {"Q8_0": 32, "Q4_0": 16, "Q5_K": 8, "Q6_K": 16}[kind]
    blocks[len(blocks) // 2 + 77, at : at + n_codes] = 0x11
    (failure,) = bound(make("broken", {UP: good})).failures(0)
    assert failure.split(": ")[-1].startswith("1 of ")


def test_a_second_input_tells(make: Make, real_rows: F32Array, tmp_path: Path) -> None:
    """One code of a K-quant that was moved is seen by nothing else."""
    q5, q6 = stored("Q5_K", real_rows), stored("Q6_K", real_rows)
    q5.rows.reshape(-1, 176)[5, 100] ^= 0x08
    output = tmp_path / "bounds.safetensors"
    moved_alone = bound(make("q5", {UP: q5}))
    assert moved_alone.failures(0) == ()
    result = bound(make("q5", {UP: q5}), make("q6", {UP: q6}), output=output)
    assert result.tensors[0].n_conflicts == 1
    assert result.failures(0) == ("the inputs contradict each other on 1 weights",)
    assert result.tensors[0].certified_max_error is None
    assert f"'{UP}' (1 weights)" in result.warnings[0]
    with safe_open(output, "numpy") as file:
        assert json.loads(file.metadata()["recover.not_certified"]) == [UP]
        assert np.count_nonzero(np.isnan(file.get_tensor(f"{UP}.lower"))) == 1
    assert result.to_json()["tensors"][0]["certified"] is False


def test_the_other_inputs_still_bound(
    make: Make, rng: np.random.Generator, real_rows: F32Array
) -> None:
    bad = moved(stored("Q4_K", real_rows), 0.3, rng)
    result = bound(make("q5", {UP: stored("Q5_K", real_rows)}), make("q4", {UP: bad}))
    alone = bound(make("q5", {UP: stored("Q5_K", real_rows)}))
    assert result.tensors == alone.tensors
    assert len(result.failures(0)) == 1


class TestCommand:
    def run(self, paths: Sequence[Path], *options: str) -> int:
        return main(["bounds", *map(str, paths), "--summary", *options])

    def test_the_condition_is_said(
        self, make: Make, real_rows: F32Array, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = make("q5", {UP: stored("Q5_K", real_rows)})
        assert self.run([path]) == 0
        assert f"certified {CONDITION}\n" in capsys.readouterr().out
        assert self.run([path], "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert document["condition"] == CONDITION
        (check,) = document["tensors"][0]["checks"]
        assert check["type"] == "Q5_K"
        assert check["n_blocks"] == check["n_encoded"] == real_rows.size // 256
        assert 0.8 * check["n_encoded"] < check["n_same"] <= check["n_encoded"]

    def test_failures_are_said(
        self,
        make: Make,
        rng: np.random.Generator,
        real_rows: F32Array,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = make("bad", {UP: moved(stored("Q4_K", real_rows), 0.3, rng)})
        assert self.run([path]) == 0
        printed = capsys.readouterr()
        assert "; 1 of 1 tensors are not certified" in printed.out
        assert "is not bounded by" in printed.err

    def test_contradictions_are_an_error(
        self, make: Make, real_rows: F32Array, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The check did not hold; what was asked for is written all the same."""
        rows = real_rows[:32].copy()
        one = make("one", {UP: stored("Q8_0", rows)})
        rows[7] = rows[7, ::-1]
        other = make("other", {UP: stored("Q5_K", rows)})
        output = tmp_path / "out.safetensors"
        assert main(["bounds", str(one), str(other), "-o", str(output)]) == 1
        printed = capsys.readouterr()
        assert "; 1 of 1 tensors are not certified" in printed.out
        assert printed.err.count("recover: error: the inputs contradict each other on") == 1
        assert UP in printed.err
        assert output.exists()
        assert main(["inspect", str(one), str(other)]) == 0
        assert "contradict" in capsys.readouterr().out
