"""A Grok-1 checkpoint in GGUF: every integer exact, and llama.cpp runs it."""

import argparse
import json
import pickle
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from recover.reblock.dispatch import open_original
from recover.reblock.integers import Request
from tests.oracle.llama_cpp import LlamaModel
from tests.support.gguf_files import write_out
from tests.support.quantized_folders import refusal
from tests.support.reblock_files import example, read_gguf, reblock

N_LAYERS, N_EXPERTS = 12, 8
SIZES = ["--layers", str(N_LAYERS), "--embd", "64", "--ff", "256", "--experts", str(N_EXPERTS)]
SIZES += ["--down-groups", "2", "--output-groups", "2", "--vocab", "160"]

# Paths in Grok-1's code, llama.cpp's names, and the expected run length (None: floats).
IN_LAYER = {
    "moe/linear": ("ffn_gate_exps", 64),
    "moe/linear_v": ("ffn_up_exps", 64),
    "moe/linear_1": ("ffn_down_exps", 128),
    "multi_head_attention/query": ("attn_q", 64),
    "multi_head_attention/key": ("attn_k", 64),
    "multi_head_attention/value": ("attn_v", 64),
    "multi_head_attention/linear": ("attn_output", 32),
    "rms_norm": ("attn_norm", None),
    "rms_norm_1": ("attn_output_norm", None),
    "rms_norm_2": ("ffn_norm", None),
    "rms_norm_3": ("layer_output_norm", None),
    "router": ("ffn_gate_inp", None),
}


def arguments(folder: Path) -> argparse.Namespace:
    parsed: argparse.Namespace = example().parser().parse_args([str(folder), *SIZES])
    return parsed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grok")
    n_files = example().write_checkpoint(folder, arguments(folder))
    assert n_files == 2 + 12 * N_LAYERS
    return folder


@pytest.fixture(scope="module")
def truth(checkpoint: Path) -> dict[str, NDArray[np.float64]]:
    """What every tensor of the GGUF has to mean, rows last, straight from the parameters."""
    parameters = example().parameters(arguments(checkpoint))
    names = {"language_model/in_out_embed": "token_embd", "language_model/rms_norm": "output_norm"}
    for layer in range(N_LAYERS):
        for path, (slot, _) in IN_LAYER.items():
            own = f"language_model/transformer/decoder_layer_{layer}/{path}"
            names[own] = f"blk.{layer}.{slot}"
    return {f"{names[path]}.weight": meaning(path, each) for path, each in parameters.items()}


def meaning(path: str, tensor: Any) -> NDArray[np.float64]:
    if isinstance(tensor, np.ndarray):
        x = tensor.astype(np.float64)
    else:
        scales = tensor.scales.astype(np.float64)
        n_run = tensor.weight.shape[-2] // scales.shape[-2]
        x = tensor.weight.astype(np.float64) * np.repeat(scales, n_run, -2)
    return x if x.ndim == 1 or path.endswith("in_out_embed") else x.swapaxes(-1, -2)


@pytest.fixture(scope="module")
def converted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "grok.gguf"
    result = reblock(checkpoint, out, hparams=checkpoint / "hparams.json")
    assert result.exact
    return out


def test_every_weight_is_exact(converted: Path, truth: dict[str, NDArray[np.float64]]) -> None:
    found = read_gguf(converted)
    assert set(found) == set(truth)
    n_integers = 0
    for name, (kind, weights) in found.items():
        is_integer = name.split(".")[-2].startswith(("ffn_gate_exps", "ffn_up", "ffn_down"))
        is_integer |= name.split(".")[-2] in ("attn_q", "attn_k", "attn_v", "attn_output")
        assert kind == ("Q8_0" if is_integer else "F32")
        assert np.array_equal(weights.astype(np.float64), truth[name]), name
        n_integers += is_integer
    assert n_integers == 7 * N_LAYERS


def test_groups_and_report(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "grok.gguf"
    command = [sys.executable, "-m", "recover", "reblock", checkpoint, "-o", out, "--json"]
    command += ["--hparams", checkpoint / "hparams.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert list(document) == ["source", "output", "exact", "tensors", "warnings"]
    (warning,) = document["warnings"]
    assert "the output has no vocabulary" in warning
    assert done.stderr == f"recover: warning: {warning}\n"
    assert (document["source"], document["output"]) == (str(checkpoint), str(out))
    assert document["exact"] is True
    keys = ["name", "from", "to", "group", "exact", "reason"]
    assert all(list(tensor) == keys for tensor in document["tensors"])
    groups = {tensor["name"]: tensor["group"] for tensor in document["tensors"]}
    for layer in range(N_LAYERS):
        for slot, group in IN_LAYER.values():
            assert groups[f"blk.{layer}.{slot}.weight"] == group
    report = json.loads((tmp_path / "grok.gguf.report.json").read_text())
    assert report["exact"] is True
    assert len(report["conditions"]) == 2
    assert all(tensor["verified"] and tensor["n_different"] == 0 for tensor in report["tensors"])
    assert {path.name for path in tmp_path.iterdir()} == {"grok.gguf", "grok.gguf.report.json"}


def test_naive_path_is_not(truth: dict[str, NDArray[np.float64]]) -> None:
    """Dequantize to bfloat16, then f16, then Q8_0, as it is usually done."""
    squared_error = squared_weight = n_exact = n_weights = 0.0
    for name, x in truth.items():
        if name.split(".")[-2] in ("ffn_down_exps", "attn_q", "attn_output", "ffn_gate_exps"):
            halves = x.astype(ml_dtypes.bfloat16).astype(np.float16).astype(np.float32)
            kind = GGMLQuantizationType.Q8_0
            naive = dequantize(quantize(halves, kind), kind).astype(np.float64)
            squared_error += np.square(naive - x).sum()
            squared_weight += np.square(x).sum()
            n_exact += np.count_nonzero(naive == x)
            n_weights += x.size
    relative = np.sqrt(squared_error / squared_weight)
    assert 3e-3 < relative < 8e-3
    assert n_exact / n_weights < 0.2


@pytest.mark.inference
def test_llama_cpp_runs_it(
    checkpoint: Path, truth: dict[str, NDArray[np.float64]], tmp_path: Path
) -> None:
    """The same logits as from a file in F32 that gguf-py wrote from the parameters.

    All experts take part, since the choice of two would depend on rounding.
    """
    hparams = json.loads((checkpoint / "hparams.json").read_text())
    (tmp_path / "hparams.json").write_text(json.dumps({**hparams, "expert_used_count": N_EXPERTS}))
    converted = tmp_path / "grok.gguf"
    reblock(checkpoint, converted, hparams=tmp_path / "hparams.json")
    other = tmp_path / "f32.gguf"
    writer = GGUFWriter(other, "grok")
    writer.add_vocab_size(160)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(256)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(32)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(N_EXPERTS)
    writer.add_expert_used_count(N_EXPERTS)
    writer.add_attn_logit_softcapping(30.0)
    writer.add_router_logit_softcapping(30.0)
    writer.add_attn_output_scale(0.08838834764831845)
    writer.add_embedding_scale(78.38367176906169)
    writer.add_logit_scale(0.5773502691896257)
    writer.add_tokenizer_model("none")
    for name, x in truth.items():
        writer.add_tensor(name, np.ascontiguousarray(x, np.float32))
    write_out(writer)
    tokens = np.arange(5, 45)
    with LlamaModel(converted, n_ctx=64) as model:
        assert model.n_vocab == 160
        ours = model.logits(tokens)
    with LlamaModel(other, n_ctx=64) as model:
        theirs = model.logits(tokens)
    # Q8_0 is multiplied with activations in Q8_0, so that logits differ a little.
    assert np.std(ours - theirs) < 0.05 * np.std(theirs)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.998


def test_metadata(converted: Path) -> None:
    fields = {key: field.contents() for key, field in GGUFReader(converted).fields.items()}
    expected = {
        "general.architecture": "grok",
        "general.file_type": 7,
        "grok.block_count": N_LAYERS,
        "grok.embedding_length": 64,
        "grok.feed_forward_length": 256,
        "grok.expert_count": N_EXPERTS,
        "grok.expert_used_count": 2,
        "grok.attention.head_count": 2,
        "grok.attention.head_count_kv": 2,
        "grok.context_length": 512,
        "grok.attn_logit_softcapping": 30.0,
        "grok.router_logit_softcapping": 30.0,
        "tokenizer.ggml.model": "none",
    }
    assert {key: fields[key] for key in expected} == expected
    for key, value in (
        ("embedding_scale", 78.38367176906169),
        ("logit_scale", 0.5773502691896257),
        ("attention.output_scale", 0.08838834764831845),
    ):
        assert fields[f"grok.{key}"] == np.float32(value)


def message(*parts: tuple[int, bytes | int | float]) -> bytes:
    """A protocol buffer, as its documentation describes it."""

    def varint(number: int) -> bytes:
        head = []
        while number > 127:
            head.append(number & 127 | 128)
            number >>= 7
        return bytes([*head, number])

    found = b""
    for field, value in parts:
        if isinstance(value, bytes):
            found += varint(field << 3 | 2) + varint(len(value)) + value
        elif isinstance(value, float):
            found += varint(field << 3 | 5) + struct.pack("<f", value)
        else:
            found += varint(field << 3) + varint(value)
    return found


def test_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    pieces = [(b"<unk>", 0.0, 2), (b"<s>", 0.0, 3), (b"</s>", 0.0, 3)]
    pieces += [(f"<0x{i:02X}>".encode(), 0.0, 6) for i in range(32, 127)]
    pieces += [("\u2581".encode(), -1.0, 1), (b"a", -2.0, 1), ("\u2581a".encode(), -0.5, 1)]
    proto = message(
        *((1, message((1, text), (2, score), (3, kind))) for text, score, kind in pieces),
        (2, message((40, 0), (41, 1), (42, 2), (43, (1 << 64) - 1))),
    )
    (folder / "tokenizer.model").write_bytes(proto)
    out = tmp_path / "out.gguf"
    reblock(folder, out, hparams=folder / "hparams.json")
    fields = {key: field.contents() for key, field in GGUFReader(out).fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[: len(pieces)] == [text.decode() for text, _, _ in pieces]
    assert tokens[len(pieces) :] == [f"[PAD{i}]" for i in range(160 - len(pieces))]
    assert fields["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert fields["tokenizer.ggml.scores"][-2:] == [-10000.0, -10000.0]
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert "tokenizer.ggml.padding_token_id" not in fields
    with LlamaModel(out, n_ctx=64) as model:
        assert model.tokenize("a a")[-2:].tolist() == [tokens.index("\u2581a")] * 2


def test_float_type_is_said_to_be_inexact(checkpoint: Path, tmp_path: Path) -> None:
    hparams = checkpoint / "hparams.json"
    result = reblock(checkpoint, tmp_path / "a.gguf", hparams=hparams, float_type="BF16")
    inexact = [tensor for tensor in result.tensors if not tensor.exact]
    assert [tensor.tensor.name for tensor in inexact] == ["token_embd.weight"]
    assert "F32 rounded to BF16" in inexact[0].reason
    assert 1e-3 < inexact[0].relative_rmse < 3e-3
    assert not result.exact
    assert read_gguf(tmp_path / "a.gguf")["blk.0.attn_norm.weight"][0] == "F32"


# What must be refused, by name, with nothing written.


@pytest.fixture
def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    return folder


def test_missing_shard(damaged: Path, tmp_path: Path) -> None:
    (damaged / "ckpt-0" / "tensor00026_000").unlink()
    assert "there is no tensor00026_000" in refusal(damaged, tmp_path)


def test_missing_last_shards(damaged: Path, tmp_path: Path) -> None:
    (damaged / "ckpt-0" / f"tensor{2 + 12 * N_LAYERS - 1:05}_000").unlink()
    assert "145 files" in refusal(damaged, tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 100, 500, -1])
def test_truncated_shard(damaged: Path, tmp_path: Path, kept: int) -> None:
    path = damaged / "ckpt-0" / "tensor00003_000"
    path.write_bytes(path.read_bytes()[:kept])
    assert "tensor00003_000: " in refusal(damaged, tmp_path)


class _Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self._target,)


def test_hostile_shard(damaged: Path, tmp_path: Path) -> None:
    target, out = tmp_path / "run", tmp_path / "out.gguf"
    path = damaged / "ckpt-0" / "tensor00004_000"
    path.write_bytes(pickle.dumps(_Evil(target), protocol=4))
    command = [sys.executable, "-m", "recover", "reblock", str(damaged), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"recover: error: {path}: pickle: wants to import")
    assert done.stderr.count("\n") == 1
    assert not out.exists()
    assert not target.exists()
    assert {each.name for each in tmp_path.iterdir()} == {"damaged"}


@pytest.mark.parametrize("scale", [2.0**-30, 1e5, float("inf"), float("nan"), 2.0**-24 * 1.5])
def test_scale_beyond_float16(damaged: Path, tmp_path: Path, scale: float) -> None:
    weight = np.ones((64, 64), np.int8)
    scales = np.ones((1, 64), ml_dtypes.bfloat16)
    scales[0, 5] = scale
    path = damaged / "ckpt-0" / "tensor00005_000"
    path.write_bytes(quantized_pickle(weight, scales))
    text = refusal(damaged, tmp_path, hparams=damaged / "hparams.json")
    assert "tensor00005_000: tensor 'blk.0.attn_k.weight'" in text
    assert "of row 5, group 0 is not exact in float16" in text


def test_such_a_scale_can_be_allowed(damaged: Path, tmp_path: Path) -> None:
    scales = np.full((1, 64), 2.0**-30, ml_dtypes.bfloat16)
    weight = np.arange(-128, 128, dtype=np.int16).astype(np.int8).repeat(16).reshape(64, 64)
    path = damaged / "ckpt-0" / "tensor00005_000"
    path.write_bytes(quantized_pickle(weight, scales))
    hparams = damaged / "hparams.json"
    out = tmp_path / "a.gguf"
    result = reblock(damaged, out, hparams=hparams, allow_inexact=True)
    assert result.exact  # F32 holds int8 x bf16
    kind, found = read_gguf(out)["blk.0.attn_k.weight"]
    assert kind == "F32"
    assert np.array_equal(found, weight.T * np.float64(2.0**-30))
    result = reblock(damaged, out, hparams=hparams, allow_inexact=True, outtype="Q8_0")
    assert "relative rms error" in result.tensors[4].reason


def quantized_pickle(weight: NDArray[Any], scales: NDArray[Any]) -> bytes:
    """A pickle as in the checkpoint."""
    kind = example().QuantizedWeight8bit
    main = vars(sys.modules["__main__"])
    main["QuantizedWeight8bit"] = kind
    try:
        return pickle.dumps(kind(weight, scales), protocol=4)
    finally:
        del main["QuantizedWeight8bit"]


def test_shape_of_another_place(damaged: Path, tmp_path: Path) -> None:
    folder = damaged / "ckpt-0"
    shutil.copy(folder / "tensor00003_000", folder / "tensor00020_000")
    text = refusal(damaged, tmp_path)
    assert "tensor00020_000: has the shape" in text
    assert "blk.1.attn_v" in text or "blk.1.attn_q" in text


def test_head_size_must_fit(checkpoint: Path, tmp_path: Path) -> None:
    assert "--hparams" in refusal(checkpoint, tmp_path)  # Grok-1's own 128 is more than 64


def test_a_path_that_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    text = refusal(tmp_path / "nowhere", tmp_path, hparams=checkpoint / "hparams.json")
    assert text.endswith("nowhere: there is no such file or folder")


def test_verification_finds_a_wrong_byte(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk gives back counts, not what was meant to be written."""
    from recover.execution.output import OutputFile

    original = OutputFile.read_at

    def wrong(self: OutputFile, position: int, n_bytes: int) -> bytes:
        data = bytearray(original(self, position, n_bytes))
        data[2] ^= 1
        return bytes(data)

    monkeypatch.setattr(OutputFile, "read_at", wrong)
    text = refusal(checkpoint, tmp_path, hparams=checkpoint / "hparams.json")
    assert "not what the source means" in text or "other bytes" in text


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    peaks = []
    for n_ff in (256, 4096):
        folder = tmp_path / str(n_ff)
        options = ["--layers", "1", "--embd", "512", "--ff", str(n_ff), "--experts", "2"]
        options += ["--down-groups", "1", "--output-groups", "1"]
        example().write_checkpoint(folder, example().parser().parse_args([str(folder), *options]))
        source = open_original(folder, Request(), hparams=folder / "hparams.json")
        tensor = source.tensors[1]
        assert tensor.dims == (512, n_ff, 2)
        step = 256 * 512
        out = np.empty(tensor.outtype.n_bytes(step), np.uint8)
        tensor.encode(0, step, out)
        tracemalloc.start()
        for start in range(0, tensor.n_weights, step):
            tensor.encode(start, start + step, out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 100_000


@pytest.mark.parametrize("cut", [(32, 96), (0, 64 * 3 + 32), (64 * 255 + 32, 64 * 257)])
def test_any_range_of_blocks(checkpoint: Path, cut: tuple[int, int]) -> None:
    source = open_original(checkpoint, Request(), hparams=checkpoint / "hparams.json")
    tensor = next(each for each in source.tensors if each.name == "blk.3.ffn_gate_exps.weight")
    whole = np.empty(tensor.outtype.n_bytes(tensor.n_weights), np.uint8)
    tensor.encode(0, tensor.n_weights, whole)
    start, end = cut
    part = np.empty(tensor.outtype.n_bytes(end - start), np.uint8)
    tensor.encode(start, end, part)
    assert np.array_equal(part, whole[tensor.outtype.n_bytes(start) : tensor.outtype.n_bytes(end)])
    assert tensor.reference is not None
    every = tensor.reference(0, tensor.n_weights)
    assert np.array_equal(tensor.reference(start, end), every[start:end])
