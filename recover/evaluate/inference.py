"""Running models on a text one after the other, within the space that there is.

The original comes first, and its logits wait on the disk. Each model is made fit to be run, runs,
and its temporary file goes before the next one's comes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recover import _stopping as stopping
from recover._files import UnreadableError, read_bytes
from recover._text import printable, quoted
from recover.containers.gguf.parts import without_further_parts
from recover.containers.gguf.reader import open_gguf
from recover.containers.model import Model
from recover.errors import EvaluationError
from recover.evaluate.llama_binding import library
from recover.evaluate.llama_cpp import LlamaModel
from recover.evaluate.reference import ReferenceLogits
from recover.evaluate.runnable import RunnableFiles
from recover.evaluate.token_figures import I32Array, PerToken, compare_chunk, join
from recover.execution.tiles import Progress
from recover.quants import F32Array

N_CTX = 512
"""Tokens per chunk, as in llama.cpp's perplexity tool."""

_LEAST_N_CTX = 8
_LONGEST_TEXT = 1 << 26
_TOKENS = "tokenizer.ggml.tokens"
_WORTH_TRYING = 16  # chunks, of all models
_LONG = 20  # seconds


@dataclass(frozen=True)
class Chunks:
    """What is read of a text.

    Attributes
    ----------
    tokens : int32 (n, n_ctx)
        Each chunk begins with the token that begins a text, if the model wants it.
    numbers : int32 (n,)
        Which chunks of the text they are.
    """

    tokens: I32Array
    numbers: I32Array

    @property
    def first(self) -> int:
        """First position in a chunk whose expectation is scored."""
        return self.tokens.shape[1] // 2

    @property
    def n_scored(self) -> int:
        """Scored tokens per chunk."""
        return self.tokens.shape[1] - 1 - self.first


@dataclass(frozen=True)
class Measurement:
    """What was asked for; see `recover.evaluate.divergence.measure_divergence`."""

    n_ctx: int
    n_chunks: int | None
    native: bool
    n_threads: int
    progress: Progress
    notify: Callable[[str], None]
    log: Callable[[str], None] | None

    def run(self, paths: Sequence[Path], truth_path: Path, text_path: Path) -> list[PerToken]:
        """The figures of each model, in order.

        Raises
        ------
        EvaluationError, GGUFError, PlanError, QuantError
            As `measure_divergence` does.
        """
        library()
        if self.n_ctx < _LEAST_N_CTX:
            raise EvaluationError(f"a context of {self.n_ctx} tokens: at least {_LEAST_N_CTX}")
        if self.n_chunks is not None and self.n_chunks < 1:
            raise EvaluationError(f"{self.n_chunks} chunks: at least 1")
        if not paths:
            raise EvaluationError("there are no models")
        text = self._read(text_path)
        models = [open_gguf(path) for path in (truth_path, *without_further_parts(paths))]
        for model in models[1:]:
            _check_vocabulary(model, models[0])
        with (
            ThreadPoolExecutor(self.n_threads, thread_name_prefix="recover") as threads,
            stopping.temporary_folder("recover-") as scratch,
            ExitStack() as stack,
        ):
            files = RunnableFiles(
                scratch,
                models,
                native=self.native,
                n_threads=self.n_threads,
                notify=self.notify,
            )
            with self._load(files, models, 0) as llama:
                chunks = self._cut(llama, text, text_path)
                for model in models[1:]:
                    _check_tokens(model, models[0], chunks.tokens)
                n_threads = self._fastest(llama, chunks, len(models))
                shape = chunks.n_scored, llama.n_vocab
                reference = stack.enter_context(files.reference(len(chunks.tokens), shape))
                for i, logits in self._logits(llama, chunks, 0, len(models)):
                    reference.store(i, logits)
            return [
                self._compare(files, models, index, reference, chunks, threads, n_threads)
                for index in range(1, len(models))
            ]

    def _read(self, path: Path) -> str:
        """The text; a token is at least one byte, so that a short one is known at once."""
        shown = printable(path)
        try:
            raw = read_bytes(path, _LONGEST_TEXT)
            text = raw.decode()
        except UnreadableError as error:
            raise EvaluationError(f"{shown}: {error}") from None
        except UnicodeDecodeError as error:
            raise EvaluationError(
                f"{shown}: is no UTF-8 text: wrong byte at {error.start:,}"
            ) from None
        if len(raw) + 1 < self.n_ctx:
            raise EvaluationError(
                f"{shown}: its {len(raw):,} bytes are less than one context of {self.n_ctx} tokens;"
                " take a longer text, or a smaller --n-ctx"
            )
        return text

    def _cut(self, llama: LlamaModel, text: str, path: Path) -> Chunks:
        """Chunks as llama.cpp's perplexity tool makes them (tools/perplexity/perplexity.cpp)."""
        if self.n_ctx > llama.n_ctx_train > 0:
            self.notify(
                f"warning: {llama.name} was trained on a context of {llama.n_ctx_train} tokens;"
                f" --n-ctx is {self.n_ctx}"
            )
        tokens = llama.tokenize(text)
        n_all = tokens.size // self.n_ctx
        if n_all == 0:
            raise EvaluationError(
                f"{printable(path)}: its {tokens.size:,} tokens are less than one context of"
                f" {self.n_ctx}; take a longer text, or a smaller --n-ctx"
            )
        n_wanted = n_all if self.n_chunks is None else self.n_chunks
        if n_wanted > n_all:
            self.notify(f"{printable(path)} has {n_all} chunks, not {n_wanted}; all are taken")
            n_wanted = n_all
        # Evenly spaced from the first to the last, rounded down.
        numbers = np.arange(n_wanted) * (n_all - 1) // max(n_wanted - 1, 1)
        chosen = tokens[: n_all * self.n_ctx].reshape(n_all, self.n_ctx)[numbers]
        if llama.adds_bos:
            chosen[:, 0] = llama.bos
        return Chunks(chosen, numbers.astype(np.int32))

    def _fastest(self, llama: LlamaModel, chunks: Chunks, n_models: int) -> int:
        """How many threads read fastest.

        A small model's work is too little for many threads, which then wait for each other. Half as
        many are tried as long as that is not slower; on one chunk, which says the same however many
        there are.
        """
        n_threads = self.n_threads
        if n_threads == 1 or n_models * len(chunks.tokens) < _WORTH_TRYING:
            return n_threads
        # The first time loads pages of the file.
        seconds = min(self._seconds(llama, chunks) for _ in range(2))
        while n_threads > 1:
            llama.use_threads(n_threads // 2)
            less = self._seconds(llama, chunks)
            if less > seconds:
                break
            n_threads, seconds = n_threads // 2, less
        llama.use_threads(n_threads)
        return n_threads

    @staticmethod
    def _seconds(llama: LlamaModel, chunks: Chunks) -> float:
        start = time.perf_counter()
        llama.logits(chunks.tokens[0, :-1], chunks.first)
        return time.perf_counter() - start

    @contextmanager
    def _load(
        self,
        files: RunnableFiles,
        models: Sequence[Model],
        index: int,
        n_threads: int | None = None,
    ) -> Iterator[LlamaModel]:
        """A model in llama.cpp, under the name that the user knows it by."""
        with (
            files.path(index) as path,
            LlamaModel(
                path,
                n_ctx=self.n_ctx,
                n_threads=n_threads or self.n_threads,
                name=printable(models[index].path),
                log=self.log,
            ) as llama,
        ):
            yield llama

    def _logits(
        self, llama: LlamaModel, chunks: Chunks, index: int, n_models: int
    ) -> Iterator[tuple[int, F32Array]]:
        """One chunk after the other: its place in the list, and the logits of its second half."""
        n_chunks = len(chunks.tokens)
        n_before, n_all = index * n_chunks, n_models * n_chunks
        self.progress(n_before * self.n_ctx, n_all * self.n_ctx)
        start = time.perf_counter()
        for i, tokens in enumerate(chunks.tokens):
            logits = llama.logits(tokens[:-1], chunks.first)
            if np.isnan(logits).any():
                raise EvaluationError(f"{llama.name}: llama.cpp computes NaN with it")
            if n_before + i == 0:
                self._tell(n_all, n_models, time.perf_counter() - start)
            yield i, logits
            self.progress((n_before + i + 1) * self.n_ctx, n_all * self.n_ctx)

    def _tell(self, n_all: int, n_models: int, seconds: float) -> None:
        """Say what reading takes, if that is long; one chunk took so many seconds."""
        if n_all * seconds >= _LONG:
            self.notify(
                f"reading {n_all // n_models:,} chunks of {self.n_ctx:,} tokens with each of"
                f" {n_models} models takes about {_duration(n_all * seconds)}; --chunks takes fewer"
            )

    def _compare(
        self,
        files: RunnableFiles,
        models: Sequence[Model],
        index: int,
        reference: ReferenceLogits,
        chunks: Chunks,
        threads: ThreadPoolExecutor,
        n_threads: int,
    ) -> PerToken:
        """The figures of one model."""
        parts = []
        with self._load(files, models, index, n_threads) as llama:
            if llama.n_vocab != reference.shape[1]:
                raise _wrong_vocabulary(models[index], llama.n_vocab, models[0], reference.shape[1])
            for i, logits in self._logits(llama, chunks, index, len(models)):
                number = int(chunks.numbers[i])
                parts.append(
                    compare_chunk(reference.load(i), logits, chunks.tokens[i], number, threads)
                )
        joined = join(parts)
        if not (np.isfinite(joined.kl).all() and np.isfinite(joined.nll).all()):
            raise EvaluationError(
                f"{printable(models[index].path)}: its divergence from the original is infinite"
            )
        return joined


def _duration(seconds: float) -> str:
    """A time for people, which is only guessed."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def _check_vocabulary(model: Model, truth: Model) -> None:
    """Refuse a vocabulary of another size before anything is computed."""
    tokens, expected = _tokens(model), _tokens(truth)
    if tokens and expected and len(tokens) != len(expected):
        raise _wrong_vocabulary(model, len(tokens), truth, len(expected))


def _wrong_vocabulary(model: Model, size: int, truth: Model, expected: int) -> EvaluationError:
    return EvaluationError(
        f"{printable(model.path)}: has a vocabulary of {size:,} tokens, but"
        f" {printable(truth.path)} one of {expected:,}; they cannot be compared on a text"
    )


def _check_tokens(model: Model, truth: Model, used: I32Array) -> None:
    """Refuse a model for which the numbers of the text's tokens mean something else."""
    tokens, expected = _tokens(model), _tokens(truth)
    if not tokens or not expected:
        return
    for token in np.unique(used):
        if tokens[token] != expected[token]:
            raise EvaluationError(
                f"{printable(model.path)}: its token {token} is {quoted(str(tokens[token]))}, but"
                f" {quoted(str(expected[token]))} in {printable(truth.path)}; they cannot be"
                " compared on a text"
            )


def _tokens(model: Model) -> list[str]:
    """The vocabulary as the metadata have it; empty if they have none."""
    tokens = model.get(_TOKENS, [])
    return tokens if isinstance(tokens, list) else []
