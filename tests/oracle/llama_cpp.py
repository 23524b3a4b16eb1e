"""Inference: llama.cpp itself, prebuilt in the package `xllamacpp`, called through ctypes.

The package's one shared object exports the C API of llama.cpp (`include/llama.h`). The layouts of
its parameter structs change from version to version, so they are treated as opaque: taken from
`llama_*_default_params`, changed in their first, long stable fields only, and handed back.
"""

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

N_CTX = 512
"""Tokens per chunk of text, the default of llama.cpp's perplexity tool."""

_N_UBATCH = 512
_LOG_ERROR = 4  # enum ggml_log_level: debug 1, info 2, warning 3, error 4, continued line 5
_LOG_CONTINUED = 5


class LlamaError(RuntimeError):
    """llama.cpp is not installed, has another layout than expected, or cannot do what was asked."""


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
_VOID_P, _INT, _I32 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int32

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
    "llama_memory_clear": (None, (_VOID_P, ctypes.c_bool)),
    "llama_model_default_params": (_ModelParams, ()),
    "llama_model_free": (None, (_VOID_P,)),
    "llama_model_get_vocab": (_VOID_P, (_VOID_P,)),
    "llama_model_load_from_file": (_VOID_P, (ctypes.c_char_p, _ModelParams)),
    "llama_n_batch": (ctypes.c_uint32, (_VOID_P,)),
    "llama_n_ctx": (ctypes.c_uint32, (_VOID_P,)),
    "llama_set_n_threads": (None, (_VOID_P, _I32, _I32)),
    "llama_tokenize": (
        _I32,
        (_VOID_P, ctypes.c_char_p, _I32, _VOID_P, _I32, ctypes.c_bool, ctypes.c_bool),
    ),
    "llama_vocab_bos": (_I32, (_VOID_P,)),
    "llama_vocab_get_add_bos": (ctypes.c_bool, (_VOID_P,)),
    "llama_vocab_n_tokens": (_I32, (_VOID_P,)),
}


class _Log:
    """Keeps llama.cpp silent, and remembers what it says of the last failure."""

    def __init__(self) -> None:
        self._errors: list[str] = []
        self._level = 0
        self.callback = _LOG_CALLBACK(self._take)  # must live as long as the library

    def _take(self, level: int, text: bytes, _user_data: object) -> None:
        if level != _LOG_CONTINUED:
            self._level = level
        if self._level == _LOG_ERROR:
            self._errors.append(text.decode(errors="replace"))

    def clear(self) -> None:
        self._errors.clear()

    def reason(self) -> str:
        """The first error since `clear`: the later ones only pass it on."""
        lines = "".join(self._errors).splitlines()
        return next((line.strip() for line in lines if line.strip()), "llama.cpp gives no reason")


_LOG = _Log()


@cache
def library() -> ctypes.CDLL:
    """The shared object, initialized and silent.

    Returns
    -------
    ctypes.CDLL

    Raises
    ------
    LlamaError
        If the package is not installed, or its structs are laid out differently.
    """
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        raise LlamaError("the package xllamacpp is not installed; it comes with the extra 'eval'")
    folder = Path(next(iter(spec.submodule_search_locations)))
    paths = sorted(folder.glob("xllamacpp*.so"))
    if not paths:
        raise LlamaError(f"{folder}: there is no shared object of xllamacpp")
    lib = ctypes.CDLL(str(paths[0]))
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise LlamaError(f"{paths[0]}: this version has no function {name}") from None
        function.restype, function.argtypes = result, arguments
    _check_layout(lib)
    lib.llama_log_set(_LOG.callback, None)
    lib.llama_backend_init()
    return lib


def _check_layout(lib: ctypes.CDLL) -> None:
    """Refuse a version whose structs do not begin as they are declared here."""
    context = lib.llama_context_default_params()
    found = {name: getattr(context, name) for name in _DEFAULT_CONTEXT}
    if found != _DEFAULT_CONTEXT:
        raise LlamaError(
            "llama_context_params is laid out differently in this version of xllamacpp: its"
            f" defaults read as {found}, not {_DEFAULT_CONTEXT}; install the version that the"
            " extra 'eval' names"
        )
    tokens = (ctypes.c_int32 * 3)(7, 8, 9)
    batch = lib.llama_batch_get_one(tokens, len(tokens))
    fits = batch.n_tokens == len(tokens) and batch.token and batch.token[:3] == tokens[:]
    if not fits or any((batch.embd, batch.pos, batch.n_seq_id, batch.seq_id, batch.logits)):
        raise LlamaError(
            "llama_batch is laid out differently in this version of xllamacpp; install the version"
            " that the extra 'eval' names"
        )


class LlamaModel:
    """A GGUF file loaded into llama.cpp; a context manager that frees it.

    Parameters
    ----------
    path : path-like
        The file; of a split file the first part.
    n_ctx : int
        Most tokens that `logits` takes at once.
    n_threads : int
        Threads that compute; the logits do not depend on it.

    Attributes
    ----------
    n_vocab : int
        Number of tokens in the vocabulary.
    bos : int
        Token that begins a text.
    adds_bos : bool
        Whether the model wants it there.

    Raises
    ------
    LlamaError
        If llama.cpp is missing or does not load the file.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, n_ctx: int = N_CTX, n_threads: int = 1
    ) -> None:
        self.path = Path(path)
        self.n_ctx = n_ctx
        self._lib = library()
        self._context: int | None = None
        _LOG.clear()
        self._lib.llama_log_set(_LOG.callback, None)  # the library is shared with the package
        self._model: int | None = self._lib.llama_model_load_from_file(
            os.fsencode(self.path), self._lib.llama_model_default_params()
        )
        if not self._model:
            raise LlamaError(f"{self.path}: llama.cpp does not load it: {_LOG.reason()}")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.n_vocab = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self.bos = int(self._lib.llama_vocab_bos(self._vocab))
        self.adds_bos = bool(self._lib.llama_vocab_get_add_bos(self._vocab))
        try:
            self._open_context(n_threads)
        except LlamaError:
            self.close()
            raise

    def _open_context(self, n_threads: int) -> None:
        params = self._lib.llama_context_default_params()
        params.n_ctx = params.n_batch = self.n_ctx
        params.n_ubatch = min(self.n_ctx, _N_UBATCH)
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise LlamaError(
                f"{self.path}: llama.cpp makes no context of {self.n_ctx} tokens: {_LOG.reason()}"
            )
        sizes = self._lib.llama_n_ctx(self._context), self._lib.llama_n_batch(self._context)
        if min(sizes) < self.n_ctx:
            raise LlamaError(
                f"{self.path}: llama.cpp made a context and a batch of {sizes} tokens,"
                f" not {self.n_ctx}"
            )
        self._lib.llama_set_n_threads(self._context, n_threads, n_threads)

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
        if self._context:
            self._lib.llama_free(self._context)
            self._context = None
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

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
        LlamaError
            If llama.cpp cannot do it.
        """
        self._check_open()
        raw = text.encode()
        tokens = np.empty(len(raw) + 8, np.int32)  # a token is at least one byte
        n_tokens = self._lib.llama_tokenize(
            self._vocab, raw, len(raw), tokens.ctypes.data, tokens.size, True, False
        )
        if n_tokens < 0:
            raise LlamaError(f"{self.path}: llama.cpp cannot cut a text of {len(raw)} bytes")
        return tokens[:n_tokens].copy()

    def logits(self, tokens: ArrayLike, first: int = 0) -> NDArray[np.float32]:
        """What the model expects after each token, given those before it.

        Parameters
        ----------
        tokens : int (n,)
            At most `n_ctx` of them; nothing is remembered from an earlier call.
        first : int
            Leave out what is expected after the tokens in front of this one: quicker.

        Returns
        -------
        float32 (n - first, n_vocab)
            Row i belongs to the token that follows ``tokens[first + i]``.

        Raises
        ------
        LlamaError
            If there are too many tokens, or one is not in the vocabulary.
        """
        self._check_open()
        tokens = np.asarray(tokens, np.int32)
        n_tokens = tokens.size
        if not 0 <= first < n_tokens <= self.n_ctx:
            raise LlamaError(
                f"{n_tokens} tokens, logits from {first} on: there must be 1 to {self.n_ctx} tokens"
                " and logits of at least one"
            )
        if tokens.min() < 0 or tokens.max() >= self.n_vocab:
            raise LlamaError(
                f"tokens from {tokens.min()} to {tokens.max()}: the vocabulary has {self.n_vocab}"
            )
        _LOG.clear()
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        batch = self._lib.llama_batch_init(n_tokens, 0, 1)
        try:
            _fill(batch, tokens, first)
            status = self._lib.llama_decode(self._context, batch)
        finally:
            self._lib.llama_batch_free(batch)
        if status != 0:
            raise LlamaError(f"{self.path}: llama_decode returned {status}: {_LOG.reason()}")
        rows = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(rows, (n_tokens - first, self.n_vocab)).copy()

    def _check_open(self) -> None:
        if not self._model:
            raise LlamaError(f"{self.path}: this model was closed")


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


def text_chunks(
    model: LlamaModel, text: str, n_ctx: int = N_CTX, n_chunks: int | None = None
) -> NDArray[np.int32]:
    """Chunks of a text as llama.cpp's perplexity tool makes them.

    The tokens of the whole text are cut into chunks of `n_ctx`, what is left at the end is dropped,
    and the first token of each chunk is replaced by the one that begins a text, if the model wants
    it (`tools/perplexity/perplexity.cpp`).

    Parameters
    ----------
    model : LlamaModel
        Whose vocabulary is used.
    text : str
        At least `n_ctx` tokens of it.
    n_ctx : int
        Tokens per chunk.
    n_chunks : int, optional
        Take this many of the chunks, evenly spaced from the first to the last; default: all.

    Returns
    -------
    int32 (n_chunks, n_ctx)

    Raises
    ------
    LlamaError
        If the text has fewer chunks.
    """
    tokens = model.tokenize(text)
    n_all = tokens.size // n_ctx
    wanted = n_all if n_chunks is None else n_chunks
    if not 1 <= wanted <= n_all:
        raise LlamaError(f"{wanted} chunks of {n_ctx} tokens: the text has {n_all} of them")
    chunks = tokens[: n_all * n_ctx].reshape(n_all, n_ctx)
    chunks = chunks[np.arange(wanted) * (n_all - 1) // max(wanted - 1, 1)]
    if model.adds_bos:
        chunks[:, 0] = model.bos
    return chunks


def negative_log_likelihood(
    logits: NDArray[np.float32], tokens: NDArray[np.int32]
) -> NDArray[np.float64]:
    """How much each token surprises, in nats.

    Parameters
    ----------
    logits : float32 (n, n_vocab)
        From `LlamaModel.logits`.
    tokens : int (n,)
        What really followed.

    Returns
    -------
    float64 (n,)
        ``log(sum(exp(logits))) - logits[token]``.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(tokens)), tokens]
    return np.log(np.exp(shifted, out=shifted).sum(axis=1)) - chosen


def score_chunks(model: LlamaModel, chunks: NDArray[np.int32]) -> NDArray[np.float64]:
    """How much the tokens in the second half of each chunk surprise a model.

    Parameters
    ----------
    model : LlamaModel
        Opened with at least the ``n_ctx`` of the chunks.
    chunks : int32 (n_chunks, n_ctx)
        From `text_chunks`, perhaps with another model of the same vocabulary.

    Returns
    -------
    float64 (n_chunks, n_ctx - n_ctx // 2 - 1)
        Negative log-likelihoods, in nats, of the tokens behind the one in the middle; perplexity is
        the exponential of their mean.
    """
    first = chunks.shape[1] // 2
    scores = [
        negative_log_likelihood(model.logits(chunk[:-1], first), chunk[first + 1 :])
        for chunk in chunks
    ]
    return np.stack(scores)


def perplexity(
    model: LlamaModel, text: str, n_ctx: int = N_CTX, n_chunks: int | None = None
) -> float:
    """Perplexity of a model on a text by the convention of llama.cpp's perplexity tool.

    Parameters
    ----------
    model : LlamaModel
        Opened with at least this `n_ctx`.
    text : str
        See `text_chunks`.
    n_ctx : int
        Tokens per chunk; those of its second half are scored.
    n_chunks : int, optional
        Number of chunks, evenly spaced over the text; default: all.

    Returns
    -------
    float

    Raises
    ------
    LlamaError
        If the text is too short.
    """
    return float(np.exp(score_chunks(model, text_chunks(model, text, n_ctx, n_chunks)).mean()))
