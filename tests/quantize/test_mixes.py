"""Mixes of types by name, against the files that llama.cpp's own quantizer makes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import pytest

from recover.containers.gguf.reader import open_gguf
from recover.errors import PlanError
from recover.quantize.mixes import MIXES
from recover.quantize.plan import plan_quantize
from tests.support.gguf_files import write_out
from tests.support.models import TINY, quantize
from tests.support.quantizing import F32, refusal, run, stored, write_legacy

NAMES = tuple(MIXES)
OF_NO_EXPERTS = tuple(name for name in NAMES if name != "MXFP4_MOE")
WITHOUT = tuple(name for name in OF_NO_EXPERTS if name != "Q2_K_S")  # that needs a matrix
ASK_FOR_ONE = ("Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS")
"""Mixes whose types depend on whether there is an importance matrix; bytes do in all."""
FINER_IN_LARGE = ("Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M")
"""Mixes whose types depend on whether llama.cpp takes the model for one of 70B."""


@dataclass
class Shape:
    """What a small random model has."""

    architecture: str = "llama"
    n_layers: int = 9
    heads: tuple[int, int] = (8, 8)
    n_experts: int = 0
    is_tied: bool = False
    joined: bool = False
    width: int = 256
    n_rows: int = 2
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)


SHAPES = {
    "grouped heads": Shape(heads=(8, 2)),
    "17 layers": Shape(n_layers=17),
    "70B": Shape(n_layers=80, heads=(8, 1)),
    "65B": Shape(n_layers=80),
    "qwen2 of 80 layers": Shape("qwen2", n_layers=80, heads=(8, 8)),
    "8 experts": Shape(n_layers=10, n_experts=8),
    "6 experts": Shape(n_layers=10, n_experts=6, heads=(8, 2)),
    "tied": Shape(is_tied=True),
    "joined": Shape("phi3", joined=True),
    "falcon": Shape("falcon", n_layers=20, joined=True),
    "odd rows": Shape(width=96),
}
OFTEN = "70B", "8 experts", "tied", "joined", "falcon", "odd rows"
"""Shapes that rules tell from others; those of the rest are nearly theirs."""
LARGE = "70B", "65B", "qwen2 of 80 layers"
"""Shapes of 80 layers: a large model, and two that are nearly one; slow tests take all mixes."""


def tensors_of(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, rows first."""
    width, kv = shape.width, shape.width * shape.heads[1] // shape.heads[0]
    yield "token_embd.weight", (16, width)
    if not shape.is_tied:
        yield "output.weight", (16, width)
    for i in range(shape.n_layers):
        attention = {"attn_qkv": width + 2 * kv}
        if not shape.joined:
            attention = {"attn_q": width, "attn_k": kv, "attn_v": kv}
        for name, n in attention.items():
            yield f"blk.{i}.{name}.weight", (min(n, shape.n_rows), width)
        yield f"blk.{i}.attn_output.weight", (shape.n_rows, width)
        stacked = (shape.n_experts,) if shape.n_experts else ()
        ending = "_exps" if stacked else ""
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            yield f"blk.{i}.{name}{ending}.weight", (*stacked, shape.n_rows, width)


def write(path: Path, shape: Shape, rng: np.random.Generator) -> Path:
    """A random model of a shape, of few rows: its mixes are at issue."""
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.width)
    writer.add_block_count(shape.n_layers)
    writer.add_head_count(shape.heads[0])
    writer.add_head_count_kv(shape.heads[1])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(16)
    writer.add_sliding_window(0)
    if shape.n_experts:
        writer.add_expert_count(shape.n_experts)
        writer.add_expert_used_count(2)
    for name, dims in tensors_of(shape):
        writer.add_tensor(name, (0.02 * rng.standard_normal(dims)).astype(np.float32))
    write_out(writer)
    return path


def importance_of(path: Path, rng: np.random.Generator) -> dict[str, F32]:
    """For every matrix but the embeddings."""
    return {
        tensor.name: rng.lognormal(
            0, 1, tensor.dims[0] * (tensor.dims[2] if len(tensor.dims) > 2 else 1)
        ).astype(np.float32)
        for tensor in open_gguf(path).tensors.values()
        if len(tensor.dims) > 1 and tensor.name != "token_embd.weight"
    }


def check(
    model: Path, folder: Path, names: tuple[str, ...], importance: dict[str, F32] | None = None
) -> None:
    """Our files have the types and bytes of llama.cpp's."""
    arguments: list[object] = ["--mix"]
    imatrix = None
    if importance is not None:
        imatrix = folder / "imatrix.npz"
        np.savez(imatrix, **importance)  # type: ignore[arg-type]
        arguments += ["--imatrix", write_legacy(folder / "imatrix.dat", importance, n_calls=1)]
    for name, path in zip(names, quantize(model, folder, names, imatrix), strict=True):
        ours = folder / f"ours-{name}.gguf"
        run(model, name, "-o", ours, *arguments)
        mine, theirs = stored(open_gguf(ours)), stored(open_gguf(path))
        assert {key: kind for key, (kind, _) in mine.items()} == {
            key: kind for key, (kind, _) in theirs.items()
        }, name
        assert [key for key in mine if mine[key] != theirs[key]] == [], name
        keys = "general.file_type", "general.quantization_version"
        assert [open_gguf(ours).get(key) for key in keys] == [
            open_gguf(path).get(key) for key in keys
        ]


def check_all(model: Path, folder: Path, rng: np.random.Generator) -> None:
    """Every mix without an importance matrix and with one."""
    check(model, folder, WITHOUT)
    check(model, folder, OF_NO_EXPERTS, importance_of(model, rng))


def check_half(model: Path, folder: Path, rng: np.random.Generator) -> None:
    """Every mix once, one in two with an importance matrix; some both ways."""
    once = [name for name in WITHOUT if name not in ASK_FOR_ONE][::2]
    check(model, folder, (*ASK_FOR_ONE, *once))
    others = tuple(name for name in OF_NO_EXPERTS if name not in once)
    check(model, folder, others, importance_of(model, rng))


def check_types(model: Path, folder: Path, rng: np.random.Generator) -> None:
    """A mix of each type that most weights have, every other one with an importance matrix."""
    names = list({mix.base: name for name, mix in MIXES.items() if name in WITHOUT}.values())
    check(model, folder, tuple(names[::2]))
    check(model, folder, tuple(names[1::2]), importance_of(model, rng))


def check_large(model: Path, folder: Path, rng: np.random.Generator) -> None:
    """The mixes that are others in large models."""
    check(model, folder, FINER_IN_LARGE, importance_of(model, rng))


HOW_MANY = pytest.mark.parametrize(
    "check_mixes", [check_types, pytest.param(check_all, marks=pytest.mark.slow)]
)
Check = Callable[[Path, Path, np.random.Generator], None]


@pytest.mark.long
@HOW_MANY
def test_the_small_model(check_mixes: Check, tmp_path: Path, rng: np.random.Generator) -> None:
    check_mixes(TINY, tmp_path, rng)


@pytest.mark.slow
def test_the_larger_model(llama_29m: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    check_all(llama_29m, tmp_path, rng)


@pytest.mark.parametrize(
    ("name", "check_mixes"),
    [(name, check_large if name in LARGE else check_half) for name in OFTEN]
    + [pytest.param(name, check_all, marks=pytest.mark.slow) for name in SHAPES],
)
def test_models_of_many_shapes(
    name: str, check_mixes: Check, tmp_path: Path, rng: np.random.Generator
) -> None:
    shape = SHAPES[name]
    model = write(tmp_path / "model.gguf", shape, rng)
    check_mixes(model, tmp_path, rng)
    if shape.n_experts:
        check(model, tmp_path, ("MXFP4_MOE",))


def test_names_and_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    plan = plan_quantize(TINY, out, "q4_k_m", tensor_types=[("blk.0.attn_v", "Q8_0")])
    kinds = {tensor.name: tensor.outtype for tensor in plan.tensors}
    assert kinds["output.weight"] == kinds["blk.2.ffn_down.weight"] == "Q6_K"
    assert kinds["blk.0.attn_v.weight"] == "Q8_0"
    # What has its type is not counted: the last one is not the third any more.
    assert kinds["blk.2.attn_v.weight"] == "Q4_K"
    assert (plan.outtype, plan.base) == ("Q4_K_M", "Q4_K")
    for name, mix, expected in (("Q4_K", True, "Q4_K_M"), ("Q2_K", True, "Q2_K")):
        plan = plan_quantize(TINY, out, name, mix=mix)
        assert plan.outtype == expected
        assert len({tensor.outtype for tensor in plan.tensors}) > 2
    pure = plan_quantize(TINY, out, "Q2_K")
    assert {tensor.outtype for tensor in pure.tensors} == {"Q2_K", "F32"}
    assert "Q2_K_S needs an importance matrix" in refusal(capsys, TINY, "Q2_K_S", "-o", out)


def test_named_quantizers_encode_the_base(tmp_path: Path, rng: np.random.Generator) -> None:
    model = write(tmp_path / "model.gguf", Shape(), rng)
    run(model, "Q4_K_M", "-o", tmp_path / "plain.gguf")
    run(model, "Q4_K_M", "-o", tmp_path / "lsq.gguf", "--quantizer", "k-lsq")
    plain, lsq = (stored(open_gguf(tmp_path / f"{name}.gguf")) for name in ("plain", "lsq"))
    assert {kind for key, (kind, _) in plain.items() if plain[key] != lsq[key]} == {"Q4_K"}


def test_experts_outside_the_layers(tmp_path: Path, rng: np.random.Generator) -> None:
    shape = Shape(n_experts=4)
    model = write(tmp_path / "model.gguf", shape, rng)
    raw = model.read_bytes().replace(b"blk.8.ffn_down_exps", b"blk.9.ffn_down_exps")
    model.write_bytes(raw)
    with pytest.raises(PlanError, match=r"'blk.9.ffn_down_exps.weight' is in none of the 9 layers"):
        plan_quantize(model, tmp_path / "out.gguf", "Q4_K_M")
