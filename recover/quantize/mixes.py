"""The types that llama.cpp gives the tensors of a file by the name of a mix, such as Q4_K_M.

A mix has a type for most tensors, and rules for those that hurt more when they are coarse: the
output, attention values, what leads out of the feed-forward network. The rules are facts of
llama.cpp (`llama_tensor_get_type_impl` in src/llama-quant.cpp, commit 007dbbf of 2026).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from recover._text import printable, quoted
from recover.containers.model import Model, StoredTensor
from recover.errors import PlanError
from recover.quants import type_by_name

OUTPUT = "output"
EMBEDDING = "embedding"
VALUES = "values"
KEYS = "keys"
ATTENTION_OUTPUT = "attention output"
DOWN = "down"
GATE_OR_UP = "gate or up"
OTHER = "other"

# Which role a tensor has, by the first part of a name that is found.
_ROLES = (
    ("attn_qkv.weight", VALUES),
    ("attn_kv_b.weight", VALUES),
    ("attn_v.weight", VALUES),
    ("attn_k.weight", KEYS),
    ("attn_q.weight", OTHER),
    ("attn_output.weight", ATTENTION_OUTPUT),
    ("ffn_up", GATE_OR_UP),
    ("ffn_gate", GATE_OR_UP),
    ("ffn_down", DOWN),
)
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_FALCON = "falcon"
_LAYER = re.compile(r"blk\.(\d+)")
_WIDE = 4  # heads that share keys and values, from which on values are cheap to keep fine

# Models that llama.cpp knows as 70B, by architecture and layers; of llama those with grouped heads.
_LARGE = {"llama": 80, "qwen2": 80, "deci": 80, "jais2": 68}
_FINER_IN_LARGE = {"Q3_K": "Q5_K", "Q4_K": "Q5_K"}


@dataclass(frozen=True)
class Place:
    """Where a tensor stands, as the rules see it.

    Attributes
    ----------
    index : int
        Of its layer: its number among the tensors of its role or, in mixtures of experts, in its
        name.
    n : int
        How many there are of them.
    n_sharing : int
        Attention heads that share a key and value head.
    weighted : bool
        Whether there is an importance matrix.
    is_falcon : bool
        Whether the architecture is falcon, for which some rules differ.
    """

    index: int
    n: int
    n_sharing: int
    weighted: bool
    is_falcon: bool

    def is_among_first(self, part: int) -> bool:
        """Whether the layer is one of the first n / `part`."""
        return self.index < self.n // part

    @property
    def has_more_bits(self) -> bool:
        """Whether it is in the first or last eighth of the layers, or a third one between them."""
        eighth = self.n // 8
        between = self.index - eighth
        return between < 0 or self.index >= 7 * self.n // 8 or between % 3 == 2


Rule = Callable[[Place], str | None]
"""The type of a tensor; None for that of most tensors."""


def _always(name: str) -> Rule:
    return lambda place: name


def _with_more_bits(name: str) -> Rule:
    return lambda place: name if place.has_more_bits else None


def _where_shared(name: str, otherwise: str | None = None) -> Rule:
    return lambda place: name if place.n_sharing >= _WIDE else otherwise


def _first(n: int, name: str, otherwise: str | None = None) -> Rule:
    return lambda place: name if place.index < n else otherwise


def _first_eighth(name: str, *, weighted: bool | None = None) -> Rule:
    def rule(place: Place) -> str | None:
        fits = weighted is None or place.weighted == weighted
        return name if fits and place.is_among_first(8) else None

    return rule


def _but_falcon(rule: Rule, falcon: Rule) -> Rule:
    return lambda place: falcon(place) if place.is_falcon else rule(place)


def _never(place: Place) -> None:
    return None


def _q3_k_m_down(place: Place) -> str | None:
    if place.is_among_first(16):
        return "Q5_K"
    return "Q4_K" if not place.is_falcon or place.has_more_bits else None


def _q4_k_m_down_of_falcon(place: Place) -> str | None:
    if place.is_among_first(16):
        return "Q6_K"
    return "Q5_K" if place.has_more_bits else None


@dataclass(frozen=True)
class Mix:
    """A mix of types.

    Attributes
    ----------
    name : str
        As ``llama-quantize`` knows it.
    base : str
        The type of most tensors.
    file_type : int
        Its number in `general.file_type` (``enum llama_ftype``).
    rules : mapping of str to Rule
        By role, where it is not the base.
    finer_among_experts : bool
        Whether attention outputs become Q5_K in models of eight experts.
    experts_only : str
        The type of all that are not stacked experts; empty if the rules hold for all.
    needs_imatrix : bool
        Whether llama.cpp refuses to make the base type without an importance matrix.
    """

    name: str
    base: str
    file_type: int
    rules: Mapping[str, Rule]
    finer_among_experts: bool = False
    experts_only: str = ""
    needs_imatrix: bool = False


def _mixes() -> Iterator[Mix]:
    more = _with_more_bits("Q6_K")
    yield Mix("Q4_0", "Q4_0", 2, {DOWN: _first_eighth("Q4_1", weighted=True)})
    yield Mix("Q4_1", "Q4_1", 3, {})
    yield Mix("Q8_0", "Q8_0", 7, {})
    yield Mix("Q5_0", "Q5_0", 8, {DOWN: _first_eighth("Q5_1", weighted=True)})
    yield Mix("Q5_1", "Q5_1", 9, {})
    yield Mix(
        "Q2_K",
        "Q2_K",
        10,
        {
            VALUES: _where_shared("Q4_K", "Q3_K"),
            DOWN: _always("Q3_K"),
            ATTENTION_OUTPUT: _but_falcon(_always("Q3_K"), _never),
        },
        finer_among_experts=True,
    )
    yield Mix("Q3_K_S", "Q3_K", 11, {}, finer_among_experts=True)
    yield Mix(
        "Q3_K_M",
        "Q3_K",
        12,
        {
            VALUES: _first(2, "Q5_K", "Q4_K"),
            DOWN: _q3_k_m_down,
            ATTENTION_OUTPUT: _but_falcon(_always("Q4_K"), _never),
        },
        finer_among_experts=True,
    )
    yield Mix(
        "Q3_K_L",
        "Q3_K",
        13,
        {
            VALUES: _always("Q5_K"),
            DOWN: _but_falcon(_always("Q5_K"), _always("Q4_K")),
            ATTENTION_OUTPUT: _but_falcon(_always("Q5_K"), _always("Q4_K")),
        },
    )
    yield Mix(
        "Q4_K_S",
        "Q4_K",
        14,
        {VALUES: _first(4, "Q5_K"), DOWN: _but_falcon(_first_eighth("Q5_K"), _never)},
        finer_among_experts=True,
    )
    yield Mix(
        "Q4_K_M",
        "Q4_K",
        15,
        {VALUES: more, DOWN: _but_falcon(more, _q4_k_m_down_of_falcon)},
        finer_among_experts=True,
    )
    yield Mix("Q5_K_S", "Q5_K", 16, {})
    yield Mix("Q5_K_M", "Q5_K", 17, {VALUES: more, DOWN: more})
    yield Mix("Q6_K", "Q6_K", 18, {})
    yield Mix(
        "Q2_K_S",
        "Q2_K",
        21,
        {VALUES: _where_shared("Q4_K"), DOWN: _first_eighth("Q4_K")},
        needs_imatrix=True,
    )
    for name, number in (("IQ4_NL", 25), ("IQ4_XS", 30)):
        rules = {VALUES: _where_shared("Q5_K"), DOWN: _first_eighth("Q5_K", weighted=False)}
        yield Mix(name, name, number, rules, finer_among_experts=True)
    yield Mix("MXFP4_MOE", "MXFP4", 38, {}, experts_only="Q8_0")


MIXES: Mapping[str, Mix] = MappingProxyType({mix.name: mix for mix in _mixes()})
"""The mixes of types that are written, by name."""

_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}


def mix_of(name: str) -> Mix | None:
    """The mix that ``llama-quantize`` makes for a name; None if we make none of that name."""
    return MIXES.get(_ALIASES.get(name.upper(), name.upper()))


class MixTypes:
    """The types of a model's tensors in a mix.

    Parameters
    ----------
    mix : Mix
        Which one.
    model : Model
        Whose tensors get types. llama.cpp goes through them by layer and name, and counts.
    weighted : bool
        Whether there is an importance matrix.
    skips : callable
        Which tensors, by name, get their type without being counted.

    Raises
    ------
    PlanError
        If the mix needs an importance matrix, or a tensor of experts tells no layer.
    """

    def __init__(
        self, mix: Mix, model: Model, *, weighted: bool, skips: Callable[[StoredTensor], bool]
    ) -> None:
        self._mix, self._model, self._weighted = mix, model, weighted
        architecture = str(model.get("general.architecture") or "")
        self._is_falcon = architecture == _FALCON
        self._n_layers = self._number(architecture, "block_count")
        self._n_experts = self._number(architecture, "expert_count")
        n_heads = self._number(architecture, "attention.head_count")
        n_kv = self._number(architecture, "attention.head_count_kv", n_heads)
        self._n_sharing = n_heads // n_kv if n_kv else 0
        self._is_large = _LARGE.get(architecture) == self._n_layers and (
            architecture != "llama" or n_heads != n_kv
        )
        if mix.needs_imatrix and not weighted:
            raise PlanError(
                f"{printable(model.path)}: {mix.name} needs an importance matrix (--imatrix)"
            )
        self._is_tied = "output.weight" not in model.tensors
        self._n_values = sum(role_of(name) == VALUES for name in model.tensors)
        self._counts = {VALUES: 0, DOWN: 0}
        ordered = sorted(model.tensors.values(), key=lambda each: _order(each.name))
        self._types = {each.name: self._type(each) for each in ordered if not skips(each)}

    def __getitem__(self, tensor: StoredTensor) -> str:
        """Name of a tensor's type."""
        return self._types[tensor.name]

    def _number(self, architecture: str, key: str, default: int = 0) -> int:
        """A number of the metadata; of one for each layer, that of the first."""
        value = self._model.get(f"{architecture}.{key}")
        if isinstance(value, list | tuple) and value:
            value = value[0]
        return value if isinstance(value, int) else default

    def _type(self, tensor: StoredTensor) -> str:
        mix, role = self._mix, role_of(tensor.name)
        if role == OUTPUT or (role == EMBEDDING and self._is_tied):
            whole = tensor.dims[0] % type_by_name(mix.base).block_size == 0
            if mix.experts_only or self._is_falcon or not whole or mix.base == "Q8_0":
                return "Q8_0"
            return "Q6_K"
        if mix.experts_only:
            stacked = len(tensor.dims) > 2 and tensor.dims[2] > 1
            return mix.base if stacked else mix.experts_only
        chosen = mix.rules[role](self._place(tensor, role)) if role in mix.rules else None
        if role in self._counts:
            self._counts[role] += 1
        return self._refined(role, chosen or mix.base)

    def _place(self, tensor: StoredTensor, role: str) -> Place:
        index = self._counts.get(role, 0)
        n = self._n_values if role == VALUES else self._n_layers
        if role == DOWN and self._n_experts > 1:
            index = self._layer(tensor.name)
        return Place(index, n, self._n_sharing, self._weighted, self._is_falcon)

    def _layer(self, name: str) -> int:
        number = _layer(name)
        if not 0 <= number < self._n_layers:
            raise PlanError(
                f"{printable(self._model.path)}: tensor {quoted(name)} is in none of the"
                f" {self._n_layers} layers that the metadata tell of"
            )
        return number

    def _refined(self, role: str, name: str) -> str:
        """What large models and those of eight experts can afford."""
        if role == VALUES and self._is_large:
            name = _FINER_IN_LARGE.get(name, name)
        if self._n_experts == 8 and role in (VALUES, KEYS):
            return "Q8_0"
        if self._n_experts == 8 and role == ATTENTION_OUTPUT and not self._is_falcon:
            return "Q5_K" if self._mix.finer_among_experts else self._mix.base
        return name


def role_of(name: str) -> str:
    """What a tensor does in the model."""
    if name == "output.weight":
        return OUTPUT
    if name in EMBEDDINGS:
        return EMBEDDING
    return next((role for part, role in _ROLES if part in name), OTHER)


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def _order(name: str) -> tuple[int, bytes]:
    """How llama.cpp orders tensors."""
    return _layer(name), name.encode()
