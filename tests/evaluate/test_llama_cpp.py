"""The inference oracle itself: conventions, determinism and errors."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.oracle import llama_cpp
from tests.oracle.llama_cpp import (
    LlamaError,
    LlamaModel,
    negative_log_likelihood,
    perplexity,
    score_chunks,
    text_chunks,
)
from tests.support.models import TINY

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 40


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaModel]:
    with LlamaModel(TINY, n_ctx=256) as model:
        yield model


def test_tokens_begin_with_that_of_a_text(model: LlamaModel) -> None:
    tokens = model.tokenize("To be")
    assert model.adds_bos
    assert tokens[0] == model.bos
    assert model.bos not in tokens[1:]
    assert model.tokenize("").tolist() == [model.bos]
    assert model.tokenize("a\0b").size > model.tokenize("a").size


def test_what_comes_later_changes_nothing(model: LlamaModel) -> None:
    tokens = model.tokenize(TEXT)[:200]
    logits = model.logits(tokens)
    assert logits.shape == (200, model.n_vocab)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(model.logits(tokens), logits)
    np.testing.assert_array_equal(model.logits(tokens, 150), logits[150:])
    np.testing.assert_allclose(model.logits(tokens[:120]), logits[:120], atol=1e-3)


def test_chunks(model: LlamaModel) -> None:
    tokens = model.tokenize(TEXT)
    chunks = text_chunks(model, TEXT, 64)
    assert chunks.shape == (tokens.size // 64, 64)
    np.testing.assert_array_equal(chunks[:, 0], model.bos)
    np.testing.assert_array_equal(chunks[:, 1:], tokens[: chunks.size].reshape(-1, 64)[:, 1:])
    some = text_chunks(model, TEXT, 64, 3)
    np.testing.assert_array_equal(some, chunks[[0, (len(chunks) - 1) // 2, -1]])
    np.testing.assert_array_equal(text_chunks(model, TEXT, 64, 1), chunks[:1])


def test_the_second_half_is_scored(model: LlamaModel) -> None:
    chunks = text_chunks(model, TEXT, 64, 2)
    scores = score_chunks(model, chunks)
    assert scores.shape == (2, 31)
    for chunk, row in zip(chunks, scores, strict=True):
        for position, score in enumerate(row, 32):
            last = model.logits(chunk[: position + 1])[-1].astype(np.float64)
            probabilities = np.exp(last) / np.exp(last).sum()
            assert score == pytest.approx(-np.log(probabilities[chunk[position + 1]]), abs=1e-3)
    assert perplexity(model, TEXT, 64, 2) == pytest.approx(np.exp(scores.mean()))


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0], [0, 1e4]], np.float32)
    scores = negative_log_likelihood(logits, np.array([0, 0], np.int32))
    np.testing.assert_array_equal(scores, [0, 1e4])


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"no model at all" * 10])
def test_a_file_that_does_not_load(
    tmp_path: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LlamaError, match="does not load it: ") as caught:
        LlamaModel(path)
    assert str(path) in str(caught.value)
    assert "no reason" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_wrong_use(model: LlamaModel) -> None:
    with pytest.raises(LlamaError, match="vocabulary has 1024"):
        model.logits([1, 1024])
    with pytest.raises(LlamaError, match="1 to 256 tokens"):
        model.logits([1] * 257)
    with pytest.raises(LlamaError, match="1 to 256 tokens"):
        model.logits([])
    with pytest.raises(LlamaError, match="the text has 0 of them"):
        text_chunks(model, "too short")
    with LlamaModel(TINY) as closed:
        pass
    closed.close()
    with pytest.raises(LlamaError, match="was closed"):
        closed.logits([1])


def test_another_layout_is_refused() -> None:
    class Library:
        """Says that the defaults are others."""

        def llama_context_default_params(self) -> ctypes.Structure:
            return llama_cpp._ContextParams(n_ctx=4096, n_batch=2048, n_ubatch=512, n_seq_max=1)

    with pytest.raises(LlamaError, match=r"laid out differently.*4096"):
        llama_cpp._check_layout(Library())  # type: ignore[arg-type]


def test_a_missing_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(LlamaError, match="not installed"):
        llama_cpp.library.__wrapped__()
