"""Inference by llama.cpp: what it makes of tokens, and perplexities by numpy in float64.

Only the binding is the package's own; what is computed from the logits is computed here.
"""

import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recover.errors import EvaluationError
from recover.evaluate.llama_binding import LOG, fill, library

N_CTX = 512
"""Tokens per chunk of text, the default of llama.cpp's perplexity tool."""

_N_UBATCH = 512


class LlamaError(RuntimeError):
    """llama.cpp is not installed, or cannot do what was asked."""


_IN_F32 = {52: (-1, 0), 104: (1, 0), 108: (1, 0)}
"""Of llama_context_params: flash_attn_type auto to off, type_k and type_v F16 to F32."""


def _set_fields(params: Any, fields: dict[int, tuple[int, int]]) -> None:
    """Change int32 fields of a struct, by where they are; each must have the value that it had."""
    for place, (before, after) in fields.items():
        field = ctypes.c_int32.from_address(ctypes.addressof(params) + place)
        assert field.value == before, (place, field.value)
        field.value = after


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
    in_f32 : bool
        Whether keys and values are kept as F32, not F16, and flash attention is not used, which
        rounds to F16. Matrices that are F16 round what they are multiplied with: give F32 ones.

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
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int = N_CTX,
        n_threads: int = 1,
        in_f32: bool = False,
    ) -> None:
        self.path = Path(path)
        self.n_ctx = n_ctx
        try:
            self._lib = library()
        except EvaluationError as error:
            raise LlamaError(str(error)) from None
        self._context: int | None = None
        LOG.begin(self._lib, None)
        self._model: int | None = self._lib.llama_model_load_from_file(
            os.fsencode(self.path), self._lib.llama_model_default_params()
        )
        if not self._model:
            raise LlamaError(f"{self.path}: llama.cpp does not load it: {LOG.reason()}")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.n_vocab = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self.bos = int(self._lib.llama_vocab_bos(self._vocab))
        self.adds_bos = bool(self._lib.llama_vocab_get_add_bos(self._vocab))
        try:
            self._open_context(n_threads, in_f32=in_f32)
        except LlamaError:
            self.close()
            raise

    def _open_context(self, n_threads: int, *, in_f32: bool) -> None:
        params = self._lib.llama_context_default_params()
        params.n_ctx = params.n_batch = self.n_ctx
        params.n_ubatch = min(self.n_ctx, _N_UBATCH)
        if in_f32:
            _set_fields(params, _IN_F32)
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise LlamaError(
                f"{self.path}: llama.cpp makes no context of {self.n_ctx} tokens: {LOG.reason()}"
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
        LOG.begin(self._lib, None)
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        batch = self._lib.llama_batch_init(n_tokens, 0, 1)
        try:
            fill(batch, tokens, first)
            status = self._lib.llama_decode(self._context, batch)
        finally:
            self._lib.llama_batch_free(batch)
        if status != 0:
            raise LlamaError(f"{self.path}: llama_decode returned {status}: {LOG.reason()}")
        rows = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(rows, (n_tokens - first, self.n_vocab)).copy()

    def _check_open(self) -> None:
        if not self._model:
            raise LlamaError(f"{self.path}: this model was closed")


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
