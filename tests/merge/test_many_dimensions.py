"""Tensors of more than four dimensions, as files of video models have them: copied as they are."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from recover.cli import main
from recover.containers.gguf.reader import open_gguf
from tests.support.gguf_files import stored, tensor_bytes, write_gguf
from tests.support.merging import UP
from tests.support.packed_weights import packed_int4
from tests.support.quantized_folders import COMPRESSED, model, named
from tests.support.reblock_files import reblock

PATCH = "patch_embedding.weight"
SHAPES = [(64, 16, 1, 2, 2), (4, 2, 2, 1, 2, 3, 2, 32)]


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{len(shape)} dimensions")
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    found: tuple[int, ...] = request.param
    return found


def write(path: Path, kind: str, shape: tuple[int, ...]) -> Path:
    rng = np.random.default_rng(5)
    patch, up = (rng.normal(0, 0.02, each).astype(np.float32) for each in (shape, (64, 256)))
    tensors = {PATCH: stored("F16", patch), UP: stored(kind, up)}
    return write_gguf(path, tensors, architecture="wan")


@pytest.mark.parametrize("outtype", ["f16", "bf16", "f32", "q8_0"])
def test_merge(shape: tuple[int, ...], outtype: str, tmp_path: Path) -> None:
    inputs = [write(tmp_path / f"{kind}.gguf", kind, shape) for kind in ("Q8_0", "Q4_0")]
    output = tmp_path / "out.gguf"
    assert main(["merge", *map(str, inputs), "-o", str(output), "--outtype", outtype]) == 0
    assert open_gguf(output).tensors[PATCH].dims == shape[::-1]
    assert tensor_bytes(output)[PATCH] == tensor_bytes(inputs[0])[PATCH]
    assert tensor_bytes(output)[UP][0] == outtype.upper()


def test_quantize(shape: tuple[int, ...], tmp_path: Path) -> None:
    source, output = write(tmp_path / "f16.gguf", "F16", shape), tmp_path / "out.gguf"
    assert main(["quantize", str(source), "Q8_0", "-o", str(output)]) == 0
    assert tensor_bytes(output)[PATCH] == tensor_bytes(source)[PATCH]
    assert tensor_bytes(output)[UP][0] == "Q8_0"


@pytest.mark.parametrize(
    "command",
    ["inspect {0} {1}", "bounds {0} {1} -o {2}", "verify {3} {0}", "evaluate {0} --truth {3}"],
)
def test_other_commands(shape: tuple[int, ...], command: str, tmp_path: Path) -> None:
    kinds = ("Q8_0", "Q4_0", "F32")
    fine, coarse, truth = (write(tmp_path / f"{kind}.gguf", kind, shape) for kind in kinds)
    paths = fine, coarse, tmp_path / "bounds.safetensors", truth
    assert main(command.format(*paths).split()) == 0


@pytest.mark.parametrize("beside", ["floats", "integers"])
def test_reblock_of_safetensors(shape: tuple[int, ...], beside: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    patch = rng.normal(0, 0.02, shape).astype(ml_dtypes.bfloat16)
    integers = named("a", packed_int4(rng)[0]) if beside == "integers" else {}
    source = model(tmp_path / "m", {PATCH: patch, **integers}, COMPRESSED)
    output = tmp_path / "out.gguf"
    reblock(source, output)
    assert open_gguf(output).tensors[PATCH].dims == shape[::-1]
    assert open_gguf(output).tensors[PATCH].part(0, patch.size).tobytes() == patch.tobytes()
