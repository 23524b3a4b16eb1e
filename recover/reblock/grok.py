"""A Grok-1 checkpoint folder: pickled tensors in a fixed order, to a GGUF of architecture grok.

The files follow JAX's order of the parameter tree: tensor 0 is the embedding, 1 the final norm,
then come twelve per layer, and layers are sorted as texts (0, 1, 10, 11, ..., 2, 20, ...).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from recover._files import UnreadableError, read_bytes
from recover._json import MOST_BYTES, JSONError, parse_object
from recover._text import printable, quoted, some
from recover.containers.gguf.header import ValueType, encode_key_value
from recover.containers.mapping import map_file
from recover.errors import GGUFError, ReblockError
from recover.quants import F32Array, I8Array, type_by_name
from recover.reblock.floats import F64Array, converted, decode_floats
from recover.reblock.integers import IntegerRows, Request, exact_tensor
from recover.reblock.jax_pickle import PickledArray, QuantizedWeight, parse_pickle
from recover.reblock.sentencepiece import load_vocabulary
from recover.reblock.source import Original, OriginalTensor
from recover.reblock.transposing import transpose

_FILE_NAME = re.compile(r"tensor(\d{5})_000")
_SLOTS = (
    "ffn_gate_exps",
    "ffn_down_exps",
    "ffn_up_exps",
    "attn_k",
    "attn_output",
    "attn_q",
    "attn_v",
    "attn_norm",
    "attn_output_norm",
    "ffn_norm",
    "layer_output_norm",
    "ffn_gate_inp",
)
_N_BEFORE_LAYERS = 2
_LARGEST_ROUTER = 1 << 24

HYPER_PARAMETERS: Mapping[str, int | float] = {
    "context_length": 8192,
    "attention.key_length": 128,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "expert_used_count": 2,
    "rope.freq_base": 10000.0,
    "embedding_scale": 78.38367176906169,
    "logit_scale": 0.5773502691896257,
    "attention.output_scale": 0.08838834764831845,
    "attn_logit_softcapping": 30.0,
    "router_logit_softcapping": 30.0,
}
"""What Grok-1 has and the shapes do not tell, by GGUF's names without ``grok.``; others are allowed
in ``--hparams``, too."""

CONDITIONS = (
    "the files are those of one Grok-1 checkpoint in JAX's order (layers sorted as texts)",
    "a weight means code x scale; Grok-1's own runtime rounds that product to bfloat16",
)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder, or its ``ckpt-0``, holds tensors of a Grok-1 checkpoint."""
    return path.is_dir() and _folder(path) is not None


def _folder(path: Path) -> Path | None:
    for folder in (path, path / "ckpt-0"):
        if folder.is_dir() and any(_FILE_NAME.fullmatch(each.name) for each in folder.iterdir()):
            return folder
    return None


def open_grok(
    path: Path,
    request: Request,
    *,
    hparams: Path | None = None,
    float_type: str = "F32",
) -> Original:
    """Open a Grok-1 checkpoint.

    Parameters
    ----------
    path : Path
        The folder of the files ``tensor00000_000`` and so on, or the one above it.
    request : Request
        What the user wants.
    hparams : Path, optional
        JSON object of metadata that replace `HYPER_PARAMETERS` and what the shapes tell.
    float_type : str
        ``F32``, ``F16`` or ``BF16``: for the embedding. Norms and routers stay F32, as llama.cpp
        wants them.

    Returns
    -------
    Original

    Raises
    ------
    ReblockError
        If a file is missing, damaged, hostile, has another shape than its place demands, or a scale
        that float16 does not hold.
    """
    folder = _folder(path)
    if folder is None:
        raise ReblockError(f"{printable(path)}: holds no file tensor00000_000")
    shards = [_open_shard(file) for file in _files(folder)]
    names = _names(folder, len(shards))
    placed = dict(zip(names, shards, strict=True))
    sizes = _sizes(placed)
    replaced = {} if hparams is None else _read_hparams(hparams)
    tensors = [
        _tensor(name, placed[name], request, float_type) for name in _output_order(sizes.n_layers)
    ]
    tokenizer = next(
        (each for each in (folder / _TOKENIZER, folder.parent / _TOKENIZER) if each.exists()), None
    )
    parts = [shard.path for shard in shards]
    parts += [each for each in (tokenizer, hparams) if each is not None]
    return Original(
        path=path,
        parts=tuple(parts),
        metadata=tuple(_metadata(sizes, replaced, tensors, tokenizer)),
        tensors=tuple(tensors),
        conditions=CONDITIONS,
    )


_TOKENIZER = "tokenizer.model"


@dataclass(frozen=True)
class _Shard:
    """One file."""

    path: Path
    content: PickledArray | QuantizedWeight

    @property
    def shape(self) -> tuple[int, ...]:
        content = self.content
        return content.shape if isinstance(content, PickledArray) else content.weight.shape


def _files(folder: Path) -> list[Path]:
    numbers = {
        int(match[1]): each
        for each in folder.iterdir()
        if (match := _FILE_NAME.fullmatch(each.name))
    }
    missing = [f"tensor{i:05}_000" for i in range(max(numbers) + 1) if i not in numbers]
    if missing:
        raise ReblockError(f"{printable(folder)}: there is no {some(missing)}")
    return [numbers[i] for i in range(len(numbers))]


def _open_shard(path: Path) -> _Shard:
    try:
        return _Shard(path, parse_pickle(map_file(path)))
    except (GGUFError, ReblockError) as error:
        raise ReblockError(f"{printable(path)}: {error}") from None


def _names(folder: Path, n_files: int) -> list[str]:
    """The GGUF name of each file's tensor, in file order."""
    n_layers, rest = divmod(n_files - _N_BEFORE_LAYERS, len(_SLOTS))
    if rest or n_layers < 1:
        raise ReblockError(
            f"{printable(folder)}: {n_files} files, not {_N_BEFORE_LAYERS} and {len(_SLOTS)} per"
            " layer; the last ones are missing, or it is no Grok-1 checkpoint"
        )
    layers = sorted(range(n_layers), key=str)
    in_layers = [f"blk.{layer}.{slot}.weight" for layer in layers for slot in _SLOTS]
    return ["token_embd.weight", "output_norm.weight", *in_layers]


def _output_order(n_layers: int) -> Iterator[str]:
    yield "token_embd.weight"
    for layer in range(n_layers):
        for slot in _SLOTS:
            yield f"blk.{layer}.{slot}.weight"
    yield "output_norm.weight"


@dataclass(frozen=True)
class _Sizes:
    """What the shapes tell."""

    n_vocab: int
    n_embd: int
    n_layers: int
    n_ff: int
    n_experts: int
    n_q: int
    n_kv: int


def _sizes(placed: Mapping[str, _Shard]) -> _Sizes:
    """Read the sizes from the first layer, and hold every other shape against them."""
    n_vocab, n_embd = _dims(placed["token_embd.weight"], 2)
    n_experts, _, n_ff = _dims(placed["blk.0.ffn_gate_exps.weight"], 3)
    n_q = _dims(placed["blk.0.attn_q.weight"], 2)[1]
    n_kv = _dims(placed["blk.0.attn_k.weight"], 2)[1]
    shapes = {
        "ffn_gate_exps": (n_experts, n_embd, n_ff),
        "ffn_down_exps": (n_experts, n_ff, n_embd),
        "ffn_up_exps": (n_experts, n_embd, n_ff),
        "attn_k": (n_embd, n_kv),
        "attn_output": (n_q, n_embd),
        "attn_q": (n_embd, n_q),
        "attn_v": (n_embd, n_kv),
        "ffn_gate_inp": (n_embd, n_experts),
    }
    for name, shard in placed.items():
        slot = name.split(".")[-2]
        expected = shapes.get(slot, (n_embd,))
        if slot != "token_embd" and shard.shape != expected:
            raise ReblockError(
                f"{printable(shard.path)}: has the shape {shard.shape}, but its place is that of"
                f" {name}, which must have {expected}"
            )
    n_layers = (len(placed) - _N_BEFORE_LAYERS) // len(_SLOTS)
    return _Sizes(n_vocab, n_embd, n_layers, n_ff, n_experts, n_q, n_kv)


def _dims(shard: _Shard, n_dims: int) -> tuple[int, ...]:
    if len(shard.shape) != n_dims:
        raise ReblockError(
            f"{printable(shard.path)}: has the shape {shard.shape}, but its place is that of a"
            f" tensor of {n_dims} dimensions"
        )
    return shard.shape


def _tensor(name: str, shard: _Shard, request: Request, float_type: str) -> OriginalTensor:
    try:
        if isinstance(shard.content, QuantizedWeight):
            return _integer_tensor(name, shard.content, request)
        return _float_tensor(name, shard.content, float_type)
    except ReblockError as error:
        raise ReblockError(f"{printable(shard.path)}: {error}") from None


def _float_tensor(name: str, array: PickledArray, float_type: str) -> OriginalTensor:
    dtype = {"f4": "F32", "f2": "F16", "bfloat16": "BF16"}.get(array.dtype)
    if dtype is None:
        raise ReblockError(f"tensor {quoted(name)}: integers without scales")
    is_embedding = name == "token_embd.weight"
    outtype = type_by_name(float_type if is_embedding else "F32")
    raw = array.raw
    if len(array.shape) == 2 and not is_embedding:
        # the router is small: transposed at once
        if prod(array.shape) > _LARGEST_ROUTER:
            raise ReblockError(
                f"tensor {quoted(name)}: {prod(array.shape)} floats in a matrix of Grok-1's; more"
                f" than {_LARGEST_ROUTER} are not supported"
            )
        raw = np.ascontiguousarray(array.values.T).reshape(-1).view(np.uint8)
        dims: tuple[int, ...] = array.shape
    else:
        dims = array.shape[::-1]
    size = raw.size // prod(array.shape)
    return converted(
        name,
        dims,
        dtype,
        outtype,
        lambda first, last: decode_floats(raw[size * first : size * last], dtype),
    )


def _integer_tensor(name: str, content: QuantizedWeight, request: Request) -> OriginalTensor:
    weight, scales = content.weight, content.scales
    *stack, row_length, n_columns = weight.shape if len(weight.shape) > 1 else (0, 0)
    if weight.dtype != "i1" or scales.dtype != "bfloat16" or len(weight.shape) not in (2, 3):
        raise ReblockError(
            f"tensor {quoted(name)}: a weight of {len(weight.shape)} dimensions and type"
            f" {weight.dtype} with scales of {scales.dtype}, not i1 with bfloat16"
        )
    *scale_stack, n_groups, n_scale_columns = scales.shape if len(scales.shape) > 1 else (0, 0)
    if scale_stack != stack or n_scale_columns != n_columns or row_length % max(n_groups, 1):
        raise ReblockError(
            f"tensor {quoted(name)}: scales of shape {scales.shape} do not belong to a weight of"
            f" shape {weight.shape}"
        )
    rows = _rows(
        weight.values.reshape(-1, row_length, n_columns),
        scales.values.reshape(-1, n_groups, n_columns),
    )
    dims = (row_length, n_columns, *stack)
    return exact_tensor(name, dims, "int8 x bf16", rows, request, "the scale is exact in float16")


def _rows(weight: I8Array, words: np.ndarray[Any, Any]) -> IntegerRows:
    """Rows of a stack of transposed matrices (E, K, N) with scales (E, G, N)."""
    n_matrices, row_length, n_columns = weight.shape
    n_groups = words.shape[1]

    def pieces(first: int, last: int) -> Iterator[tuple[int, slice, slice]]:
        """Parts of one matrix each: its number, its columns, and the place in the result."""
        at = first
        while at < last:
            matrix, column = divmod(at, n_columns)
            n = min(last - at, n_columns - column)
            yield matrix, slice(column, column + n), slice(at - first, at - first + n)
            at += n

    def codes(first: int, last: int, out: I8Array) -> None:
        for matrix, columns, place in pieces(first, last):
            transpose(weight[matrix], columns.start, out[place])

    def scales(first: int, last: int) -> F32Array:
        out = np.empty((last - first, n_groups), np.uint32)
        for matrix, columns, place in pieces(first, last):
            out[place] = words[matrix, :, columns].T
        return (out << np.uint32(16)).view(np.float32)

    def reference(first: int, last: int) -> F64Array:
        out = np.empty((last - first, n_groups, row_length // n_groups))
        for matrix, columns, place in pieces(first, last):
            numbers = np.ascontiguousarray(weight[matrix, :, columns].T)
            bits = words[matrix, :, columns].T.astype(np.uint32) << np.uint32(16)
            each_scale = bits.view(np.float32).astype(np.float64)
            np.multiply(numbers.reshape(out[place].shape), each_scale[:, :, None], out=out[place])
        return out.reshape(-1, row_length)

    return IntegerRows(
        n_rows=n_matrices * n_columns,
        row_length=row_length,
        group=row_length // n_groups,
        lowest=-128,
        highest=127,
        codes=codes,
        scales=scales,
        reference=reference,
    )


def _read_hparams(path: Path) -> dict[str, Any]:
    try:
        found = parse_object(read_bytes(path, MOST_BYTES))
    except (UnreadableError, JSONError) as error:
        raise ReblockError(f"{printable(path)}: {error}") from None
    if not all(isinstance(value, int | float | str) for value in found.values()):
        raise ReblockError(f"{printable(path)}: is no JSON object of numbers and texts")
    return {key.removeprefix("grok."): value for key, value in found.items()}


def _metadata(
    sizes: _Sizes,
    replaced: Mapping[str, Any],
    tensors: list[OriginalTensor],
    tokenizer: Path | None,
) -> Iterator[bytes]:
    head_size = replaced.get("attention.key_length", HYPER_PARAMETERS["attention.key_length"])
    if not isinstance(head_size, int) or head_size < 1:
        raise ReblockError(f"attention.key_length is {head_size!r}, not a number of weights")
    if sizes.n_q % head_size or sizes.n_kv % head_size:
        raise ReblockError(
            f"queries of {sizes.n_q} and keys of {sizes.n_kv} weights are no whole heads of"
            f' {head_size}; give the right size with --hparams, {{"attention.key_length": N}}'
        )
    found: dict[str, Any] = {
        "vocab_size": sizes.n_vocab,
        "embedding_length": sizes.n_embd,
        "block_count": sizes.n_layers,
        "feed_forward_length": sizes.n_ff,
        "expert_feed_forward_length": sizes.n_ff,
        "expert_count": sizes.n_experts,
        "attention.head_count": sizes.n_q // head_size,
        "attention.head_count_kv": sizes.n_kv // head_size,
        "attention.value_length": head_size,
        "rope.dimension_count": head_size,
    }
    found = {**found, **HYPER_PARAMETERS, **replaced}
    name = found.pop("general.name", "grok")
    matrices = {tensor.outtype for tensor in tensors if tensor.group is not None}
    most = matrices.pop() if len(matrices) == 1 else type_by_name("Q8_0")
    yield encode_key_value("general.architecture", ValueType.STRING, "grok")
    yield encode_key_value("general.name", ValueType.STRING, str(name))
    yield encode_key_value("general.file_type", ValueType.UINT32, most.file_type)
    yield encode_key_value("general.quantization_version", ValueType.UINT32, 2)
    for key, value in found.items():
        yield _encoded(f"grok.{key}", value, key)
    if tokenizer is None:
        yield encode_key_value("tokenizer.ggml.model", ValueType.STRING, "none")
    else:
        yield from load_vocabulary(tokenizer).metadata(sizes.n_vocab)


def _encoded(key: str, value: Any, short: str) -> bytes:
    """An entry; numbers that Grok-1 has as floats stay floats."""
    if isinstance(value, str):
        return encode_key_value(key, ValueType.STRING, value)
    if isinstance(value, bool):
        return encode_key_value(key, ValueType.BOOL, value)
    is_float = isinstance(value, float) or isinstance(HYPER_PARAMETERS.get(short), float)
    if is_float and abs(value) < 3e38:
        return encode_key_value(key, ValueType.FLOAT32, float(value))
    if is_float or not 0 <= value < 1 << 32:
        raise ReblockError(f"{quoted(key)} is {quoted(str(value))}, beyond 32 bits")
    return encode_key_value(key, ValueType.UINT32, value)
