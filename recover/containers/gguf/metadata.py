"""The metadata of a file that is made from another one."""

from collections.abc import Iterable, Mapping
from typing import Any

from recover.containers.gguf.header import KeyValue, ValueType, encode_key_value

FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 12,
    "Q4_K": 15,
    "Q5_K": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "BF16": 32,
    "MXFP4": 38,
}
"""What `general.file_type` says of a file whose weights have that type: the `enum llama_ftype` that
``llama-quantize`` takes for the name (for Q3_K, Q4_K and Q5_K that of the K_M mix, for MXFP4 that
of MXFP4_MOE). It takes none for NVFP4."""

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
