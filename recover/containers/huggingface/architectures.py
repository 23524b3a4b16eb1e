"""How the tensors of architectures are called and laid out here and in GGUF files.

Names come from gguf-py's tensor map. The rest is what llama.cpp's converter does to the numbers:

- llama (also Mistral and Mixtral): inside each head of queries and keys, row (j, i) of the two
  halves j becomes row 2 i + j, as its rotary embedding wants them;
- Gemma: norms are stored less 1;
- experts, one module each, become one stack;
- gpt-oss: the rows of gate and up alternate in one tensor; others with fused experts have them in
  two halves, one after the other;
- DeepSeek: the projection to keys and values is split by head, and the keys are transposed.

Grok-1's experts are modules ``moe.0``, ``moe.1``; Grok-2's ``config.json`` has a model_type that
another model had first, so that the name of the class counts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recover._text import quoted
from recover.errors import SafetensorsError

MAX_LAYERS = 4_096
MAX_EXPERTS = 65_536
"""Far more than models have."""

EXPERT = re.compile(r"(?P<module>.+\.(?:experts|moe))\.(?P<number>\d{1,9})\.(?P<rest>.+)")
"""Names of what belongs to one expert."""
QUERY_OR_KEY = re.compile(r".*\.(?P<which>[qk])_proj\.(weight|bias)")
"""Names of what makes queries or keys."""


@dataclass(frozen=True)
class Architecture:
    """What is known of an architecture.

    Attributes
    ----------
    key : str
        Its name in gguf-py's ``MODEL_ARCH``.
    permutes_heads : bool
        Whether rows of queries and keys are reordered.
    norms_add_one : bool
        Whether norms are stored less 1.
    alternates : bool
        Whether rows of gate and up alternate where they are fused.
    splits_kv : bool
        Whether the projection to keys and values is split by head.
    """

    key: str
    permutes_heads: bool = False
    norms_add_one: bool = False
    alternates: bool = False
    splits_kv: bool = False


_LLAMA = Architecture("LLAMA", permutes_heads=True)
_DEEPSEEK = Architecture("DEEPSEEK2", splits_kv=True)
_GROK = Architecture("GROK")

_BY_MODEL_TYPE = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "qwen2": Architecture("QWEN2"),
    "qwen2_moe": Architecture("QWEN2MOE"),
    "qwen3": Architecture("QWEN3"),
    "qwen3_moe": Architecture("QWEN3MOE"),
    "gemma2": Architecture("GEMMA2", norms_add_one=True),
    "gemma3": Architecture("GEMMA3", norms_add_one=True),
    "gemma3_text": Architecture("GEMMA3", norms_add_one=True),
    "phi3": Architecture("PHI3"),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "gpt_oss": Architecture("GPT_OSS", alternates=True),
    "grok": _GROK,
    "grok-1": _GROK,
}
"""By ``model_type`` of ``config.json``."""

_BY_CLASS = {"GrokForCausalLM": _GROK, "Grok1ForCausalLM": _GROK}
"""By an entry of ``architectures`` there, which counts first."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is on the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture that ``config.json`` names.

    Raises
    ------
    SafetensorsError
        If there is none, or names and layouts of it are not known.
    """
    classes = config.get("architectures")
    for name in classes if isinstance(classes, list) else ():
        if isinstance(name, str) and name in _BY_CLASS:
            return _BY_CLASS[name]
    found = [config.get("model_type"), text_config(config).get("model_type")]
    for name in found:
        if isinstance(name, str) and name in _BY_MODEL_TYPE:
            return _BY_MODEL_TYPE[name]
    known = ", ".join(sorted(_BY_MODEL_TYPE))
    if not any(found):
        raise SafetensorsError(
            "there is no config.json that names a model_type, so that it is not known how tensors"
            f" are called and laid out; known are {known}"
        )
    raise SafetensorsError(
        f"how tensors of the model_type {quoted(str(found[0] or found[1]))} are called and laid out"
        f" is not known; known are {known}"
    )


def architecture_by_key(key: str) -> Architecture:
    """What is known of an architecture by its name in gguf-py's ``MODEL_ARCH``."""
    return next((each for each in _BY_MODEL_TYPE.values() if each.key == key), Architecture(key))


def size_of(config: Mapping[str, Any], key: str, most: int = 1 << 31) -> int:
    """A whole number of the language model's configuration.

    Raises
    ------
    SafetensorsError
        If it is missing, or no number from 1 to `most`.
    """
    value = text_config(config).get(key)
    if value is None:
        raise SafetensorsError(f"config.json: {key} is missing")
    if type(value) is not int or not 0 < value <= most:
        raise SafetensorsError(
            f"config.json: {key} is {quoted(str(value))}, not a number up to {most}"
        )
    return value


def gguf_name(architecture: Architecture) -> str:
    """What ``general.architecture`` calls it in GGUF files."""
    import gguf

    name: str = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[architecture.key]]
    return name


class Names:
    """Names in GGUF files.

    Parameters
    ----------
    architecture : Architecture
        Of the model.
    config : mapping of str to Any
        Its configuration.
    """

    def __init__(self, architecture: Architecture, config: Mapping[str, Any]) -> None:
        import gguf

        which = gguf.MODEL_ARCH[architecture.key]
        self.architecture: str = gguf.MODEL_ARCH_NAMES[which]
        n_layers = size_of(config, "num_hidden_layers", MAX_LAYERS)
        self._map = gguf.get_tensor_name_map(which, n_layers)

    def of(self, name: str) -> str | None:
        """The name of a tensor or a parameter of a module; None if it has no place in GGUF.

        Parameters
        ----------
        name : str
            For instance ``model.layers.0.self_attn.q_proj.weight``.
        """
        own = _PREFIX.sub(r"\1", name)
        own = own.replace(".gate.e_score_correction_bias", ".gate.e_score_correction.bias")
        own = _SINKS.sub(r"\1.weight", own)
        found: str | None = self._map.get_name(own, try_suffixes=(".weight", ".bias"))
        return found


_PREFIX = re.compile(
    r"^(?:language_model\.(?=model\.|lm_head)|(model\.)language_model\.(?:model\.)?)"
)
"""Of the language model in one that also sees; newer folders have the second form."""
_SINKS = re.compile(r"(\.self_attn\.sinks)$")
