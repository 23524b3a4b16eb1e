"""Merges whose metadata were lost, as a truth or beside their own inputs; and right originals."""

from pathlib import Path

import numpy as np
import pytest

from recover.cli import main
from recover.inputs.nearness import is_too_near, nearness_warnings
from recover.inputs.open import open_model
from recover.inputs.provenance import confines
from recover.quants import FloatType
from tests.hostile.builder import kv, string
from tests.hostile.kinds import STRING
from tests.support.fork_files import Part, file_of
from tests.support.gguf_files import read_weights
from tests.support.models import TINY
from tests.support.right_sets import IMATRICES, Made, originals, write
from tests.support.sparse_weights import by_size
from tests.support.text import write_model

pytestmark = pytest.mark.long

Console = pytest.CaptureFixture[str]
SAYS = "it holds estimates that were made from that file"
QUANTIZED = (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4"),
)


def without_metadata(path: Path, out: Path) -> Path:
    """The same tensors, of a file that says nothing of where it is from."""
    parts = []
    for name, tensor in open_model(path).tensors.items():
        assert tensor.type.type_id is not None
        raw = tensor.part(0, tensor.n_weights).tobytes()
        parts.append(Part(name, tensor.dims, tensor.type.type_id, raw))
    out.write_bytes(file_of(parts, [kv("general.architecture", STRING, string("llama"))]))
    return out


def merged(inputs: list[Path], tmp_path: Path, *options: str) -> Path:
    out = tmp_path / "merged.gguf"
    assert main(["merge", *map(str, inputs), "-o", str(out), "-q", *options]) == 0
    return without_metadata(out, tmp_path / "unknown.gguf")


@pytest.mark.parametrize("options", [("linear",), ("midpoint",), ("posterior", "bf16")])
def test_a_merge_is_told_by_each_of_its_inputs(
    options: tuple[str, ...], tiny: list[Path], tmp_path: Path
) -> None:
    method, outtype = (*options, "f16")[:2]
    truth = open_model(merged(tiny, tmp_path, "--method", method, "--outtype", outtype))
    finest = open_model(tiny[0])
    assert is_too_near(
        truth.tensors["blk.0.ffn_up.weight"], finest, finest.tensors["blk.0.ffn_up.weight"]
    )


def test_evaluate_calibrate_and_merge_say_so(
    tiny: list[Path], tmp_path: Path, capsys: Console
) -> None:
    truth = merged(tiny, tmp_path, "--method", "linear")
    paths = [str(path) for path in tiny]
    for original, is_told in ((truth, True), (TINY, False)):
        out = str(tmp_path / "out")
        for command in (
            ["evaluate", *paths, "--truth", str(original)],
            ["calibrate", *paths, "--truth", str(original), "-o", f"{out}.json"],
            ["merge", str(original), paths[0], "-o", f"{out}.gguf"],
        ):
            main(command)
            assert (SAYS in "".join(capsys.readouterr())) == is_told, command


def test_trained_originals_are_not_too_near(tiny: list[Path]) -> None:
    truth = open_model(TINY)
    names = [name for name, each in truth.tensors.items() if isinstance(each.type, FloatType)]
    assert not nearness_warnings(truth, [open_model(path) for path in tiny], names)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_no_right_original_is_too_near(kind: str, tmp_path: Path) -> None:
    n_compared = 0
    stored = {
        name: open_model(write(tmp_path / f"{i}.gguf", Made(name.split()[-1], ""), [name]))
        for i, name in enumerate(originals())
    }
    for imatrix in IMATRICES:
        file = open_model(write(tmp_path / "a.gguf", Made(kind, imatrix), list(originals())))
        for name, own in stored.items():
            tensor, truth = (each.tensors[f"{name}.weight"] for each in (file, own))
            n_compared += confines(file, tensor)
            assert not is_too_near(truth, file, tensor), (imatrix, name)
    assert n_compared


def test_numbers_of_any_size_are_compared(tmp_path: Path) -> None:
    """A file may hold any; no arithmetic overflows."""
    x = originals()["llama.0 F32"]
    file = open_model(write(tmp_path / "a.gguf", Made("Q5_K", ""), ["llama.0 F32"]))
    huge = Part(
        "llama.0 F32.weight", x.shape[::-1], 0, (x * np.float32(3e38 / abs(x).max())).tobytes()
    )
    other = tmp_path / "b.gguf"
    other.write_bytes(file_of([huge], [kv("general.architecture", STRING, string("llama"))]))
    assert not nearness_warnings(open_model(other), [file], file.tensors)


@pytest.mark.parametrize("kind", ["Q2_K", "Q4_K", "Q6_K"])
def test_pruned_originals_are_not_too_near(kind: str, tmp_path: Path) -> None:
    """Weights that are left among zeros lie next to their levels."""
    weights = read_weights(TINY)
    for name, x in weights.items():
        if x.ndim == 2:
            weights[name] = by_size(x, 0.88)
    pruned = write_model(tmp_path / "pruned.gguf", TINY, weights)
    out = tmp_path / "out.gguf"
    assert main(["quantize", str(pruned), kind, "-o", str(out), "-q"]) == 0
    truth, file = open_model(pruned), open_model(out)
    assert not nearness_warnings(truth, [file], truth.tensors)
