"""llama.cpp itself, prebuilt in the package `xllamacpp` (the extra ``eval``), called by ctypes.

The package's one shared object exports the C API of llama.cpp (``include/llama.h``). The layouts of
its parameter structs change from version to version, so they are treated as opaque: taken from
``llama_*_default_params``, changed in their first, long stable fields only, and handed back.
"""

import ctypes
import importlib.util
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from recover import _stopping as stopping
from recover._text import printable
from recover.errors import EvaluationError

HOW_TO_INSTALL = (
    "install it with `pip install 'xllamacpp==2026.10.11549'`, or this package with its extra"
    " `eval`"
)

_T = TypeVar("_T")

_N_UBATCH = 512
_LOG_ERROR = 4  # enum ggml_log_level: debug 1, info 2, warning 3, error 4, continued line 5
_LOG_CONTINUED = 5
_VOCAB_NONE = 0  # enum llama_vocab_type
_ABORTED = 2  # llama_decode: the abort callback said so


class _ModelParams(ctypes.Structure):
    """`struct llama_model_params`, never looked into; larger than it ever was."""

    _fields_ = (("opaque", ctypes.c_uint64 * 128),)


class _ContextParams(ctypes.Structure):
    """`struct llama_context_params`: its first fields; larger than it ever was."""

    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("opaque", ctypes.c_uint64 * 126),
    )


_DEFAULT_CONTEXT = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1}


class _Batch(ctypes.Structure):
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
_ABORT_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
_VOID_P, _I32, _U32, _BOOL = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, ctypes.c_bool

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_batch_free": (None, (_Batch,)),
    "llama_batch_get_one": (_Batch, (ctypes.POINTER(_I32), _I32)),
    "llama_batch_init": (_Batch, (_I32, _I32, _I32)),
    "llama_context_default_params": (_ContextParams, ()),
    "llama_decode": (_I32, (_VOID_P, _Batch)),
    "llama_free": (None, (_VOID_P,)),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), (_VOID_P,)),
    "llama_get_memory": (_VOID_P, (_VOID_P,)),
    "llama_init_from_model": (_VOID_P, (_VOID_P, _ContextParams)),
    "llama_log_set": (None, (_LOG_CALLBACK, _VOID_P)),
    "llama_memory_clear": (None, (_VOID_P, _BOOL)),
    "llama_model_default_params": (_ModelParams, ()),
    "llama_model_free": (None, (_VOID_P,)),
    "llama_model_get_vocab": (_VOID_P, (_VOID_P,)),
    "llama_model_load_from_file": (_VOID_P, (ctypes.c_char_p, _ModelParams)),
    "llama_model_n_ctx_train": (_I32, (_VOID_P,)),
    "llama_n_batch": (_U32, (_VOID_P,)),
    "llama_n_ctx": (_U32, (_VOID_P,)),
    "llama_set_abort_callback": (None, (_VOID_P, _ABORT_CALLBACK, _VOID_P)),
    "llama_set_n_threads": (None, (_VOID_P, _I32, _I32)),
    "llama_tokenize": (_I32, (_VOID_P, ctypes.c_char_p, _I32, _VOID_P, _I32, _BOOL, _BOOL)),
    "llama_vocab_bos": (_I32, (_VOID_P,)),
    "llama_vocab_get_add_bos": (_BOOL, (_VOID_P,)),
    "llama_vocab_n_tokens": (_I32, (_VOID_P,)),
    "llama_vocab_type": (_I32, (_VOID_P,)),
}


class _Log:
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


_LOG = _Log()


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
    _check_layout(lib)
    _LOG.begin(lib, None)
    lib.llama_backend_init()
    return lib


def _check_layout(lib: ctypes.CDLL) -> None:
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


class LlamaModel:
    """A GGUF file loaded into llama.cpp; a context manager that frees it.

    llama.cpp works in a thread of its own, so that a signal reaches this one at once; an exception
    that arrives while it computes stops it.

    Parameters
    ----------
    path : Path
        The file; of a split file the first part.
    n_ctx : int
        Most tokens that `logits` takes at once.
    n_threads : int
        Threads that compute; the logits do not depend on it.
    name : str, optional
        What messages call it; default: the path.
    log : callable, optional
        Called with each line that llama.cpp has to say.

    Attributes
    ----------
    n_vocab : int
        Number of tokens in the vocabulary.
    bos : int
        Token that begins a text.
    adds_bos : bool
        Whether the model wants it there.
    n_ctx_train : int
        Tokens of context that the model was trained on.

    Raises
    ------
    EvaluationError
        If llama.cpp is missing or does not load the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int,
        n_threads: int,
        name: str | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name or printable(path)
        self.n_ctx = n_ctx
        self._lib = library()
        self._context: int | None = None
        self._model: int | None = None
        self._stopped = threading.Event()
        self._may_stop = _ABORT_CALLBACK(lambda _: self._stopped.is_set())
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llama.cpp")
        try:
            self._call(lambda: self._load(path, n_threads, log))
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path, n_threads: int, log: Callable[[str], None] | None) -> None:
        lib = self._lib
        _LOG.begin(lib, log)
        self._model = lib.llama_model_load_from_file(
            os.fsencode(path), lib.llama_model_default_params()
        )
        if not self._model:
            raise EvaluationError(f"{self.name}: llama.cpp cannot load it: {_LOG.reason()}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        if lib.llama_vocab_type(self._vocab) == _VOCAB_NONE:
            raise EvaluationError(f"{self.name}: has no vocabulary, so that no text can be cut")
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self.n_ctx_train = int(lib.llama_model_n_ctx_train(self._model))
        self.bos = int(lib.llama_vocab_bos(self._vocab))
        self.adds_bos = bool(lib.llama_vocab_get_add_bos(self._vocab)) and self.bos >= 0
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = self.n_ctx
        params.n_ubatch = min(self.n_ctx, _N_UBATCH)
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise EvaluationError(
                f"{self.name}: llama.cpp makes no context of {self.n_ctx} tokens: {_LOG.reason()}"
            )
        sizes = lib.llama_n_ctx(self._context), lib.llama_n_batch(self._context)
        if min(sizes) < self.n_ctx:
            raise EvaluationError(
                f"{self.name}: llama.cpp made a context and a batch of {sizes} tokens,"
                f" not {self.n_ctx}"
            )
        lib.llama_set_n_threads(self._context, n_threads, n_threads)
        lib.llama_set_abort_callback(self._context, self._may_stop, None)

    def __enter__(self) -> Self:
        """The model itself."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Free it."""
        self.close()

    def close(self) -> None:
        """Free the memory; the model cannot be used any more."""
        self._thread.shutdown()
        if self._context:
            self._lib.llama_free(self._context)
            self._context = None
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

    def _call(self, function: Callable[[], _T]) -> _T:
        """Call a function in the model's thread; whatever interrupts the wait stops it, too."""
        future = self._thread.submit(function)
        try:
            return stopping.wait_for(future)
        except BaseException:
            if not future.done():
                self._stopped.set()
            raise

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """Cut a text into tokens.

        Parameters
        ----------
        text : str
            Taken as plain text: what looks like a control token is none.

        Returns
        -------
        int32 (n,)
            With the token that begins a text in front, if the model wants it (`adds_bos`).

        Raises
        ------
        EvaluationError
            If llama.cpp cannot do it.
        """
        raw = text.encode()
        tokens = np.empty(len(raw) + 8, np.int32)  # a token is at least one byte
        n_tokens = self._call(
            lambda: self._lib.llama_tokenize(
                self._vocab, raw, len(raw), tokens.ctypes.data, tokens.size, True, False
            )
        )
        if n_tokens < 0:
            raise EvaluationError(f"{self.name}: llama.cpp cannot cut a text of {len(raw)} bytes")
        return tokens[:n_tokens].copy()

    def logits(self, tokens: NDArray[np.int32], first: int = 0) -> NDArray[np.float32]:
        """What the model expects after each token, given those before it.

        Parameters
        ----------
        tokens : int32 (n,)
            At most `n_ctx` of them; nothing is remembered from an earlier call.
        first : int
            Leave out what is expected after the tokens in front of this one: quicker.

        Returns
        -------
        float32 (n - first, n_vocab)
            Row i belongs to the token that follows ``tokens[first + i]``.

        Raises
        ------
        EvaluationError
            If llama.cpp fails, or the model is none that continues a text.
        """
        return self._call(lambda: self._decode(tokens, first))

    def _decode(self, tokens: NDArray[np.int32], first: int) -> NDArray[np.float32]:
        lib = self._lib
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        batch = lib.llama_batch_init(tokens.size, 0, 1)
        try:
            _fill(batch, tokens, first)
            status = lib.llama_decode(self._context, batch)
        finally:
            lib.llama_batch_free(batch)
        if status == _ABORTED:
            raise EvaluationError(f"{self.name}: was stopped")
        if status != 0:
            raise EvaluationError(
                f"{self.name}: llama.cpp cannot evaluate it (status {status}): {_LOG.reason()}"
            )
        rows = lib.llama_get_logits(self._context)
        if not rows:
            raise EvaluationError(f"{self.name}: is no model that continues a text")
        return np.ctypeslib.as_array(rows, (tokens.size - first, self.n_vocab)).copy()


def _fill(batch: _Batch, tokens: NDArray[np.int32], first: int) -> None:
    """One sequence of tokens, with logits from `first` on."""
    n_tokens = tokens.size
    batch.n_tokens = n_tokens
    np.ctypeslib.as_array(batch.token, (n_tokens,))[:] = tokens
    np.ctypeslib.as_array(batch.pos, (n_tokens,))[:] = np.arange(n_tokens)
    np.ctypeslib.as_array(batch.n_seq_id, (n_tokens,))[:] = 1
    np.ctypeslib.as_array(batch.logits, (n_tokens,))[:] = np.arange(n_tokens) >= first
    for i in range(n_tokens):
        batch.seq_id[i][0] = 0
