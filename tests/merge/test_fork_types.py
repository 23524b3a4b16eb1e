"""Merges of files of ik_llama.cpp: with each other, and with files of llama.cpp."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from recover.cli import main
from recover.containers.gguf.header import lay_out
from recover.containers.gguf.reader import open_gguf
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.quants import F32Array, TensorType, U8Array, quantize, type_by_name
from tests.benchmarks.fork_types import merge
from tests.oracle import llama_cpp
from tests.support.encoders.ik import FORMATS, encode
from tests.support.fork_files import interleave, table_of
from tests.support.models import DATA, SHARED, TINY

BY_ROLE = {
    "attn_q": "IQ5_KS",
    "attn_k": "IQ5_K",
    "attn_v": "IQ6_K",
    "attn_output": "IQ4_K_R4",
    "ffn_gate": "IQ4_KS",
    "ffn_up": "IQ4_K",
    "ffn_down": "IQ3_K",
    "token_embd": "Q4_K_R4",
    "output": "Q6_K",
}
GOLDEN = SHARED.parent / "golden-ik" / "llama-29m"


def stored(name: str, x: F32Array) -> U8Array:
    plain = name.rsplit("_R", 1)[0]
    raw = (
        encode(plain, x)
        if plain in FORMATS
        else quantize(x, type_by_name(plain)).reshape(len(x), -1)
    )
    return interleave(name, raw, table_of(name)) if plain != name else raw


def write(path: Path, names: Mapping[str, str]) -> Path:
    """The trained model, its matrices in the types of their roles."""
    model = open_gguf(TINY)
    tensors: list[tuple[str, tuple[int, ...], TensorType]] = []
    data: list[U8Array] = []
    for name, tensor in model.tensors.items():
        role = name.split(".")[-2]
        if len(tensor.dims) < 2 or role not in names:
            kind, raw = tensor.type, tensor.part(0, tensor.n_weights)
        else:
            x = tensor.read(0, tensor.n_weights).reshape(tensor.dims[::-1])
            kind, raw = type_by_name(names[role]), stored(names[role], x)
        tensors.append((name, tensor.dims, kind))
        data.append(raw.reshape(-1))
    spans = [entry.span for key, entry in model.metadata.items() if key != "general.file_type"]
    layout = lay_out(spans, tensors, 32)
    file = bytearray(layout.n_bytes)
    file[: len(layout.header)] = layout.header
    for position, raw in zip(layout.positions, data, strict=True):
        file[position : position + raw.size] = raw.tobytes()
    path.write_bytes(file)
    return path


def errors(path: Path, roles: Mapping[str, str]) -> dict[str, float]:
    """Mean square errors of the matrices of a file."""
    found = {}
    truth = open_gguf(TINY).tensors
    for name, tensor in open_gguf(path).tensors.items():
        if name.split(".")[-2] in roles:
            off = tensor.read(0, tensor.n_weights) - truth[name].read(0, tensor.n_weights)
            found[name] = float(np.mean(np.square(off, dtype=np.float64)))
    return found


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("fork") / "fork.gguf", BY_ROLE)


def test_a_merge_with_a_file_of_llama_cpp(fork: Path, tmp_path: Path) -> None:
    """All tensors come nearer; llama.cpp loads what is written, and it talks like the original."""
    mainline, out = DATA / "tiny-llama-3m-Q4_K_M.gguf", tmp_path / "out.gguf"
    report = execute_merge(plan_merge([fork, mainline], out))
    assert report.conflict_fraction == 0
    merged, own, other = (errors(path, BY_ROLE) for path in (out, fork, mainline))
    ratios = {name: merged[name] / min(own[name], other[name]) for name in merged}
    assert max(ratios.values()) < 1.001  # the same bytes in both, rounded to F16
    assert sum(ratio < 0.97 for ratio in ratios.values()) >= len(ratios) - 2
    assert np.mean([*ratios.values()]) < 0.8
    assert open_gguf(out).tensors.keys() == open_gguf(TINY).tensors.keys()
    with llama_cpp.LlamaModel(out, n_ctx=64) as model:
        logits = model.logits(model.tokenize("To be, or not to be"))
    with llama_cpp.LlamaModel(TINY, n_ctx=64) as model:
        expected = model.logits(model.tokenize("To be, or not to be"))
    assert np.corrcoef(logits.reshape(-1), expected.reshape(-1))[0, 1] > 0.99


def test_files_of_the_fork_alone(fork: Path, tmp_path: Path) -> None:
    coarse = dict.fromkeys(BY_ROLE, "IQ3_KS")
    second = write(tmp_path / "second.gguf", coarse)
    out = tmp_path / "out.gguf"
    execute_merge(plan_merge([fork, second], out))
    merged, own = errors(out, BY_ROLE), errors(fork, BY_ROLE)
    assert np.mean([merged[name] / own[name] for name in own]) < 0.95


def test_one_file_is_decoded(fork: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert main(["merge", str(fork), "-o", str(out), "--method", "best", "--outtype", "f32"]) == 0
    for name, tensor in open_gguf(fork).tensors.items():
        n = tensor.n_weights
        np.testing.assert_array_equal(open_gguf(out).tensors[name].read(0, n), tensor.read(0, n))


def test_bounds_hold_and_are_verified(fork: Path, tmp_path: Path) -> None:
    mainline = DATA / "tiny-llama-3m-Q4_K_M.gguf"
    assert main(["bounds", str(fork), str(mainline), "--summary", "-q"]) == 0
    out = tmp_path / "out.gguf"
    assert main(["merge", str(fork), str(mainline), "-o", str(out), "--outtype", "f32", "-q"]) == 0
    assert main(["verify", str(out), str(fork), str(mainline), "-q"]) == 0
    assert main(["verify", str(TINY), str(fork), str(mainline), "-q"]) == 0


@pytest.mark.parametrize(
    ("names", "most"),
    [
        (("IQ4_KT", "IQ3_KT"), 0.75),
        (("IQ4_KT", "Q4_K"), 0.655),
        (("IQ4_K", "Q4_K"), 0.55),
        (("IQ4_K", "IQ4_KS", "Q4_K"), 0.44),
        (("IQ4_KT", "IQ4_K", "IQ4_KS", "Q4_K"), 0.35),
    ],
)
def test_errors_on_trained_weights(names: tuple[str, ...], most: float) -> None:
    if not GOLDEN.exists():
        pytest.skip("the golden files of ik_llama.cpp are not here")
    found = merge(GOLDEN, names, "posterior")
    assert found.ratio <= most
    assert abs(found.claim - 1) <= 0.04
    assert found.n_outside == 0
