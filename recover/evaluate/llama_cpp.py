"""Models that llama.cpp itself runs, in a thread of their own."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from recover import _stopping as stopping
from recover._text import printable
from recover.errors import EvaluationError
from recover.evaluate.llama_binding import ABORT_CALLBACK, LOG, fill, library

_T = TypeVar("_T")

_N_UBATCH = 512
_VOCAB_NONE = 0  # enum llama_vocab_type
_ABORTED = 2  # llama_decode: the abort callback said so


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
        self._may_stop = ABORT_CALLBACK(lambda _: self._stopped.is_set())
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llama.cpp")
        try:
            self._call(lambda: self._load(path, n_threads, log))
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path, n_threads: int, log: Callable[[str], None] | None) -> None:
        lib = self._lib
        LOG.begin(lib, log)
        self._model = lib.llama_model_load_from_file(
            os.fsencode(path), lib.llama_model_default_params()
        )
        if not self._model:
            raise EvaluationError(f"{self.name}: llama.cpp cannot load it: {LOG.reason()}")
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
                f"{self.name}: llama.cpp makes no context of {self.n_ctx} tokens: {LOG.reason()}"
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

    def __exit__(self, *_error: object) -> None:
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

    def use_threads(self, n_threads: int) -> None:
        """Let so many threads compute from now on."""
        self._call(lambda: self._lib.llama_set_n_threads(self._context, n_threads, n_threads))

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
            fill(batch, tokens, first)
            status = lib.llama_decode(self._context, batch)
        finally:
            lib.llama_batch_free(batch)
        if status == _ABORTED:
            raise EvaluationError(f"{self.name}: was stopped")
        if status != 0:
            raise EvaluationError(
                f"{self.name}: llama.cpp cannot evaluate it (status {status}): {LOG.reason()}"
            )
        rows = lib.llama_get_logits(self._context)
        if not rows:
            raise EvaluationError(f"{self.name}: is no model that continues a text")
        return np.ctypeslib.as_array(rows, (tokens.size - first, self.n_vocab)).copy()
