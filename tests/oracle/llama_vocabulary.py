"""Tokens of texts by llama.cpp, from the vocabulary of a GGUF file without weights."""

import ctypes
import os
from types import TracebackType
from typing import Self

import numpy as np

from recover.errors import EvaluationError
from recover.evaluate.llama_binding import LOG, library
from tests.oracle.llama_cpp import LlamaError

# `struct llama_model_params`: vocab_only, check_tensors, use_extra_bufts, no_host.
_VOCAB_ONLY = 72
_DEFAULTS = [0, 0, 1, 0]


class LlamaVocabulary:
    """The vocabulary of a GGUF file in llama.cpp; a context manager that frees it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self._lib = library()
        except EvaluationError as error:
            raise LlamaError(str(error)) from None
        params = self._lib.llama_model_default_params()
        view = (ctypes.c_ubyte * ctypes.sizeof(params)).from_buffer(params)
        if list(view[_VOCAB_ONLY : _VOCAB_ONLY + 4]) != _DEFAULTS:
            raise LlamaError("llama_model_params is laid out differently in this llama.cpp")
        view[_VOCAB_ONLY] = 1
        LOG.begin(self._lib, None)
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise LlamaError(f"{path}: llama.cpp does not load it: {LOG.reason()}")
        self._vocab = self._lib.llama_model_get_vocab(self._model)

    def encode(self, text: str, *, around: bool = False) -> list[int]:
        """Ids of a text, in which special tokens count; `around` adds the first and the last."""
        raw = text.encode()
        out = np.empty(2 * len(raw) + 8, np.int32)
        n = self._lib.llama_tokenize(
            self._vocab,
            raw,
            len(raw),
            out.ctypes.data_as(ctypes.c_void_p),
            out.size,
            around,
            True,
        )
        if n < 0:
            raise LlamaError(f"llama.cpp makes {-n} tokens of {len(raw)} bytes")
        return out[:n].tolist()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lib.llama_model_free(self._model)
