"""The marks that encoders leave, and the number format of the original. libggml encodes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFWriter
from numpy.typing import NDArray

from recover.containers.gguf.reader import open_gguf
from recover.containers.model import ArrayTensor
from recover.evidence.intervals import Intervals
from recover.inputs.open import open_model
from recover.inputs.precision import Fit, fit_of, source_precision
from recover.inputs.provenance import (
    encoder_marks,
    has_cells,
    is_plain,
    look_at_marks,
    marks_hold_with_imatrix,
    marks_of,
)
from recover.inspect.files import inspect_model
from recover.merge.plan import plan_merge
from recover.quants import ScalarType, TensorType, all_types, quantize, type_by_name
from tests.oracle import libggml
from tests.oracle.weights import SYNTHETIC
from tests.support.gguf_files import Stored, stored, write_gguf

SCALAR = [kind for kind in all_types() if isinstance(kind, ScalarType)]
MARKED = [kind for kind in SCALAR if kind.name not in ("IQ4_NL", "MXFP4", "NVFP4")]
SEARCHED = [kind for kind in MARKED if not marks_hold_with_imatrix(kind)]
CODES_CHOSEN_FIRST = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")


def lognormal(x: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.lognormal(size=x.shape[-1:]).astype(np.float32)


def tensor_of(kind: TensorType, raw: NDArray[np.uint8]) -> ArrayTensor:
    n_weights = raw.size // kind.type_size * kind.block_size
    return ArrayTensor("t", (n_weights,), kind, raw.reshape(-1))


@pytest.mark.parametrize("kind", MARKED, ids=lambda kind: kind.name)
def test_every_block_of_the_plain_encoder_has_the_mark(
    kind: ScalarType, real_rows: NDArray[np.float32], rng: np.random.Generator
) -> None:
    n_blocks = 0
    with np.errstate(all="ignore"):
        weights = {name: make(rng, (32, 512)) for name, make in SYNTHETIC.items()}
    for name, x in {**weights, "real": real_rows}.items():
        marks = encoder_marks(tensor_of(kind, libggml.quantize(kind.type_id, x)))
        assert marks is not None
        assert marks.n_without == 0, name
        n_blocks += marks.n_blocks
    assert n_blocks > 1000


@pytest.mark.parametrize("kind", SEARCHED, ids=lambda kind: kind.name)
def test_an_importance_matrix_shows(
    kind: ScalarType, real_rows: NDArray[np.float32], rng: np.random.Generator
) -> None:
    raw = libggml.quantize(kind.type_id, real_rows, lognormal(real_rows, rng))
    marks = encoder_marks(tensor_of(kind, raw))
    assert marks is not None
    assert marks.n_without > 0.05 * marks.n_blocks
    assert is_plain(tensor_of(kind, raw)) == (kind.name not in CODES_CHOSEN_FIRST)


@pytest.mark.parametrize("name", ["Q8_0", "Q6_K", "IQ4_XS"])
def test_these_have_the_mark_with_an_importance_matrix_too(
    name: str, real_rows: NDArray[np.float32], rng: np.random.Generator
) -> None:
    kind = type_by_name(name)
    raw = libggml.quantize(kind.type_id, real_rows, lognormal(real_rows, rng))
    marks = encoder_marks(tensor_of(kind, raw))
    assert marks is not None
    assert marks.n_blocks > 500
    assert marks.n_without == 0


def test_types_without_marks() -> None:
    for kind in all_types():
        if kind not in MARKED:
            assert encoder_marks(tensor_of(kind, np.zeros(kind.type_size, np.uint8))) is None


def test_another_quantizer_shows(real_rows: NDArray[np.float32]) -> None:
    kind = type_by_name("Q4_0")
    raw = quantize(real_rows, kind, quantizer="q4_0-rmse")
    assert not is_plain(tensor_of(kind, raw))


def test_repacked_integers_are_not_plain(rng: np.random.Generator) -> None:
    kind = type_by_name("Q8_0")
    raw = libggml.quantize(kind.type_id, rng.standard_normal((16, 512), np.float32))
    assert is_plain(tensor_of(kind, raw))
    blocks = raw.reshape(-1, 34).copy()
    blocks[:, 2:] = rng.integers(-100, 101, (len(blocks), 32)).astype(np.int8).view(np.uint8)
    assert not is_plain(tensor_of(kind, blocks))


@pytest.mark.parametrize("broken", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("kind", MARKED, ids=lambda kind: kind.name)
def test_blocks_without_a_scale_prove_nothing(kind: ScalarType, broken: float) -> None:
    raw = np.tile(np.frombuffer(np.float16(broken).tobytes(), np.uint8), 64 * kind.type_size // 2)
    marks = encoder_marks(tensor_of(kind, raw))
    assert marks is not None
    assert (marks.n_blocks, marks.n_without) == (0, 0)


def test_many_tensors_are_looked_at_at_once(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {}
    for number in range(600):
        kind = MARKED[number % len(MARKED)]
        x = rng.standard_normal((1, 256 * (1 + number % 3)), np.float32)
        raw = quantize(x, kind)
        if number % 5 == 0:
            raw[rng.integers(raw.size, size=raw.size // 2)] = 0x11
        tensors[str(number)] = tensor_of(kind, raw)
    expected = {name: encoder_marks(tensor) for name, tensor in tensors.items()}
    assert len({marks.n_without for marks in expected.values() if marks}) > 3
    model: Any = SimpleNamespace(tensors=tensors)
    look_at_marks([model], list(tensors))
    monkeypatch.setattr("recover.inputs.provenance.encoder_marks", None)  # not looked at again
    assert {name: marks_of(tensor) for name, tensor in tensors.items()} == expected


def test_a_large_tensor_is_sampled_all_over(rng: np.random.Generator) -> None:
    """One stretch in sixteen comes from another quantizer: it is found."""
    kind = type_by_name("Q4_0")
    raw = libggml.quantize(kind.type_id, rng.standard_normal((2048, 1024), np.float32))
    assert is_plain(tensor_of(kind, raw))
    blocks = raw.reshape(16, -1, 18)
    blocks[11, :, 2:] |= 0x11  # no code 0 is left
    marks = encoder_marks(tensor_of(kind, raw))
    assert marks is not None
    assert marks.n_blocks == 4096
    assert 0 < marks.n_without < 1000


def q4_0_file(path: Path, x: NDArray[np.float32], *, imatrix: bool, **options: Any) -> Path:
    return write_gguf(path, {"blk.0.ffn_up.weight": stored("Q4_0", x, imatrix=imatrix)}, **options)


def test_cells_of_a_file(tmp_path: Path, rng: np.random.Generator) -> None:
    def says_so(writer: GGUFWriter) -> None:
        writer.add_string("quantize.imatrix.file", "some.dat")

    x = rng.standard_normal((32, 512), np.float32)
    plain = open_gguf(q4_0_file(tmp_path / "plain.gguf", x, imatrix=False))
    silent = open_gguf(q4_0_file(tmp_path / "silent.gguf", x, imatrix=True))
    honest = open_gguf(q4_0_file(tmp_path / "honest.gguf", x, imatrix=False, add=says_so))
    assert [has_cells(m, next(iter(m.tensors.values()))) for m in (plain, silent, honest)] == [
        True,
        False,
        False,
    ]
    plan = plan_merge([plain.path, silent.path], tmp_path / "out.gguf")
    (merged,) = plan.tensors
    has_cells_of = {i: w.has_cells for i, w in zip(merged.used, merged.sources, strict=True)}
    assert has_cells_of == {0: True, 1: False}
    assert [str(silent.path) in warning for warning in plan.warnings] == [True]


class TestSourcePrecision:
    @staticmethod
    def model(
        path: Path,
        numbers: NDArray[np.float32],
        name: str = "blk.0.attn_norm.weight",
        **options: Any,
    ) -> Any:
        return open_gguf(write_gguf(path, {name: Stored("F32", numbers)}, **options))

    @pytest.mark.parametrize("architecture", ["llama", "gemma2"])
    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [(ml_dtypes.bfloat16, "bf16"), (np.float16, "f16"), (np.float32, "f32")],
    )
    def test_norms_tell(
        self, tmp_path: Path, rng: np.random.Generator, dtype: Any, expected: str, architecture: str
    ) -> None:
        drawn = rng.normal(0.6, 0.1, 512)
        drawn[0] = 0.001  # of so small a number, the sum with 1 is of another precision
        numbers = drawn.astype(dtype).astype(np.float32)
        numbers += np.float32(architecture == "gemma2")
        found = source_precision(
            self.model(tmp_path / "m.gguf", numbers, architecture=architecture)
        )
        assert found.type == expected
        assert found.n_numbers == 512
        assert found.minus_one == (architecture == "gemma2")
        if expected == "bf16":
            assert found.n_bf16 == 512

    def test_constant_norms_tell_nothing(self, tmp_path: Path) -> None:
        found = source_precision(self.model(tmp_path / "m.gguf", np.ones(512, np.float32)))
        assert found.type == "unknown"
        assert "only 1" in found.evidence

    def test_no_norms_tell_nothing(self, tmp_path: Path, rng: np.random.Generator) -> None:
        numbers = rng.normal(1, 0.1, 512).astype(np.float32)
        found = source_precision(self.model(tmp_path / "m.gguf", numbers, "rope_freqs.weight"))
        assert (found.type, found.n_tensors) == ("unknown", 0)

    def test_not_finite_and_huge_numbers(self, tmp_path: Path) -> None:
        numbers = np.linspace(1, 2, 512, dtype=np.float32)
        numbers[:3] = np.nan, np.inf, 1e30
        assert source_precision(self.model(tmp_path / "m.gguf", numbers)).type == "f32"


class TestFit:
    """Whether the matrices can be of the norms' format."""

    UP = "blk.0.ffn_up.weight"

    @staticmethod
    def as_f16(x: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Weights that were changed a little, and saved as F16."""
        changed = x * (1 + 0.05 * rng.standard_normal(x.shape))
        return changed.astype(np.float16).astype(np.float32)

    def fit(self, folder: Path, x: NDArray[np.float32], kinds: list[str], **options: Any) -> Fit:
        models = [
            open_gguf(write_gguf(folder / f"{kind}.gguf", {self.UP: stored(kind, x, **options)}))
            for kind in kinds
        ]
        return fit_of(self.UP, models, "bf16", Intervals())

    @pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_0", "Q4_1", "Q5_1"])
    @pytest.mark.parametrize("size", [1, 1e-3, 1e3])
    def test_scales_tell(
        self,
        tmp_path: Path,
        real_rows: NDArray[np.float32],
        rng: np.random.Generator,
        kind: str,
        size: float,
    ) -> None:
        x = (real_rows * size).astype(ml_dtypes.bfloat16).astype(np.float32)
        fit = self.fit(tmp_path, x, [kind])
        assert fit.n_scales_fitting == fit.n_scales
        assert not fit.is_contradicted
        assert fit.n_bounded > 30_000
        other = self.fit(tmp_path, self.as_f16(x, rng), [kind])
        if size >= 1:
            assert fit.is_confirmed
            assert other.is_contradicted
            assert other.n_scales_fitting < 0.2 * other.n_scales

    def test_searched_scales_tell_nothing(
        self, tmp_path: Path, real_rows: NDArray[np.float32]
    ) -> None:
        fit = self.fit(tmp_path, real_rows, ["Q4_0"], imatrix=True)
        assert fit == Fit(0, 0, 0, 0, 0, 0.0)
        assert not fit.is_confirmed

    def test_cells_tell(
        self, tmp_path: Path, real_rows: NDArray[np.float32], rng: np.random.Generator
    ) -> None:
        kinds = ["Q6_K", "Q5_K", "Q4_K", "Q3_K"]
        fit = self.fit(tmp_path, real_rows, kinds)
        assert (fit.n_scales, fit.n_bounded > 30_000, fit.n_without) == (0, True, 0)
        other = self.fit(tmp_path, self.as_f16(real_rows, rng), kinds)
        assert other.n_without > 0
        assert other.is_contradicted

    def test_inspect_says_what_the_scales_tell(
        self, tmp_path: Path, real_rows: NDArray[np.float32], rng: np.random.Generator
    ) -> None:
        norm = rng.normal(0.6, 0.1, 512).astype(ml_dtypes.bfloat16).astype(np.float32)
        found = {}
        for name, x in (("same", real_rows), ("other", self.as_f16(real_rows, rng))):
            tensors = {self.UP: stored("Q8_0", x), "blk.0.attn_norm.weight": Stored("F32", norm)}
            found[name] = inspect_model(
                open_model(write_gguf(tmp_path / f"{name}.gguf", tensors))
            ).source
        assert [found[name].type for name in ("same", "other")] == ["bf16", "unknown"]
        assert found["same"].n_scales_bf16 == found["same"].n_scales == 4096
        assert "of 4,096 scales of blocks 4,096 (100.0%) fit bf16" in found["same"].evidence
        assert found["other"].n_scales_bf16 < 0.2 * found["other"].n_scales
