"""The metadata of a file that is made from another one."""

from collections.abc import Iterable, Mapping
from typing import Any

from recover.containers.gguf.header import KeyValue, ValueType, encode_key_value

IMATRIX_PREFIX = "quantize.imatrix."
"""Begins the names of the keys that tell of the importance matrix, in files made with one."""

QUANTIZER_KEY = "recover.quantizer"
"""Name of the encoder, where it was another than llama.cpp's."""


def derived_metadata(
    metadata: Mapping[str, KeyValue],
    dropped_prefixes: tuple[str, ...],
    entries: Iterable[tuple[str, ValueType, Any]],
) -> list[bytes]:
    """Spans of the original, verbatim, without dropped ones; `entries` replace or follow them."""
    spans = {
        key: entry.span for key, entry in metadata.items() if not key.startswith(dropped_prefixes)
    }
    spans |= {key: encode_key_value(key, kind, value) for key, kind, value in entries}
    return list(spans.values())
