"""A model's GGUF tensors as the arrays of a folder: which there are, and the files beside them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from recover._files import MissingError, UnreadableError, read_bytes
from recover._json import MOST_BYTES, JSONError, parse_object
from recover._text import printable, quoted, some
from recover.containers.huggingface.architectures import architecture_of, gguf_name, text_config
from recover.containers.huggingface.configuration import (
    Config,
    Rebuilt,
    Said,
    config_of,
    dtype_name,
    generation_of,
    known_architectures,
    rebuilt_of,
)
from recover.containers.huggingface.folder_layout import as_json
from recover.containers.huggingface.modules import QUANTIZATION_KEYS
from recover.containers.huggingface.naming import DERIVED, NAMINGS, Share, Sharing, Sizes
from recover.containers.huggingface.placing import Placed
from recover.containers.huggingface.sizes import N_EXPERTS, check_sizes
from recover.containers.huggingface.vocabulary.files import tokenizer_files
from recover.containers.huggingface.vocabulary.metadata import has_vocabulary
from recover.containers.model import ArrayTensor, Model, StoredTensor
from recover.containers.safetensors.reader import CONFIG
from recover.errors import PlanError, QuantError, SafetensorsError
from recover.quants import (
    F32Array,
    FloatType,
    TensorType,
    U8Array,
    dequantize,
    quantize,
    type_by_name,
)

GENERATION = "generation_config.json"
BESIDE = (
    GENERATION,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tiktoken.model",
    "tekken.json",
)
"""Files of a folder that say how to use the weights."""

_NORM = re.compile(r".*norm\.weight")
_MOST_BESIDE = 1 << 28  # bytes of one of them
_COMPARED, _OTHER = 65_536, 0.5  # weights; square difference over theirs, of unrelated ones 2
_SMALL = 1 << 22  # weights of vectors that are looked at


@dataclass(frozen=True)
class Written:
    """How a GGUF model becomes a folder.

    Attributes
    ----------
    shares : mapping of str to tuple of Share
        By tensor, what becomes of its weights; those that the configuration tells are left out.
    lowered : frozenset of str
        Tensors from which 1 is taken, as GGUF files have it added.
    config : dict
        Of ``config.json``, but for the type of the weights.
    beside : mapping of str to bytes
        Other files.
    parts : tuple of Path
        Files that these come from.
    """

    shares: Mapping[str, tuple[Share, ...]]
    lowered: frozenset[str]
    config: Config | None
    beside: Mapping[str, bytes]
    parts: tuple[Path, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """What is missing of the folder."""
        if self.config is None or {"tokenizer.json", "tokenizer.model"} & set(self.beside):
            return []
        return ["the folder gets no tokenizer; take one with --config"]

    def others(self, dtype: str) -> dict[str, bytes]:
        """All files beside the weights, which are mostly of a type."""
        if self.config is None:
            return dict(self.beside)
        return {CONFIG: as_json(self.config | {"torch_dtype": dtype_name(dtype)})} | dict(
            self.beside
        )


def write_as_gguf(tensors: Mapping[str, StoredTensor]) -> Written:
    """A folder with GGUF's names and shapes, and nothing beside the weights."""
    shares = {
        name: (Share(name, tuple(tensor.dims[::-1]), 0, tensor.n_weights),)
        for name, tensor in tensors.items()
    }
    return Written(MappingProxyType(shares), frozenset(), None, MappingProxyType({}))


def write_as_folder(
    model: Model, tensors: Mapping[str, StoredTensor], folder: Path | None = None
) -> Written:
    """What becomes of a model's tensors in a folder as transformers reads it.

    Parameters
    ----------
    model : Model
        Whose metadata says what it is.
    tensors : mapping of str to StoredTensor
        Those to be written.
    folder : Path, optional
        Where ``config.json`` and the tokenizer's files are taken from; rebuilt from the metadata if
        not given.

    Raises
    ------
    PlanError
        If the architecture is not known, or a tensor has no place in it, or the folder's
        configuration contradicts them.
    VocabularyError
        If the metadata hold a vocabulary of a kind that is not known.
    """
    rebuilt = rebuilt_of(Said(model, tensors))
    architecture = str(model.get("general.architecture"))
    if rebuilt is None:
        raise PlanError(
            f"{printable(model.path)}: how tensors of the architecture {quoted(architecture)} are"
            f" called and laid out in folders is not known; known are {known_architectures()};"
            " --names gguf writes them under GGUF's names"
        )
    try:
        if folder is None:
            config, beside, parts = _rebuilt_files(model, tensors)
        else:
            config, beside, parts = _files_of(folder, rebuilt, tensors, architecture)
        shares = _shares(model, tensors, rebuilt, config)
    except SafetensorsError as error:
        raise PlanError(f"{printable(model.path)}: {error}") from None
    known = architecture_of(config)
    lowered = {name for name in shares if known.norms_add_one and _NORM.fullmatch(name)}
    return Written(
        MappingProxyType(shares), frozenset(lowered), config, MappingProxyType(beside), parts
    )


def _shares(
    model: Model, tensors: Mapping[str, StoredTensor], rebuilt: Rebuilt, config: Config
) -> dict[str, tuple[Share, ...]]:
    architecture = architecture_of(config)
    sharing = Sharing(
        NAMINGS[rebuilt.naming], _sizes(config), permutes_heads=architecture.permutes_heads
    )
    shares, unknown = {}, []
    for name, tensor in tensors.items():
        if DERIVED.fullmatch(name):
            continue
        found = sharing.shares(name, tensor.dims)
        if found is None:
            unknown.append(quoted(name))
        else:
            shares[name] = found
    if unknown:
        raise SafetensorsError(
            f"tensors {some(unknown)} have no place in a folder of the model_type"
            f" {quoted(rebuilt.model_type)}; --names gguf writes all of them under GGUF's names"
        )
    return shares


def _sizes(config: Mapping[str, Any]) -> Sizes:
    n_heads = config["num_attention_heads"]
    n_key, n_value = config.get("qk_nope_head_dim", 0), config.get("v_head_dim", 0)
    return Sizes(n_heads, config.get("num_key_value_heads") or n_heads, n_key, n_value)


def _rebuilt_files(
    model: Model, tensors: Mapping[str, StoredTensor]
) -> tuple[Config, dict[str, bytes], tuple[Path, ...]]:
    config = config_of(Said(model, tensors))
    beside = {GENERATION: as_json(generation_of(model))}
    if has_vocabulary(model):
        beside |= tokenizer_files(model)
    return config, beside, ()


def _files_of(
    folder: Path, rebuilt: Rebuilt, tensors: Mapping[str, StoredTensor], architecture: str
) -> tuple[Config, dict[str, bytes], tuple[Path, ...]]:
    """The configuration and files of a folder, if they can be this model's."""
    shown = printable(folder / CONFIG)
    whole = read_config(folder)
    known = architecture_of(whole)
    if gguf_name(known) != architecture:
        raise SafetensorsError(
            f"{shown} is of the model_type {quoted(str(whole.get('model_type')))}, but the model is"
            f" {quoted(architecture)}"
        )
    config = dict(text_config(whole))
    if config is not whole and "text_config" in whole:  # without what sees and hears
        config["architectures"] = [rebuilt.class_name]
    for key in (*QUANTIZATION_KEYS, "dtype"):
        config.pop(key, None)
    try:
        check_sizes(Placed(tensors=dict(tensors)), known, config, is_whole=False)
        _check_layers(tensors, config)
    except SafetensorsError as error:
        raise SafetensorsError(f"{shown} contradicts the model: {error}") from None
    beside, parts = {}, [folder / CONFIG]
    for name in BESIDE:
        try:
            beside[name] = bytes(read_bytes(folder / name, _MOST_BESIDE))
            parts.append(folder / name)
        except MissingError:
            continue
        except UnreadableError as error:
            raise SafetensorsError(f"{printable(folder / name)}: {error}") from None
    return config, beside, tuple(parts)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a folder.

    Raises
    ------
    SafetensorsError
        If it is not there or cannot be read.
    """
    try:
        return parse_object(read_bytes(folder / CONFIG, MOST_BYTES))
    except MissingError:
        raise SafetensorsError(f"{printable(folder)}: there is no {CONFIG}") from None
    except (UnreadableError, JSONError) as error:
        raise SafetensorsError(f"{printable(folder / CONFIG)}: {error}") from None


def _check_layers(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> None:
    layers = [int(name.split(".")[1]) for name in tensors if name.startswith("blk.")]
    n_layers = max(layers, default=-1) + 1
    if config.get("num_hidden_layers") != n_layers:
        raise SafetensorsError(
            f"the model has {n_layers} layers, but config.json says"
            f" {config.get('num_hidden_layers')} (num_hidden_layers)"
        )
    for key in N_EXPERTS:
        if config.get(key) and not any("_exps." in name for name in tensors):
            raise SafetensorsError(
                f"there are no experts, but config.json says {config[key]} ({key})"
            )
    is_tied = "output.weight" not in tensors
    if is_tied and config.get("tie_word_embeddings") is False:
        raise SafetensorsError(
            "there is no tensor 'output.weight', but config.json says that it is not the embedding"
            " (tie_word_embeddings)"
        )
    if not is_tied and config.get("tie_word_embeddings") is True and _is_other(tensors):
        raise SafetensorsError(
            "tensor 'output.weight' is not the embedding, but config.json says so"
            " (tie_word_embeddings)"
        )


def _is_other(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether the last matrix is another than the embedding, not another quantization of it."""
    both = tensors.get("output.weight"), tensors.get("token_embd.weight")
    last, first = both
    if last is None or first is None or last.dims != first.dims:
        return False
    if any(isinstance(each, ArrayTensor) for each in both):  # perhaps nothing but a shape
        return False
    n = min(last.n_weights, _COMPARED)
    one, two = (each.read(0, n).astype(np.float64) for each in (last, first))
    return bool(np.square(one - two).sum() > _OTHER * np.square(two).sum())


def stored_kind(tensor: StoredTensor, kind: TensorType, shift: float) -> TensorType:
    """How a folder stores a tensor: vectors of floats that a type does not hold stay F32."""
    is_vector = sum(dim > 1 for dim in tensor.dims) <= 1 and tensor.n_weights <= _SMALL
    if not is_vector or not isinstance(tensor.type, FloatType) or kind.name == "F32":
        return kind
    weights = tensor.read(0, tensor.n_weights) + np.float32(shift)
    if np.isfinite(weights).all() and _holds(kind, weights):
        return kind
    return type_by_name("F32")


def _holds(kind: TensorType, weights: F32Array) -> bool:
    try:
        encoded: U8Array = quantize(weights, kind)
    except QuantError:
        return False
    return bool((dequantize(encoded, kind) == weights).all())
