"""A container that `recover` does not know: what others write, and what it then goes through.

A folder with ``model.json`` and the bytes of each tensor in a file of their own.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray
from safetensors.numpy import load_file

from recover import (
    GGUFError,
    InputError,
    PlanError,
    evaluate_models,
    execute_merge,
    inspect_files,
    plan_merge,
)
from recover.bounds.execute import execute_bounds
from recover.bounds.plan import plan_bounds
from recover.bounds.verify import verify_model
from recover.calibration.moments import survey
from recover.containers.model import BlockTensor, Container, Model, StoredTensor
from recover.errors import OutputError
from recover.inputs.open import open_model
from recover.merge.plan import MergePlan
from recover.quants import TensorType, type_by_name
from tests.support.gguf_files import Stored, read_tensors, stored, tensor_bytes, write_gguf
from tests.support.packages import install

UP, DOWN, NORM = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight", "blk.0.ffn_norm.weight"


@dataclass(frozen=True)
class ToyTensor(BlockTensor):
    name: str
    dims: tuple[int, ...]
    type: TensorType
    path: Path

    def part(self, start: int, end: int) -> NDArray[np.uint8]:
        first, last = self.type.n_bytes(start), self.type.n_bytes(end)
        return np.fromfile(self.path, np.uint8, last - first, offset=first)


@dataclass(frozen=True)
class ToyModel:
    path: Path
    metadata: dict[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def parts(self) -> tuple[Path, ...]:
        return tuple(sorted(self.path.iterdir()))

    @property
    def n_bytes(self) -> int:
        return sum(part.stat().st_size for part in self.parts)

    @property
    def n_weights(self) -> int:
        return sum(tensor.n_weights for tensor in self.tensors.values())

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(key, default)

    def keys_of(self, prefix: str) -> tuple[str, ...]:
        return tuple(key for key in self.metadata if key.startswith(prefix))

    def with_tensors(self, tensors: Mapping[str, StoredTensor]) -> "ToyModel":
        return replace(self, tensors={**self.tensors, **tensors})

    @property
    def left_out(self) -> tuple[str, ...]:
        return ()

    def without(self, names: Collection[str]) -> "ToyModel":
        kept = {name: each for name, each in self.tensors.items() if name not in names}
        return replace(self, tensors=kept)

    def fitted(self, names: Collection[str]) -> "ToyModel":
        return self

    def fingerprint(self) -> str:
        whole = hashlib.sha256()
        for part in self.parts:
            whole.update(part.read_bytes())
        return whole.hexdigest()


def open_toy(path: Path) -> Model:
    header = json.loads((path / "model.json").read_text())
    tensors = {
        name: ToyTensor(name, tuple(dims), type_by_name(kind), path / f"{name}.bin")
        for name, (kind, dims) in header["tensors"].items()
    }
    return ToyModel(path, header["metadata"], tensors)


TOY = Container("toy", lambda path: (path / "model.json").is_file(), open_toy)
BROKEN = "no container"


def write_toy(path: Path, tensors: Mapping[str, Stored]) -> Path:
    path.mkdir()
    header: dict[str, Any] = {"metadata": {"general.architecture": "llama"}, "tensors": {}}
    for name, (kind, rows) in tensors.items():
        (path / f"{name}.bin").write_bytes(np.ascontiguousarray(rows).tobytes())
        n_weights = rows.nbytes // type_by_name(kind).type_size * type_by_name(kind).block_size
        n_rows = len(rows) if rows.ndim > 1 else 1
        dims = [n_weights // n_rows, n_rows] if rows.ndim > 1 else [n_weights]
        header["tensors"][name] = kind, dims
    (path / "model.json").write_text(json.dumps(header))
    return path


def let_find(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    install(monkeypatch, "recover.containers", *(("toy", value) for value in values))


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    let_find(monkeypatch, f"{__name__}:TOY")


@dataclass(frozen=True)
class Paths:
    """The same model as Q5_K, as Q4_K in both containers, and the original."""

    fine: Path
    coarse: Path
    toy: Path
    truth: Path


@pytest.fixture
def paths(tmp_path: Path, rng: np.random.Generator, _installed: None) -> Paths:
    x = {name: (0.02 * rng.standard_t(5, (96, 512))).astype(np.float32) for name in (UP, DOWN)}
    norm = {NORM: Stored("F32", rng.standard_normal(512).astype(np.float32))}

    def of(kind: str) -> dict[str, Stored]:
        return {name: stored(kind, each) for name, each in x.items()} | norm

    return Paths(
        write_gguf(tmp_path / "fine.gguf", of("Q5_K")),
        write_gguf(tmp_path / "coarse.gguf", of("Q4_K")),
        write_toy(tmp_path / "toy", of("Q4_K")),
        write_gguf(tmp_path / "truth.gguf", of("F32")),
    )


def merge(inputs: list[Path], output: Path, **options: Any) -> dict[str, Any]:
    result = execute_merge(plan_merge(inputs, output), n_threads=2, **options)
    return {key: each for key, each in result.to_json().items() if "second" not in key}


def without_paths(document: dict[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in document.items() if key not in ("inputs", "output")}


def test_a_merge_beside_a_gguf_file(paths: Paths, tmp_path: Path) -> None:
    expected = merge([paths.fine, paths.coarse], tmp_path / "both.gguf")
    found = merge([paths.fine, paths.toy], tmp_path / "mixed.gguf")
    assert without_paths(found) == without_paths(expected)
    assert found["inputs"][1] == str(paths.toy)
    assert any(tensor["action"] == "merge" for tensor in found["tensors"])
    assert tensor_bytes(tmp_path / "mixed.gguf") == tensor_bytes(tmp_path / "both.gguf")


def test_metadata_comes_from_the_first_gguf_input(paths: Paths, tmp_path: Path) -> None:
    merge([paths.toy, paths.fine], tmp_path / "out.gguf")
    fields = GGUFReader(tmp_path / "out.gguf").fields
    assert fields["general.architecture"].contents() == "llama"
    assert fields["recover.source.names"].contents() == ["toy", "fine.gguf"]
    with pytest.raises(PlanError, match="metadata comes from the first GGUF input, and there is n"):
        plan_merge([paths.toy], tmp_path / "other.gguf")


def test_none_of_its_files_is_an_output(paths: Paths) -> None:
    own = paths.toy / "model.json"
    with pytest.raises(OutputError, match="input"):
        plan_merge([paths.fine, paths.toy], paths.toy.parent / "out.gguf", uncertainty=own)
    with pytest.raises(OutputError, match="input"):
        plan_bounds([paths.fine, paths.toy], own)


def test_resume_knows_it_by_its_fingerprint(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, output = [paths.fine, paths.toy], tmp_path / "out.gguf"

    def stop(n_done: int, _n_all: int) -> None:
        if n_done:
            raise KeyboardInterrupt

    def told(progress: Any = None) -> str:
        lines: list[str] = []
        plan = plan_merge(inputs, output)
        with suppress(KeyboardInterrupt):
            execute_merge(plan, n_threads=1, resume=True, tell=lines.append, progress=progress)
        return " ".join(lines)

    monkeypatch.setattr("recover.merge.resume._SECONDS", 0)
    assert "kept" in told(stop)
    file = paths.toy / f"{UP}.bin"
    before = file.read_bytes()
    file.write_bytes(before[:4] + bytes([before[4] ^ 1]) + before[5:])
    assert "starting over: what is there belongs to another merge (other inputs" in told(stop)
    assert "going on with what is there" in told()


def test_a_plan_names_it_by_path_and_fingerprint(paths: Paths, tmp_path: Path) -> None:
    plan = plan_merge([paths.fine, paths.toy], tmp_path / "out.gguf")
    record = json.loads(json.dumps(plan.to_record()))
    other = MergePlan.from_record(record)
    assert other == plan
    assert isinstance(other.models[1], ToyModel)
    file = paths.toy / f"{UP}.bin"
    before = file.read_bytes()
    file.write_bytes(before[:4] + bytes([before[4] ^ 1]) + before[5:])
    with pytest.raises(InputError, match="toy: was changed since the work was planned"):
        MergePlan.from_record(record)


def test_inspect(paths: Paths) -> None:
    expected = inspect_files([paths.fine, paths.coarse])
    found = inspect_files([paths.fine, paths.toy])
    assert found.expectations == expected.expectations
    assert found.relations == expected.relations
    assert found.same_original
    own, other = found.files[1], expected.files[1]
    assert (own.types, own.marks, own.source) == (other.types, other.marks, other.source)
    assert own.bits_per_weight == other.bits_per_weight
    (alone,) = inspect_files([paths.toy]).files
    assert (alone.architecture, alone.path) == ("llama", str(paths.toy))
    assert inspect_files([paths.coarse, paths.toy]).identical_tensors == (UP, DOWN, NORM)


def test_bounds(paths: Paths, tmp_path: Path) -> None:
    for name, other in (("gguf", paths.coarse), ("toy", paths.toy)):
        output = tmp_path / f"{name}.safetensors"
        execute_bounds(plan_bounds([paths.fine, other], output), n_threads=2)
    expected, found = (load_file(tmp_path / f"{name}.safetensors") for name in ("gguf", "toy"))
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    assert verify_model(paths.truth, [paths.toy]).is_consistent


def test_evaluate_and_calibrate(paths: Paths) -> None:
    expected, found = evaluate_models([paths.coarse, paths.toy], paths.truth)
    assert found.total == expected.total
    assert [each.errors for each in found.tensors] == [each.errors for each in expected.tensors]
    (back,) = evaluate_models([paths.coarse], paths.toy)
    assert back.total.exact_fraction == 1
    surveys = [survey([paths.fine, each], paths.truth) for each in (paths.coarse, paths.toy)]
    for one, other in zip(*(each.moments for each in surveys), strict=True):
        np.testing.assert_equal(vars(one), vars(other))
    assert paths.toy / "model.json" in surveys[1].paths


def test_ranges_are_those_of_the_file(paths: Paths) -> None:
    tensor = open_model(paths.toy).tensors[UP]
    raw = read_tensors(paths.coarse)[UP].rows.reshape(-1)
    assert (tensor.n_weights, tensor.n_bytes, tensor.scales) == (96 * 512, raw.size, None)
    assert not tensor.is_original
    assert tensor.factors(0, 256) is None
    np.testing.assert_array_equal(tensor.part(512, 1024), raw[288:576])
    np.testing.assert_array_equal(tensor.read(512, 1024), tensor.read(0, 96 * 512)[512:1024])


def test_containers_that_cannot_be_used(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_find(monkeypatch, "no_such_module:CONTAINER")
    with pytest.raises(PlanError, match=r"'toy' \(no_such_module:CONTAINER\) cannot be loaded"):
        open_model(paths.toy)
    assert open_model(paths.fine).tensors.keys() == {UP, DOWN, NORM}  # nobody else is asked
    let_find(monkeypatch, f"{__name__}:BROKEN")
    with pytest.raises(PlanError, match="is no Container but a str"):
        open_model(paths.toy)
    let_find(monkeypatch)
    with pytest.raises(GGUFError, match="toy"):
        open_model(paths.toy)
    with pytest.raises(GGUFError, match="missing"):
        open_model(tmp_path / "missing.gguf")
