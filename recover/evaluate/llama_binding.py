"""The binding of llama.cpp, prebuilt in the package `xllamacpp` (the extra ``eval``), by ctypes.

The package's one shared object exports the C API of llama.cpp (``include/llama.h``). The layouts of
its parameter structs change from version to version, so they are treated as opaque: taken from
``llama_*_default_params``, changed in their first, long stable fields only, and handed back.
"""

import ctypes
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._text import printable
from recover.errors import EvaluationError

HOW_TO_INSTALL = (
    "install it with `pip install 'xllamacpp==2026.10.11549'`, or this package with its extra"
    " `eval`"
)

_LOG_ERROR = 4  # enum ggml_log_level: debug 1, info 2, warning 3, error 4, continued line 5
_LOG_CONTINUED = 5


class ModelParams(ctypes.Structure):
    """`struct llama_model_params`, never looked into; larger than it ever was."""

    _fields_ = (("opaque", ctypes.c_uint64 * 128),)


class ContextParams(ctypes.Structure):
    """`struct llama_context_params`: its first fields; larger than it ever was."""

    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("opaque", ctypes.c_uint64 * 126),
    )


_DEFAULT_CONTEXT = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1}


class Batch(ctypes.Structure):
    """`struct llama_batch`."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
ABORT_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
_VOID_P, _I32, _U32, _BOOL = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, ctypes.c_bool

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_batch_free": (None, (Batch,)),
    "llama_batch_get_one": (Batch, (ctypes.POINTER(_I32), _I32)),
    "llama_batch_init": (Batch, (_I32, _I32, _I32)),
    "llama_context_default_params": (ContextParams, ()),
    "llama_decode": (_I32, (_VOID_P, Batch)),
    "llama_free": (None, (_VOID_P,)),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), (_VOID_P,)),
    "llama_get_memory": (_VOID_P, (_VOID_P,)),
    "llama_init_from_model": (_VOID_P, (_VOID_P, ContextParams)),
    "llama_log_set": (None, (_LOG_CALLBACK, _VOID_P)),
    "llama_memory_clear": (None, (_VOID_P, _BOOL)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_model_free": (None, (_VOID_P,)),
    "llama_model_get_vocab": (_VOID_P, (_VOID_P,)),
    "llama_model_load_from_file": (_VOID_P, (ctypes.c_char_p, ModelParams)),
    "llama_model_n_ctx_train": (_I32, (_VOID_P,)),
    "llama_n_batch": (_U32, (_VOID_P,)),
    "llama_n_ctx": (_U32, (_VOID_P,)),
    "llama_set_abort_callback": (None, (_VOID_P, ABORT_CALLBACK, _VOID_P)),
    "llama_set_n_threads": (None, (_VOID_P, _I32, _I32)),
    "llama_tokenize": (_I32, (_VOID_P, ctypes.c_char_p, _I32, _VOID_P, _I32, _BOOL, _BOOL)),
    "llama_vocab_bos": (_I32, (_VOID_P,)),
    "llama_vocab_get_add_bos": (_BOOL, (_VOID_P,)),
    "llama_vocab_n_tokens": (_I32, (_VOID_P,)),
    "llama_vocab_type": (_I32, (_VOID_P,)),
}


class Log:
    """Takes llama.cpp's messages: remembers its errors, and passes all on to who wants them."""

    def __init__(self) -> None:
        self._errors: list[str] = []
        self._level = 0
        self._line = ""
        self._reader: Callable[[str], None] | None = None
        self.callback = _LOG_CALLBACK(self._take)  # must live as long as the library

    def begin(self, lib: ctypes.CDLL, reader: Callable[[str], None] | None) -> None:
        """Forget earlier errors, and listen."""
        self._errors.clear()
        self._reader = reader
        lib.llama_log_set(self.callback, None)

    def _take(self, level: int, raw: bytes, _user_data: object) -> None:
        text = raw.decode(errors="replace")
        if level != _LOG_CONTINUED:
            self._level = level
        if self._level == _LOG_ERROR:
            self._errors.append(text)
        if self._reader is not None:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._reader(line)

    def reason(self) -> str:
        """The first error since `begin`: the later ones only pass it on."""
        lines = "".join(self._errors).splitlines()
        return next((line.strip() for line in lines if line.strip()), "llama.cpp gives no reason")


LOG = Log()


@cache
def library() -> ctypes.CDLL:
    """The shared object, initialized.

    Returns
    -------
    ctypes.CDLL

    Raises
    ------
    EvaluationError
        If the package is not installed, or its structs are laid out differently.
    """
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        raise EvaluationError(f"evaluating on a text needs llama.cpp; {HOW_TO_INSTALL}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    paths = sorted(folder.glob("xllamacpp*.so"))
    if not paths:
        raise EvaluationError(f"{printable(folder)}: has no shared object; {HOW_TO_INSTALL}")
    try:
        lib = ctypes.CDLL(str(paths[0]))
    except OSError as error:
        raise EvaluationError(f"llama.cpp cannot be loaded: {error}; {HOW_TO_INSTALL}") from None
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise EvaluationError(
                f"this version of xllamacpp has no function {name}; {HOW_TO_INSTALL}"
            ) from None
        function.restype, function.argtypes = result, arguments
    check_layout(lib)
    LOG.begin(lib, None)
    lib.llama_backend_init()
    return lib


def check_layout(lib: ctypes.CDLL) -> None:
    """Refuse a version whose structs do not begin as they are declared here."""
    context = lib.llama_context_default_params()
    found = {name: getattr(context, name) for name in _DEFAULT_CONTEXT}
    if found != _DEFAULT_CONTEXT:
        raise EvaluationError(
            "llama_context_params is laid out differently in this version of xllamacpp: its"
            f" defaults read as {found}, not {_DEFAULT_CONTEXT}; {HOW_TO_INSTALL}"
        )
    tokens = (ctypes.c_int32 * 3)(7, 8, 9)
    batch = lib.llama_batch_get_one(tokens, len(tokens))
    fits = batch.n_tokens == len(tokens) and batch.token and batch.token[:3] == tokens[:]
    if not fits or any((batch.embd, batch.pos, batch.n_seq_id, batch.seq_id, batch.logits)):
        raise EvaluationError(
            f"llama_batch is laid out differently in this version of xllamacpp; {HOW_TO_INSTALL}"
        )


def fill(batch: Batch, tokens: NDArray[np.int32], first: int) -> None:
    """One sequence of tokens, with logits from `first` on."""
    n_tokens = tokens.size
    batch.n_tokens = n_tokens
    np.ctypeslib.as_array(batch.token, (n_tokens,))[:] = tokens
    np.ctypeslib.as_array(batch.pos, (n_tokens,))[:] = np.arange(n_tokens)
    np.ctypeslib.as_array(batch.n_seq_id, (n_tokens,))[:] = 1
    np.ctypeslib.as_array(batch.logits, (n_tokens,))[:] = np.arange(n_tokens) >= first
    for i in range(n_tokens):
        batch.seq_id[i][0] = 0
