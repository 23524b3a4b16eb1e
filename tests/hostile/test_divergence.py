"""What cannot be read, run or stored: one line that says why, and no temporary file is left."""

import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from recover import EvaluationError, measure_divergence
from recover.cli import main
from recover.errors import RecoverError
from recover.evaluate import llama_binding
from tests.hostile.checks import check_line
from tests.support.gguf_files import F32Array, read_weights
from tests.support.models import DATA, TINY
from tests.support.text import some_text, write_model

pytestmark = pytest.mark.inference

Q2_K = DATA / "tiny-llama-3m-Q2_K.gguf"


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; they have to go away again."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(some_text(200), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def weights() -> dict[str, F32Array]:
    return read_weights(TINY)


def refusal(
    models: list[Path], text: Path, truth: Path = TINY, n_ctx: int = 64, **options: Any
) -> str:
    with pytest.raises(RecoverError) as caught:
        measure_divergence(models, truth, text, n_ctx=n_ctx, n_threads=1, **options)
    check_line(str(caught.value))
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its 0 bytes are less than one context of 64 tokens"),
        (b"x" * 62, "its 62 bytes are less than one context of 64 tokens"),
        (b"to be or not to be " * 4, r"tokens are less than one context of 64; take a longer"),
        (b"to be \xff or not " * 40, "is no UTF-8 text: wrong byte at 6"),
        (None, "there is no such file"),
    ],
)
def test_text(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "given.txt"
    if content is not None:
        path.write_bytes(content)
    message = refusal([TINY], path)
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_a_folder_is_no_text(tmp_path: Path) -> None:
    assert "is a folder; name a file" in refusal([TINY], tmp_path)


@pytest.mark.parametrize("odd", ["\0", "\u2028\ufeff", "\U0001f999<s></s>", "\x1b[31m"])
def test_odd_text_is_text(odd: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    path.write_text(odd * 200, encoding="utf-8")
    (result,) = measure_divergence([TINY], TINY, path, n_ctx=64, n_chunks=1, n_threads=1)
    assert result.kld_max < 1e-6


def test_wrong_numbers(text: Path) -> None:
    assert "a context of 7 tokens: at least 8" in refusal([TINY], text, n_ctx=7)
    assert "0 chunks: at least 1" in refusal([TINY], text, n_chunks=0)
    assert "there are no models" in refusal([], text)
    assert measure_divergence([TINY], TINY, text, n_ctx=8, n_chunks=1)[0].n_tokens == 3


def shrunk(path: Path, weights: dict[str, F32Array], n_vocab: int, **changes: Any) -> Path:
    """The same model with fewer tokens."""
    fewer = {
        name: w[:n_vocab] if name in ("token_embd.weight", "output.weight") else w
        for name, w in weights.items()
    }
    return write_model(path, TINY, fewer, llama__vocab_size=n_vocab, **changes)


def tokens() -> list[str]:
    from gguf import GGUFReader

    return list(GGUFReader(TINY).fields["tokenizer.ggml.tokens"].contents())


def test_another_vocabulary(tmp_path: Path, weights: dict[str, F32Array], text: Path) -> None:
    names = tokens()
    smaller = shrunk(tmp_path / "smaller.gguf", weights, 1000, tokenizer__ggml__tokens=names[:1000])
    message = refusal([TINY, smaller], text)
    assert message.startswith(f"{smaller}: has a vocabulary of 1,000 tokens, but {TINY} one of 1,0")
    swapped = write_model(
        tmp_path / "swapped.gguf", TINY, weights, tokenizer__ggml__tokens=names[:2] + names[:1:-1]
    )
    message = refusal([swapped], text)
    assert message.startswith(f"{swapped}: its token ")
    assert str(TINY) in message


def test_unused_tokens_may_be_called_otherwise(
    tmp_path: Path, weights: dict[str, F32Array], text: Path
) -> None:
    names = tokens()
    names[3] = "<|unused|>"  # a control character
    other = write_model(tmp_path / "other.gguf", TINY, weights, tokenizer__ggml__tokens=names)
    (result,) = measure_divergence([other], TINY, text, n_ctx=64, n_chunks=1, n_threads=1)
    assert result.kld_max < 1e-6


def test_what_llama_cpp_does_not_load(
    tmp_path: Path, weights: dict[str, F32Array], text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alien = write_model(tmp_path / "alien.gguf", TINY, weights, general__architecture="alien")
    message = refusal([TINY, alien], text)
    assert message.startswith(f"{alien}: llama.cpp cannot load it: ")
    assert "unknown model architecture: 'alien'" in message
    part = {name: w for name, w in weights.items() if name != "output_norm.weight"}
    lacking = write_model(tmp_path / "lacking.gguf", TINY, part)
    message = refusal([lacking], text)
    assert message.startswith(f"{lacking}: llama.cpp cannot load it: ")
    assert "output_norm" in message
    mute = write_model(tmp_path / "mute.gguf", TINY, weights, tokenizer__ggml__model="no_vocab")
    assert "has no vocabulary" in refusal([TINY], text, truth=mute)
    assert capfd.readouterr() == ("", "")


def test_a_quantized_file_that_llama_cpp_does_not_load(tmp_path: Path, text: Path) -> None:
    """Named is the user's file, not the temporary one."""
    alien = tmp_path / "alien.gguf"
    alien.write_bytes(Q2_K.read_bytes().replace(b"general.architecture", b"general.architecturf"))
    for native in (False, True):
        message = refusal([TINY, alien], text, native=native)
        assert message.startswith(f"{alien}: llama.cpp cannot load it: ")


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"no model at all" * 10])
def test_no_model(tmp_path: Path, content: bytes | None, text: Path) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    for models, truth in (([TINY, path], TINY), ([TINY], path)):
        assert refusal(models, text, truth=truth).startswith(f"{path}: ")


def test_weights_that_are_no_numbers(
    tmp_path: Path, weights: dict[str, F32Array], text: Path
) -> None:
    broken = weights | {"output_norm.weight": np.full(256, np.nan, np.float32)}
    path = write_model(tmp_path / "broken.gguf", TINY, broken)
    for models, truth in (([TINY, path], TINY), ([TINY], path)):
        assert refusal(models, text, truth=truth) == f"{path}: llama.cpp computes NaN with it"


class Usage(NamedTuple):
    """What `shutil.disk_usage` returns."""

    total: int
    used: int
    free: int


@pytest.mark.parametrize(
    ("spare", "reason"),
    [
        ((5_000_000,), "but the dequantized model takes 5,7"),
        ((12_000_000, 100_000), "but the original's logits take 127,"),
    ],
)
def test_no_space(
    spare: tuple[int, ...],
    reason: str,
    text: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = iter(spare)
    monkeypatch.setattr(
        "recover.evaluate.runnable.shutil.disk_usage",
        lambda _folder: Usage(0, 0, next(left) + (16 << 20)),
    )
    message = refusal([TINY], text, n_chunks=2)
    assert message.startswith(f"{scratch}: has {spare[-1]:,} bytes to spare, ")
    assert reason in message
    assert "set TMPDIR" in message


@pytest.mark.parametrize("what", ["model", "logits"])
def test_a_disk_that_fills_up(
    what: str, text: Path, scratch: Path, tmp_path: Path, weights: dict[str, F32Array]
) -> None:
    """Space that was there when it was looked at."""
    truth = TINY
    if what == "logits":  # nothing is dequantized
        truth = write_model(tmp_path / "truth.gguf", TINY, weights)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        message = refusal([truth], text, truth=truth, n_chunks=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.startswith(str(scratch))
    expected = {"model": "no space left for its 11,", "logits": "cannot hold the 126,976 bytes"}
    assert expected[what] in message


def test_another_layout_is_refused() -> None:
    class Library:
        """Says that the defaults are others."""

        def llama_context_default_params(self) -> Any:
            return llama_binding.ContextParams(n_ctx=4096, n_batch=2048, n_ubatch=512, n_seq_max=1)

    with pytest.raises(EvaluationError, match=r"laid out differently.*4096.*pip install"):
        llama_binding.check_layout(Library())  # type: ignore[arg-type]  # has no CDLL


@pytest.mark.parametrize("options", [["--n-ctx", "0"], ["--chunks", "0"], ["--chunks", "x"]])
def test_wrong_usage(options: list[str], text: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(TINY), "--truth", str(TINY), "--text", str(text), *options])
    assert caught.value.code == 2
